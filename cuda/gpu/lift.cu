// W^T V: from images to Gaussians. Gradients of features, and lifting. Per warp, V^T [channels x 32 pixels] stays in
// registers; weights are computed one pixel a lane, laid out by way of shared memory, and multiplied 8 splats at a time.
#include "matrix.cuh"
#include "walk.cuh"

#ifndef TILES
#define TILES 4  // channels of a block in units of 16: 2, 4 or 8; blockIdx.y chooses which
#endif
#ifndef STOPS
#define STOPS 1  // where pixels stop is given; 0: found here
#endif
#ifndef POWER
#define POWER 1  // of the weights
#endif
#ifndef WEIGHTS
#define WEIGHTS 0  // also sums of the weights
#endif
#ifndef FIXED
#define FIXED 0  // sums in fixed point, int64: the same bits whatever the order
#endif
#ifndef MATRIX
#define MATRIX 1
#endif

struct LiftArgs {
  const uint32_t* offsets;
  const Entry* entries;
  const uint32_t* slots;
  const float* maps;    // [C, H, W, dim]
  const int32_t* last;  // [C, H, W], with STOPS
  const double* scale;  // [2] with FIXED: units in one, of sums and of weights
  void* sums;           // [N, dim] float, or int64 with FIXED; added to
  void* weights;        // [N], likewise; or null
  int64_t n, dim;
  int32_t width, height, tiles, tiles_x;
  float alpha_max, transmittance_min;
};

constexpr int kChannels = 16 * TILES, kPerLane = 2 * TILES, kWeightRow = 40;  // bfloat16 from splat to splat

FS_DEVICE void add_to(const LiftArgs& a, void* sums, int64_t at, float v) {
#if FIXED
  fs_atomic_add(static_cast<int64_t*>(sums) + at, static_cast<int64_t>(v * a.scale[sums == a.weights]));
#else
  fs_atomic_add(static_cast<float*>(sums) + at, v);
#endif
}

// Four neighbouring channels of a row.
FS_DEVICE void add_channels(const LiftArgs& a, int64_t id, int64_t channel, float v0, float v1, float v2, float v3) {
  if (channel >= a.dim) return;
#if ALIGNED && !FIXED
  fs_red_add4(static_cast<float*>(a.sums) + id * a.dim + channel, v0, v1, v2, v3);
#else
  const float v[4] = {v0, v1, v2, v3};
  for (int k = 0; k < 4; ++k) {
    if (channel + k < a.dim) add_to(a, a.sums, id * a.dim + channel + k, v[k]);
  }
#endif
}

