// From splats in depth order to one list for each tile. Splats (each camera's near to far) write their tiles one after the
// other; a stable sort by tile (sort.cu) leaves every tile's list near to far.
#include "splat.cuh"

struct SpansArgs {
  const Splat* splats;    // [splat_capacity]
  const int64_t* firsts;  // [C + 1] the first splat of each camera
  int64_t* spans;         // [splat_capacity] tiles that each reaches
  int64_t splat_capacity;
  int32_t cameras;
};

// One thread for each splat: as make_splats counted.
FS_KERNEL(128, count_spans, const SpansArgs a) {
  const int64_t rank = fs_global_thread();
  if (rank >= a.splat_capacity) return;
  const Splat s = load_splat(a.splats + rank);
  a.spans[rank] = rank < a.firsts[a.cameras] && s.floor < FS_INF ? for_tiles(s, 0, [](int, int) {}) : 0;
}

struct PairsArgs {
  const Splat* splats;    // [splat_capacity]
  const int64_t* firsts;  // [C + 1] the first splat of each camera
  const int64_t* ends;    // [splat_capacity] inclusive sums of the tiles of each splat
  void* tile_keys;        // [capacity] tile of each pair, uint16 or uint32
  uint32_t* ranks;        // [capacity] splat of each pair
  int64_t* found;         // [0] becomes the number of pairs
  int64_t capacity, splat_capacity;
  int32_t tiles, tiles_x, small_keys;  // tiles of one camera; whether keys are uint16
};

FS_DEVICE void put_key(const PairsArgs& a, int64_t at, int tile) {
  if (a.small_keys) static_cast<uint16_t*>(a.tile_keys)[at] = static_cast<uint16_t>(tile);
  else static_cast<uint32_t*>(a.tile_keys)[at] = static_cast<uint32_t>(tile);
}

FS_KERNEL(128, emit_pairs, const PairsArgs a) {
  const int64_t rank = fs_global_thread();
  if (rank == 0) a.found[0] = a.ends[a.splat_capacity - 1];
  if (rank >= a.splat_capacity) return;
  const int64_t start = rank ? a.ends[rank - 1] : 0, end = min(a.ends[rank], a.capacity);
  if (end <= start) return;
  int camera = 0;
  while (rank >= a.firsts[camera + 1]) ++camera;
  // Without room the host sees it by the total, and comes again with more.
  const int room = static_cast<int>(end - start);
  for_tiles(load_splat(a.splats + rank), a.tiles_x, [&](int tile, int k) {
    if (k >= room) return;
    put_key(a, start + k, camera * a.tiles + tile);
    a.ranks[start + k] = static_cast<uint32_t>(rank);
  });
}

struct ListsArgs {
  const void* tile_keys;   // [capacity] sorted
  const uint32_t* order;   // [capacity] the pair (as written) that stands at each place; null where the list is made already
  const int64_t* total;    // [1] how many pairs
  const uint32_t* ranks;   // [capacity] with order: splat of each pair as written
  const Splat* splats;
  uint32_t* offsets;       // [all tiles + 1]
  uint32_t* list;          // [capacity] splat of each place
  uint8_t* masks;          // [capacity] for make_masks: patches that each reaches
  int64_t capacity;
  int32_t tiles, tiles_x, all_tiles, small_keys;
};

FS_DEVICE int key_at(const ListsArgs& a, int64_t p) {
  return a.small_keys ? static_cast<const uint16_t*>(a.tile_keys)[p] : static_cast<const int32_t*>(a.tile_keys)[p];
}

// One thread for each tile and one more: where its list begins. With `order` also one for each place.
FS_KERNEL(256, make_lists, const ListsArgs a) {
  const int64_t i = fs_global_thread(), total = min(*a.total, a.capacity);
  if (a.order && i < total) a.list[i] = a.ranks[a.order[i]];
  if (i > a.all_tiles) return;
  int64_t low = 0, high = total;
  while (low < high) {
    const int64_t middle = (low + high) >> 1;
    if (key_at(a, middle) < i) low = middle + 1;
    else high = middle;
  }
  a.offsets[i] = static_cast<uint32_t>(low);
}

// One thread for each place: which patches of the tile it reaches. (blend.cu does this on its way.)
FS_KERNEL(256, make_masks, const ListsArgs a) {
  const int64_t place = fs_global_thread();
  if (place >= min(*a.total, a.capacity)) return;
  const Place tile = place_of(key_at(a, place), a.tiles, a.tiles_x);
  const Splat s = load_splat(a.splats + a.list[place]);
  a.masks[place] = static_cast<uint8_t>(patches_reached(s, tile.x + kTile / 2, tile.y + kTile / 2));
}
