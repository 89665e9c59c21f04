// From splats in depth order to one list of entries for each tile. Gaussians (all cameras, each near to far) write their
// tiles one after the other; a stable sort by tile, done by the caller, leaves every tile's list near to far.
#include "splat.cuh"

struct TilesArgs {
  const int32_t* keys;    // [C, N] sorted depth keys of each camera
  const int64_t* order;   // [C, N] ids near to far, of each camera
  const Splat* splats;    // [C, N]
  int64_t* spans;         // [C, N] in depth order: how many tiles; then their inclusive sums
  const int32_t* counts;  // [C, N] by slot: how many tiles
  int64_t* starts;        // [C, N] by slot: the first of the pairs it wrote
  void* tile_keys;        // [capacity] tile of each pair, int16 or int32; the rest is filled with the largest value
  uint32_t* slots;        // [capacity] slot of each pair
  int64_t n, slots_total, capacity;
  int32_t tiles, tiles_x, small_keys;  // tiles of one camera; whether keys are int16
};

FS_KERNEL(256, order_counts, const TilesArgs a) {
  const int64_t i = fs_global_thread();
  if (i < a.slots_total) a.spans[i] = a.keys[i] == kNever ? 0 : a.counts[i / a.n * a.n + a.order[i]];
}

FS_DEVICE Splat load_splat(const Splat* from) {
  Splat s;
  float4* to = reinterpret_cast<float4*>(&s);
  for (int i = 0; i < 4; ++i) to[i] = fs_ldg(reinterpret_cast<const float4*>(from) + i);
  return s;
}

FS_DEVICE void put_key(const TilesArgs& a, int64_t at, int tile) {
  if (a.small_keys) static_cast<int16_t*>(a.tile_keys)[at] = static_cast<int16_t>(tile);
  else static_cast<int32_t*>(a.tile_keys)[at] = tile;
}

FS_KERNEL(128, emit_pairs, const TilesArgs a) {
  const int64_t i = fs_global_thread(), total = a.slots_total ? a.spans[a.slots_total - 1] : 0;
  for (int64_t p = total + i; p < a.capacity; p += static_cast<int64_t>(gridDim.x) * blockDim.x) {
    put_key(a, p, a.small_keys ? 0x7fff : 0x7fffffff);
    a.slots[p] = 0;
  }
  if (i >= a.slots_total || a.keys[i] == kNever) return;
  const int64_t start = i ? a.spans[i - 1] : 0, camera = i / a.n, slot = camera * a.n + a.order[i];
  a.starts[slot] = start;
  // Without room the host sees it by the total, and comes again with more.
  const int counted = static_cast<int>(a.spans[i] - start), room = static_cast<int>(min(static_cast<int64_t>(counted), a.capacity - start));
  if (room <= 0) return;
  for_tiles(load_splat(a.splats + slot), a.tiles_x, [&](int tile, int k) {
    if (k >= room) return;
    put_key(a, start + k, static_cast<int>(camera) * a.tiles + tile);
    a.slots[start + k] = static_cast<uint32_t>(slot);
  });
}

struct ListsArgs {
  const void* tile_keys;     // [capacity] sorted
  const int64_t* order;      // [capacity] the pair (as written) that stands at each place
  const int64_t* total;      // [1] how many pairs
  const uint32_t* slots;     // [capacity] slot of each pair as written
  const Splat* splats;
  uint32_t* offsets;         // [all tiles + 1]
  Entry* entries;            // [capacity]
  uint32_t* entry_slots;     // [capacity] slot of each place
  uint32_t* written;         // [capacity] the pair as written of each place
  int64_t capacity;
  int32_t tiles, tiles_x, all_tiles, small_keys;
};

FS_DEVICE int key_at(const ListsArgs& a, int64_t p) {
  return a.small_keys ? static_cast<const int16_t*>(a.tile_keys)[p] : static_cast<const int32_t*>(a.tile_keys)[p];
}

// One thread for each tile and one more: where its list begins.
FS_KERNEL(128, tile_offsets, const ListsArgs a) {
  const int64_t tile = fs_global_thread();
  if (tile > a.all_tiles) return;
  int64_t low = 0, high = min(*a.total, a.capacity);
  while (low < high) {
    const int64_t middle = (low + high) >> 1;
    if (key_at(a, middle) < tile) low = middle + 1;
    else high = middle;
  }
  a.offsets[tile] = static_cast<uint32_t>(low);
}

// One thread for each place: what the tile's kernels need of its splat.
FS_KERNEL(256, make_entries, const ListsArgs a) {
  const int64_t place = fs_global_thread();
  if (place >= min(*a.total, a.capacity)) return;
  const int64_t pair = a.order[place];
  const uint32_t slot = a.slots[pair];
  a.entry_slots[place] = slot, a.written[place] = static_cast<uint32_t>(pair);
  const Splat s = load_splat(a.splats + slot);
  const Place tile = place_of(key_at(a, place), a.tiles, a.tiles_x);
  const double dx = (tile.x + kTile / 2 - static_cast<double>(s.x)) - s.x_rest;
  const double dy = (tile.y + kTile / 2 - static_cast<double>(s.y)) - s.y_rest;
  Entry e;
  e.l11 = s.l11, e.l21 = s.l21, e.l22 = s.l22;
  e.u0 = static_cast<float>(s.l11 * dx + s.l21 * dy), e.v0 = static_cast<float>(s.l22 * dy);
  e.log2_opacity = s.log2_opacity, e.floor = s.floor;
  e.r = s.r, e.g = s.g, e.b = s.b, e.z = s.z;
  const Ellipse shape = ellipse_of(s.l11, s.l21, s.l22, s.log2_opacity, s.floor);
  const float x = static_cast<float>(dx), y = static_cast<float>(dy);
  const float distance = fabsf(x) + fabsf(y) + kTile;
  e.mask = 0;
  for (int w = 0; w < kPatches; ++w) {
    const bool hit = reaches(shape, x + (patch_x(w) - 7.5f), y + (patch_y(w) - 7.5f), 7, 3, distance);
    e.mask |= static_cast<uint32_t>(hit) << w;
  }
  const float4* from = reinterpret_cast<const float4*>(&e);
  float4* to = reinterpret_cast<float4*>(a.entries + place);
  for (int i = 0; i < 3; ++i) to[i] = from[i];
}