FS_KERNEL(256, lift, const LiftArgs a) {
  FS_SHARED(Ring, rings, kPatches);
#if MATRIX
  FS_SHARED(uint16_t, high_weights, kPatches * kGroup * kWeightRow);
  FS_SHARED(uint16_t, low_weights, kPatches * kGroup * kWeightRow);
#endif
  const int tile = blockIdx.x, warp = fs_warp(), lane = fs_lane(), g = lane >> 2, t = lane & 3;
  const Place place = place_of(tile, a.tiles, a.tiles_x);
  const uint32_t first = a.offsets[tile];
  const int count = static_cast<int>(a.offsets[tile + 1] - first);
  const int64_t channel = static_cast<int64_t>(blockIdx.y) * kChannels;
  const int lx = patch_x(warp) + (lane & 7), ly = patch_y(warp) + (lane >> 3);
  const bool inside = place.x + lx < a.width && place.y + ly < a.height;
  const int64_t corner = (static_cast<int64_t>(place.camera) * a.height + place.y + patch_y(warp)) * a.width + place.x + patch_x(warp);
  const float px = lx - 7.5f, py = ly - 7.5f;
  float T = 1;
#if STOPS
  const int last = inside ? a.last[corner + static_cast<int64_t>(lane >> 3) * a.width + (lane & 7)] : 0;
  const int farthest = warp_max(last);
  if (farthest == 0) return;
  auto going = [&](int base) { return base < farthest; };
#else
  bool live = inside && T > a.transmittance_min;
  auto going = [&](int) { return fs_any(live); };
#endif

  // The weight of the next entry at this lane's pixel.
  auto weigh = [&](int at) {
    const float4 shape = rings[warp].shape[at], more = rings[warp].more[at];
    const float al = fminf(alpha_at(shape, more.x, more.y, more.z, px, py), a.alpha_max);
    const float next = fmaf(-al, T, T);
#if STOPS
    const bool counts = place_in_list(more) < last;
#else
    if (al > 0 && !(next > a.transmittance_min)) live = false;
    const bool counts = live;
#endif
    if (!counts) return 0.f;
    const float w = al * T;
    T = next;
    return POWER == 2 ? w * w : w;
  };

#if MATRIX
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
      const int s = y >> 1, part = 2 * (y & 1);
      split_pair(v[0].x, v[1].x, high[2 * c][s][part], low[2 * c][s][part]);
      split_pair(v[0].y, v[1].y, high[2 * c][s][part + 1], low[2 * c][s][part + 1]);
      split_pair(v[0].z, v[1].z, high[2 * c + 1][s][part], low[2 * c + 1][s][part]);
      split_pair(v[0].w, v[1].w, high[2 * c + 1][s][part + 1], low[2 * c + 1][s][part + 1]);
    }
  }
  uint16_t* hw = high_weights + warp * kGroup * kWeightRow;
  uint16_t* lw = low_weights + warp * kGroup * kWeightRow;
  auto take = [&](int head, int members) {
    for (int m = 0; m < kGroup; ++m) {
      if (m >= (members + 7) / 8 * 8) break;
      const float w = m < members ? weigh((head + m) % kRing) : 0.f;
      uint32_t h, l;
      split_pair(w, 0.f, h, l);
      hw[m * kWeightRow + lane] = static_cast<uint16_t>(h), lw[m * kWeightRow + lane] = static_cast<uint16_t>(l);
    }
    fs_syncwarp();
    for (int half = 0; 8 * half < members; ++half) {
      const int at = (8 * half + (lane & 7)) * kWeightRow + (lane >> 3) * 8;
      uint32_t h[4], l[4];
      ldmatrix_x4(h, hw + at), ldmatrix_x4(l, lw + at);
      const uint32_t bh[2][2] = {{h[0], h[1]}, {h[2], h[3]}}, bl[2][2] = {{l[0], l[1]}, {l[2], l[3]}};
      float sums[TILES][4];
#pragma unroll
      for (int i = 0; i < TILES; ++i) {
        for (int k = 0; k < 4; ++k) sums[i][k] = 0;
        for (int s = 0; s < 2; ++s) multiply_split(sums[i], high[i][s], low[i][s], bh[s], bl[s]);
      }
#pragma unroll
      for (int which = 0; which < 2; ++which) {
        const int member = 8 * half + 2 * t + which;
        if (member >= members) continue;
        const int64_t id = static_cast<int64_t>(rings[warp].slot[(head + member) % kRing]) - a.n * place.camera;
#pragma unroll
        for (int c = 0; c < TILES / 2; ++c) {
          add_channels(a, id, channel + kPerLane * g + 4 * c, sums[2 * c][which], sums[2 * c][2 + which],
                       sums[2 * c + 1][which], sums[2 * c + 1][2 + which]);
        }
      }
#if WEIGHTS
      if (blockIdx.y == 0) {
        const uint32_t ones[4] = {0x3f803f80u, 0x3f803f80u, 0x3f803f80u, 0x3f803f80u};
        float all[4] = {0, 0, 0, 0};
        for (int s = 0; s < 2; ++s) {
          mma_m16n8k16_bf16_f32(all, ones, bl[s], all);
          mma_m16n8k16_bf16_f32(all, ones, bh[s], all);
        }
        for (int which = 0; which < 2; ++which) {
          const int member = 8 * half + 2 * t + which;
          if (g != 0 || member >= members) continue;
          const int64_t id = static_cast<int64_t>(rings[warp].slot[(head + member) % kRing]) - a.n * place.camera;
          add_to(a, a.weights, id, all[which]);
        }
      }
#endif
    }
    fs_syncwarp();
  };
#else
  const int64_t pixel = corner + static_cast<int64_t>(lane >> 3) * a.width + (lane & 7);
  float maps[kChannels];
  for (int c = 0; c < kChannels; ++c) maps[c] = inside && channel + c < a.dim ? a.maps[pixel * a.dim + channel + c] : 0.f;
  auto take = [&](int head, int members) {
    for (int m = 0; m < members; ++m) {
      const float w = weigh((head + m) % kRing);
      const int64_t id = static_cast<int64_t>(rings[warp].slot[(head + m) % kRing]) - a.n * place.camera;
      for (int c = -WEIGHTS; c < kChannels; ++c) {
        if (c < 0 ? blockIdx.y != 0 : channel + c >= a.dim) continue;
        float sum = c < 0 ? w : w * maps[c < 0 ? 0 : c];
        for (int d = 16; d; d >>= 1) sum += fs_shfl_xor(sum, d);
        if (lane == 0) add_to(a, c < 0 ? a.weights : a.sums, c < 0 ? id : id * a.dim + channel + c, sum);
      }
    }
  };
#endif
  for_groups(a.entries + first, a.slots + first, count, warp, rings[warp], going, take);
}
