// The product of the transpose, W^T V, for a warp's patch of 8x4 pixels; and the meeting of the warps' sums.
#pragma once
#include "lift.cuh"

// V^T [channels x 32 pixels] as left factors. Row g of matrix i is channel kPerLane g + 2 i, row g + 8 the next one; element k
// is pixel (k % 8, 2 s + k / 8).
struct Maps {
  uint32_t high[TILES][2][4], low[TILES][2][4];
};

FS_DEVICE void load_maps(const LiftArgs& a, const Place& place, int warp, int channel, Maps& m) {
  const int g = fs_lane() >> 2, t = fs_lane() & 3;
  const int64_t corner = (static_cast<int64_t>(place.camera) * a.height + place.y + patch_y(warp)) * a.width + place.x + patch_x(warp);
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
      split_pair(v[0].x, v[1].x, m.high[2 * c][k][part], m.low[2 * c][k][part]);
      split_pair(v[0].y, v[1].y, m.high[2 * c][k][part + 1], m.low[2 * c][k][part + 1]);
      split_pair(v[0].z, v[1].z, m.high[2 * c + 1][k][part], m.low[2 * c + 1][k][part]);
      split_pair(v[0].w, v[1].w, m.high[2 * c + 1][k][part + 1], m.low[2 * c + 1][k][part + 1]);
    }
  }
}

// Where the chunk of four channels c of a row of sums lies: so that the lanes of a store use different banks.
FS_DEVICE int swizzled(int row, int chunk) {
  const int t = (row >> 1) & 3;
  return chunk ^ (TILES == 8 ? t : TILES == 4 ? (t & 1) | (t & 2) << 1 : t << 1);
}

// sums[rows, kChannels] of a warp from its weights: rows of 32 pixels, `stride` bfloat16 apart, in two parts; filled up to
// a multiple of 8 rows. With WEIGHTS and `weights`, also the sum of each row.
FS_DEVICE void multiply_rows(const Maps& m, const uint16_t* high, const uint16_t* low, int stride, int rows, float* to_sums,
                             float* weights) {
  const int lane = fs_lane(), g = lane >> 2, t = lane & 3;
  for (int begin = 0; begin < rows; begin += 8) {
    const int at = (begin + (lane & 7)) * stride + (lane >> 3) * 8;
    uint32_t h[4], l[4];
    ldmatrix_x4(h, high + at), ldmatrix_x4(l, low + at);
    const uint32_t bh[2][2] = {{h[0], h[1]}, {h[2], h[3]}}, bl[2][2] = {{l[0], l[1]}, {l[2], l[3]}};
    float sums[TILES][4];
#pragma unroll
    for (int i = 0; i < TILES; ++i) {
      for (int k = 0; k < 4; ++k) sums[i][k] = 0;
      for (int k = 0; k < 2; ++k) multiply_split(sums[i], m.high[i][k], m.low[i][k], bh[k], bl[k]);
    }
#pragma unroll
    for (int which = 0; which < 2; ++which) {
      const int row = begin + 2 * t + which;
      if (row >= rows) continue;
      float4* to = reinterpret_cast<float4*>(to_sums + row * kChannels);
#pragma unroll
      for (int c = 0; c < TILES / 2; ++c) {
        to[swizzled(row, TILES / 2 * g + c)] =
            make_float4(sums[2 * c][which], sums[2 * c][2 + which], sums[2 * c + 1][which], sums[2 * c + 1][2 + which]);
      }
    }
#if WEIGHTS
    if (weights) {
      const uint32_t ones[4] = {0x3f803f80u, 0x3f803f80u, 0x3f803f80u, 0x3f803f80u};
      float all[4] = {0, 0, 0, 0};
      for (int k = 0; k < 2; ++k) {
        mma_m16n8k16_bf16_f32(all, ones, bl[k], all);
        mma_m16n8k16_bf16_f32(all, ones, bh[k], all);
      }
      if (g == 0) weights[begin + 2 * t] = all[0], weights[begin + 2 * t + 1] = all[1];
    }
#endif
  }
}

// Adds what the warps have for the n splats of a batch to their Gaussians. taken[w]: which splats warp w has a row for.
template <int kBatch>
FS_DEVICE void add_batch(const LiftArgs& a, const float (&sums)[kPatches][kBatch * kChannels],
                         const float (&weights)[kPatches][kBatch], const uint32_t* taken, const uint32_t* id, int n,
                         int channel, bool with_weights) {
  constexpr int kChunks = kChannels / 4;
  for (int i = threadIdx.x; i < n * kChunks; i += 256) {
    const int k = i / kChunks, chunk = i % kChunks;
    float4 sum = make_float4(0, 0, 0, 0);
    bool any = false;
    for (int w = 0; w < kPatches; ++w) {
      const uint32_t bits = taken[w];
      if (!(bits >> k & 1)) continue;
      const int row = fs_popc(bits & ((1u << k) - 1));
      const float4 v = reinterpret_cast<const float4*>(sums[w] + row * kChannels)[swizzled(row, chunk)];
      sum.x += v.x, sum.y += v.y, sum.z += v.z, sum.w += v.w, any = true;
    }
    if (any) add_channels(a, static_cast<int64_t>(id[k]), channel + 4 * chunk, sum.x, sum.y, sum.z, sum.w);
  }
#if WEIGHTS
  if (with_weights && static_cast<int>(threadIdx.x) < n) {
    const int k = threadIdx.x;
    float sum = 0;
    for (int w = 0; w < kPatches; ++w) {
      const uint32_t bits = taken[w];
      if (bits >> k & 1) sum += weights[w][fs_popc(bits & ((1u << k) - 1))];
    }
    if (sum != 0) add_to(a, a.weights, static_cast<int64_t>(id[k]), sum);
  }
#endif
}
