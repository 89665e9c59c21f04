// What the kernels of the transpose share; see lift.cu.
#pragma once
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

struct LiftArgs {
  Lists lists;
  Stored stored;        // for lift_rows.cu
  const float* maps;    // [C, H, W, dim]
  const int32_t* last;  // [C, H, W], with STOPS
  const double* scale;  // [2] with FIXED: units in one, of sums and of weights
  void* sums;           // [N, dim] float, or int64 with FIXED; added to
  void* weights;        // [N], likewise; or null
  int64_t dim, room;    // room: rows that `stored` has memory for
  int32_t width, height, tiles, tiles_x, all_patches;
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

