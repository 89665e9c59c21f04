// Blending weights of every patch of 8x4 pixels and splat that reaches it, computed once and kept for lift_rows.cu, whose
// blocks use them for many groups of channels. A row is 32 pixels' weights, as bfloat16 in two parts: 128 bytes.
#include "matrix.cuh"
#include "walk.cuh"

#ifndef STOPS
#define STOPS 1  // where pixels stop is given; 0: found here
#endif
#ifndef POWER
#define POWER 1  // of the weights
#endif

struct WeighArgs {
  Lists lists;
  const int32_t* last;  // [C, H, W], with STOPS
  int32_t* farthest;    // [all tiles, 8] so many entries of its tile a patch uses
  int64_t* counts;      // [all tiles, 8] count_rows: rows of each patch
  const int64_t* ends;  // [all tiles, 8] their inclusive sums
  uint32_t* ids;        // [pairs] Gaussian of each place
  uint16_t* rows;       // [room, 64]
  int64_t room;
  int32_t width, height, tiles, tiles_x, patches;
  float alpha_max, transmittance_min;
};

FS_DEVICE int stop_of(const WeighArgs& a, const Place& place, int warp) {
  const int x = place.x + patch_x(warp) + (fs_lane() & 7), y = place.y + patch_y(warp) + (fs_lane() >> 3);
  return x < a.width && y < a.height ? a.last[(static_cast<int64_t>(place.camera) * a.height + y) * a.width + x] : 0;
}

// A block a tile, a warp a patch.
FS_KERNEL(256, count_rows, const WeighArgs a) {
  const int tile = blockIdx.x, warp = fs_warp(), lane = fs_lane();
  const uint32_t first = a.lists.offsets[tile];
  const int count = static_cast<int>(a.lists.offsets[tile + 1] - first);
#if STOPS
  const int farthest = warp_max(stop_of(a, place_of(tile, a.tiles, a.tiles_x), warp));
#else
  const int farthest = count;
#endif
  int64_t rows = 0;
  for (int base = 0; base < farthest; base += 32) {
    const bool hit = base + lane < farthest && fs_ldg(a.lists.masks + first + base + lane) >> warp & 1;
    rows += fs_popc(fs_ballot(hit));
  }
  if (lane == 0) a.counts[tile * kPatches + warp] = rows, a.farthest[tile * kPatches + warp] = farthest;
  for (int i = threadIdx.x; i < count; i += 256) {
    const int64_t at = first + static_cast<uint32_t>(i);
    a.ids[at] = a.lists.splats[fs_ldg(a.lists.list + at)].id;
  }
}

FS_KERNEL(256, weigh, const WeighArgs a) {
  FS_SHARED(Ring, rings, kPatches);
  if (a.ends[a.patches - 1] > a.room) return;  // the caller comes again with more
  const int tile = blockIdx.x, warp = fs_warp(), lane = fs_lane();
  const Place place = place_of(tile, a.tiles, a.tiles_x);
  const uint32_t first = a.lists.offsets[tile];
  const int patch = tile * kPatches + warp, farthest = a.farthest[patch];
  if (farthest == 0) return;
  const float px = patch_x(warp) + (lane & 7) - 7.5f, py = patch_y(warp) + (lane >> 3) - 7.5f;
  uint16_t* row = a.rows + (patch ? a.ends[patch - 1] : 0) * 64;
  float T = 1;
#if STOPS
  const int last = stop_of(a, place, warp);
  auto going = [&](int base) { return base < farthest; };
#else
  int last = 0;
  bool live = place.x + patch_x(warp) + (lane & 7) < a.width && place.y + patch_y(warp) + (lane >> 3) < a.height &&
              T > a.transmittance_min;
  auto going = [&](int) { return fs_any(live); };
#endif
  auto take = [&](int head, int members) {
    constexpr int kAtOnce = 4;  // so that they do not wait for each other
    for (int m0 = 0; m0 < members; m0 += kAtOnce) {
      float al[kAtOnce];
      int place_of_entry[kAtOnce];
#pragma unroll
      for (int m = 0; m < kAtOnce; ++m) {
        const int at = (head + min(m0 + m, members - 1)) % kRing;
        const float4 shape = rings[warp].shape[at], more = rings[warp].more[at];
        al[m] = fminf(alpha_at(shape, more.x, more.y, more.z, px, py), a.alpha_max);
        place_of_entry[m] = place_in_list(more);
      }
#pragma unroll
      for (int m = 0; m < kAtOnce; ++m) {
        if (m0 + m >= members) break;
        const float next = fmaf(-al[m], T, T);
#if STOPS
        const bool counts = place_of_entry[m] < last;
#else
        if (al[m] > 0 && !(next > a.transmittance_min)) live = false;
        const bool counts = live;
        if (counts) last = place_of_entry[m] + 1;
#endif
        const float first_power = counts ? al[m] * T : 0.f, w = POWER == 2 ? first_power * first_power : first_power;
        T = counts ? next : T;
        uint32_t high, low;
        split_pair(w, 0.f, high, low);
        row[lane] = static_cast<uint16_t>(high), row[32 + lane] = static_cast<uint16_t>(low);
        row += 64;
      }
    }
  };
  for_groups(a.lists, first, farthest, warp, place.x + kTile / 2, place.y + kTile / 2, rings[warp], going, take);
#if !STOPS
  // Rows of later entries were not written.
  last = warp_max(last);
  if (lane == 0) a.farthest[patch] = last;
#endif
}
