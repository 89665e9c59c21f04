// W^T V: from images to Gaussians. Gradients of features, and lifting. A block takes its tile's list in batches. Each warp
// computes its patch's weights, one pixel a lane, lays them out by way of shared memory and multiplies them, 8 splats at a
// time, with V^T [channels x 32 pixels], which stays in registers. The warps' sums meet in shared memory, so that a tile
// adds to a Gaussian once.
#include "lift.cuh"

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

// Where the chunk of four channels c of a warp's row lies: so that the lanes of a store use different banks.
FS_DEVICE int swizzled(int row, int chunk) {
  const int t = (row >> 1) & 3;
  return chunk ^ (TILES == 8 ? t : TILES == 4 ? (t & 1) | (t & 2) << 1 : t << 1);
}

FS_KERNEL_OCCUPANCY(256, (TILES > 4 ? 1 : 2), lift, const LiftArgs a) {
  FS_DYNAMIC_SHARED(Shared, shared);
  Shared& s = *shared;
  const int tile = blockIdx.x, warp = fs_warp(), lane = fs_lane(), g = lane >> 2, t = lane & 3;
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

  // Row g of matrix i is channel kPerLane g + 2 i, row g + 8 the next one; element k is pixel (k % 8, 2 s + k / 8).
  uint32_t high[TILES][2][4], low[TILES][2][4];
#pragma unroll
  for (int c = 0; c < TILES / 2; ++c) {
#pragma unroll
    for (int y = 0; y < 4; ++y) {
      float4 v[2];
      for (int i = 0; i < 2; ++i) {
        const int x = 2 * t + i;
        const bool valid = place.x + patch_x(warp) + x < a.width && place.y + patch_y(warp) + y < a.height;
        const int64_t pixel = valid ? corner + static_cast<int64_t>(y) * a.width + x : 0;
        v[i] = load_channels(a.maps + pixel * a.dim, channel + kPerLane * g + 4 * c, a.dim, valid);
      }
      const int k = y >> 1, part = 2 * (y & 1);
      split_pair(v[0].x, v[1].x, high[2 * c][k][part], low[2 * c][k][part]);
      split_pair(v[0].y, v[1].y, high[2 * c][k][part + 1], low[2 * c][k][part + 1]);
      split_pair(v[0].z, v[1].z, high[2 * c + 1][k][part], low[2 * c + 1][k][part]);
      split_pair(v[0].w, v[1].w, high[2 * c + 1][k][part + 1], low[2 * c + 1][k][part + 1]);
    }
  }
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
    for (int begin = 0; begin < rows; begin += 8) {
      const int at = (begin + (lane & 7)) * kWeightRow + (lane >> 3) * 8;
      uint32_t h[4], l[4];
      ldmatrix_x4(h, hw + at), ldmatrix_x4(l, lw + at);
      const uint32_t bh[2][2] = {{h[0], h[1]}, {h[2], h[3]}}, bl[2][2] = {{l[0], l[1]}, {l[2], l[3]}};
      float sums[TILES][4];
#pragma unroll
      for (int i = 0; i < TILES; ++i) {
        for (int k = 0; k < 4; ++k) sums[i][k] = 0;
        for (int k = 0; k < 2; ++k) multiply_split(sums[i], high[i][k], low[i][k], bh[k], bl[k]);
      }
#pragma unroll
      for (int which = 0; which < 2; ++which) {
        const int row = begin + 2 * t + which;
        if (row >= rows) continue;
        float4* to = reinterpret_cast<float4*>(s.sums[warp] + row * kChannels);
#pragma unroll
        for (int c = 0; c < TILES / 2; ++c) {
          to[swizzled(row, TILES / 2 * g + c)] = make_float4(sums[2 * c][which], sums[2 * c][2 + which],
                                                             sums[2 * c + 1][which], sums[2 * c + 1][2 + which]);
        }
      }
#if WEIGHTS
      if (blockIdx.y == 0) {
        const uint32_t ones[4] = {0x3f803f80u, 0x3f803f80u, 0x3f803f80u, 0x3f803f80u};
        float all[4] = {0, 0, 0, 0};
        for (int k = 0; k < 2; ++k) {
          mma_m16n8k16_bf16_f32(all, ones, bl[k], all);
          mma_m16n8k16_bf16_f32(all, ones, bh[k], all);
        }
        if (g == 0) s.weights[warp][begin + 2 * t] = all[0], s.weights[warp][begin + 2 * t + 1] = all[1];
      }
#endif
    }
    fs_sync();
    constexpr int kChunks = kChannels / 4;
    for (int i = threadIdx.x; i < n * kChunks; i += 256) {
      const int k = i / kChunks, chunk = i % kChunks;
      float4 sum = make_float4(0, 0, 0, 0);
      bool any = false;
      for (int w = 0; w < kPatches; ++w) {
        const uint32_t bits = s.taken[w];
        if (!(bits >> k & 1)) continue;
        const int row = fs_popc(bits & ((1u << k) - 1));
        const float4 v = reinterpret_cast<const float4*>(s.sums[w] + row * kChannels)[swizzled(row, chunk)];
        sum.x += v.x, sum.y += v.y, sum.z += v.z, sum.w += v.w, any = true;
      }
      if (any) add_channels(a, static_cast<int64_t>(s.id[k]), channel + 4 * chunk, sum.x, sum.y, sum.z, sum.w);
    }
#if WEIGHTS
    if (blockIdx.y == 0 && static_cast<int>(threadIdx.x) < n) {
      const int k = threadIdx.x;
      float sum = 0;
      for (int w = 0; w < kPatches; ++w) {
        const uint32_t bits = s.taken[w];
        if (bits >> k & 1) sum += s.weights[w][fs_popc(bits & ((1u << k) - 1))];
      }
      if (sum != 0) add_to(a, a.weights, static_cast<int64_t>(s.id[k]), sum);
    }
#endif
  }
}
