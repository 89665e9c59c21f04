// Second stage: which blocks of which tiles each splat reaches.
#pragma once
#include "isa.h"
#include "splat.h"

// One entry per (splat, tile), splat-major in the order asked for. reserve makes room for `extra` more entries.
struct Emitted {
  uint32_t* tile;
  uint16_t* mask;
  int64_t size, capacity;
  void (*reserve)(Emitted* self, int64_t extra);
};

// Appends the entries of splats[order[begin..end)], counting them per tile in histogram; starts[v] and counts[v] are
// the first entry (relative to `out`) and the number of entries of splat v.
FS_DECLARE(void, emit,
           (const Splat* splats, const uint32_t* order, int64_t begin, int64_t end, int tiles_x, Emitted* out,
            uint32_t* histogram, uint32_t* starts, uint32_t* counts))

// Copies the entries to their places in the tiles' lists: cursor[tile] is the next free place of this caller. Adds
// `base`, the entries of earlier callers, to starts. places and entry_tiles tell where each entry went.
FS_DECLARE(void, scatter,
           (const uint32_t* order, int64_t begin, int64_t end, const Emitted* entries, const uint32_t* counts,
            uint32_t base, uint32_t* starts, uint32_t* cursor, uint32_t* ids, uint16_t* masks, uint32_t* places,
            uint32_t* entry_tiles))
