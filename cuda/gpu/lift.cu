// W^T V: from images to Gaussians. Gradients of features, and lifting. A block takes its tile's list in batches. Each warp
// computes its patch's weights, one pixel a lane, lays them out by way of shared memory and multiplies them, 8 splats at a
// time, with V^T [channels x 32 pixels], which stays in registers. The warps' sums meet in shared memory, so that a tile
// adds to a Gaussian once.
#include "lift_product.cuh"

#ifndef BATCH
#define BATCH 32  // entries at a time: 16 or 32
#endif

constexpr int kAtOnce = TILES == 4 ? 2 : 4;  // splats weighed together; as registers allow

struct Shared {
  float sums[kPatches][BATCH * kChannels];  // of each warp, for the splats it takes, one after the other
  uint16_t high[kPatches][BATCH * kWeightRow], low[kPatches][BATCH * kWeightRow];
  float4 shape[BATCH], more[BATCH];  // l11, l21, u0, l22; v0, log2_opacity, floor, bits of the mask
  float4 center[BATCH], factor[BATCH], rest[BATCH];  // of the splats on their way from memory
  uint32_t id[BATCH], rank[BATCH], arriving[BATCH];  // rank: of those after the ones on their way; arriving: their masks
  uint32_t taken[kPatches];  // bits: which entries of the batch
  float weights[kPatches][BATCH];
};

FS_KERNEL_OCCUPANCY(256, (TILES > 4 ? 1 : 2), lift, const LiftArgs a) {
  FS_DYNAMIC_SHARED(Shared, shared);
  Shared& s = *shared;
  const int tile = blockIdx.x, warp = fs_warp(), lane = fs_lane();
  const Place place = place_of(tile, a.tiles, a.tiles_x);
  const uint32_t first = a.lists.offsets[tile];
  const int count = static_cast<int>(a.lists.offsets[tile + 1] - first);
  if (count == 0) return;
  const int channel = static_cast<int>(blockIdx.y) * kChannels;
  const int lx = patch_x(warp) + (lane & 7), ly = patch_y(warp) + (lane >> 3);
  const bool inside = place.x + lx < a.width && place.y + ly < a.height;
  const int64_t corner = (static_cast<int64_t>(place.camera) * a.height + place.y + patch_y(warp)) * a.width + place.x + patch_x(warp);
  const float px = lx - 7.5f, py = ly - 7.5f;
  float T = 1;
#if STOPS
  const int last = inside ? a.last[corner + static_cast<int64_t>(lane >> 3) * a.width + (lane & 7)] : 0;
  const int farthest = warp_max(last);
#else
  bool live = inside && T > a.transmittance_min;
#endif

  Maps maps;
  load_maps(a, place, warp, channel, maps);
  const int own = threadIdx.x;  // of a batch, for the threads that fetch one
  uint32_t mask = 0;
  auto look = [&](int base) {  // at the list
    if (own >= BATCH || base + own >= count) return;
    const int64_t at = first + static_cast<uint32_t>(base + own);
    fs_cp_async4(s.rank + own, a.lists.list + at);
    mask = fs_ldg(a.lists.masks + at);
  };
  auto fetch = [&](int base) {
    if (own < BATCH && base + own < count) {
      const float4* from = reinterpret_cast<const float4*>(a.lists.splats + s.rank[own]);
      fs_cp_async16(s.center + own, from), fs_cp_async16(s.factor + own, from + 1), fs_cp_async16(s.rest + own, from + 3);
    }
    fs_cp_commit();
    if (own < BATCH) s.arriving[own] = mask;
  };
  look(0);
  fs_cp_commit();
  fs_cp_wait<0>();
  fetch(0);
  look(BATCH);
  fs_cp_commit();
  uint16_t* hw = s.high[warp];
  uint16_t* lw = s.low[warp];
  for (int base = 0; base < count; base += BATCH) {
    // Also keeps the sums from being overwritten before they are added.
#if STOPS
    if (!fs_sync_or(base < farthest)) return;
#else
    if (!fs_sync_or(live)) return;
#endif
    const int n = min(BATCH, count - base);
    fs_cp_wait<0>();
    if (own < n) {
      const Place here = place_of(again(blockIdx.x), a.tiles, a.tiles_x);  // once more: registers
      const float4 factor = s.factor[own], rest = s.rest[own];
      float v0;
      s.shape[own] = seen_from(s.center[own], factor, here.x + kTile / 2, here.y + kTile / 2, v0);
      s.more[own] = make_float4(v0, factor.w, rest.x, fs_uint_as_float(s.arriving[own])), s.id[own] = fs_float_as_uint(rest.w);
    }
    fetch(base + BATCH);  // under way while this batch is worked on
    look(base + 2 * BATCH);
    fs_cp_commit();
    fs_sync();
    bool hit = lane < n && (fs_float_as_uint(s.more[lane % BATCH].w) >> warp & 1);
#if STOPS
    hit = hit && base + lane < farthest;
#else
    hit = fs_any(live) && hit;
#endif
    const uint32_t taken = fs_ballot(hit);
    if (lane == 0) s.taken[warp] = taken;
    const int rows = fs_popc(taken);
    uint32_t left = taken;
    for (int row = 0; row < rows; row += kAtOnce) {  // some at a time, so that they do not wait for each other
      float al[kAtOnce];
      bool counts[kAtOnce];
#pragma unroll
      for (int m = 0; m < kAtOnce; ++m) {
        const bool there = left != 0;
        const int k = there ? fs_ffs(left) - 1 : 0;
        left &= left - 1;
        const float4 shape = s.shape[k], more = s.more[k];
        al[m] = fminf(alpha_at(shape, more.x, more.y, more.z, px, py), a.alpha_max);
#if STOPS
        counts[m] = there && base + k < last;
#else
        counts[m] = there;
#endif
      }
#pragma unroll
      for (int m = 0; m < kAtOnce; ++m) {
        const float next = fmaf(-al[m], T, T);
#if !STOPS
        if (counts[m] && al[m] > 0 && !(next > a.transmittance_min)) live = false;
        counts[m] = counts[m] && live;
#endif
        const float first_power = counts[m] ? al[m] * T : 0.f, w = POWER == 2 ? first_power * first_power : first_power;
        T = counts[m] ? next : T;
        uint32_t h, l;
        split_pair(w, 0.f, h, l);
        hw[(row + m) * kWeightRow + lane] = static_cast<uint16_t>(h), lw[(row + m) * kWeightRow + lane] = static_cast<uint16_t>(l);
      }
    }
    for (int row = (rows + kAtOnce - 1) / kAtOnce * kAtOnce; row & 7; ++row) {
      hw[row * kWeightRow + lane] = lw[row * kWeightRow + lane] = 0;
    }
    fs_syncwarp();
    multiply_rows(maps, hw, lw, kWeightRow, rows, s.sums[warp], blockIdx.y == 0 ? s.weights[warp] : nullptr);
    fs_sync();
    add_batch(a, s.sums, s.weights, s.taken, s.id, n, channel, blockIdx.y == 0);
  }
}
