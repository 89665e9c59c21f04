// Features forward on matrix units: per warp, W [32 pixels x 16 splats] times F [16 splats x channels]. The weights are
// computed where the matrix unit wants them: lane 4 g + t holds pixel column g of the patch, all 4 rows, and splats 4 t to
// 4 t + 3; transmittance is scanned along t with shuffles. Each pixel's stop comes from blend.cu.
#include "matrix.cuh"
#include "walk.cuh"

#ifndef QUADS
#define QUADS 4  // channels of a block in units of 32; blockIdx.y chooses which
#endif
#ifndef WARPS
#define WARPS 8  // of a block
#endif
#ifndef HALF
#define HALF 0  // 1: operands are rounded to float16, features scaled by a power of two
#endif

struct FeaturesArgs {
  Lists lists;
  const float* rows;    // [N, dim]
  const int32_t* last;  // [C, H, W]
  const int32_t* most;  // [1] with HALF: bits of the greatest feature's magnitude
  float* out;           // [C, H, W, dim]
  int32_t* sick;        // set when a sum is not finite; or null
  const int32_t* only_if;  // nothing to do while this is 0; or null
  int64_t dim;
  int32_t width, height, tiles, tiles_x;
  float alpha_max;
};

FS_DEVICE void store_channels(float* row, int64_t channel, int64_t dim, float4 v) {
  if (channel >= dim) return;
#if ALIGNED
  *reinterpret_cast<float4*>(row + channel) = v;
#else
  row[channel] = v.x;
  if (channel + 1 < dim) row[channel + 1] = v.y;
  if (channel + 2 < dim) row[channel + 2] = v.z;
  if (channel + 3 < dim) row[channel + 3] = v.w;
#endif
}

FS_DEVICE float component(const float4& v, int k) { return k == 0 ? v.x : k == 1 ? v.y : k == 2 ? v.z : v.w; }

// The warps of a tile may be spread over several blocks.
FS_DEVICE int tile_of_warp() { return static_cast<int>((blockIdx.x * WARPS + fs_warp()) / kPatches); }
FS_DEVICE int patch_of_warp() { return static_cast<int>((blockIdx.x * WARPS + fs_warp()) % kPatches); }

// Of the greatest feature, biased as in its bits, and so that its inverse is a number too.
FS_DEVICE int exponent_of(const FeaturesArgs& a) { return min(max(*a.most >> 23, 1), 253); }

// Sums of the warp's pixels into the image.
FS_DEVICE void write_sums(const FeaturesArgs& a, const float (&sums)[2][4 * QUADS][4]) {
  const int warp = again(patch_of_warp()), lane = again(fs_lane()), g = lane >> 2, t = lane & 3;
  const Place place = place_of(again(tile_of_warp()), a.tiles, a.tiles_x);
  const int x = place.x + patch_x(warp) + g, y0 = place.y + patch_y(warp);
  const int64_t channel = static_cast<int64_t>(blockIdx.y) * (32 * QUADS) + 8 * t;
#if HALF
  const float unscale = fs_uint_as_float(static_cast<uint32_t>(exponent_of(a)) << 23);
#endif
#pragma unroll
  for (int y = 0; y < 4; ++y) {
    if (x >= a.width || y0 + y >= a.height) continue;
    float* row = a.out + ((static_cast<int64_t>(place.camera) * a.height + y0 + y) * a.width + x) * a.dim;
#pragma unroll
    for (int quad = 0; quad < QUADS; ++quad) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int m = y >> 1, at = 2 * (y & 1) + i;
        float4 v = make_float4(sums[m][4 * quad][at], sums[m][4 * quad + 1][at], sums[m][4 * quad + 2][at],
                               sums[m][4 * quad + 3][at]);
#if HALF
        v.x *= unscale, v.y *= unscale, v.z *= unscale, v.w *= unscale;
#endif
        store_channels(row, channel + 32 * quad + 4 * i, a.dim, v);
      }
    }
  }
}

FS_KERNEL_OCCUPANCY(32 * WARPS, 1, blend_features, const FeaturesArgs a) {
  FS_SHARED(Ring, rings, WARPS);
  FS_SHARED(int32_t, lasts, 32 * WARPS);  // of each pixel; not in registers, of which there are too few
  if (a.only_if && !*a.only_if) return;
  const int lane = fs_lane(), g = lane >> 2, t = lane & 3;
  const int tile = tile_of_warp(), warp = patch_of_warp();
  const Place place = place_of(tile, a.tiles, a.tiles_x);
  const uint32_t first = a.lists.offsets[tile];
  int channel = static_cast<int>(blockIdx.y) * (32 * QUADS);
  const int x = place.x + patch_x(warp) + g, y0 = place.y + patch_y(warp);
  const int32_t* last_row = a.last + (static_cast<int64_t>(place.camera) * a.height + y0) * a.width + x;
  int32_t* last = lasts + 32 * fs_warp();
  int farthest = 0;
  float T[4];
  for (int y = 0; y < 4; ++y) {
    const int stop = x < a.width && y0 + y < a.height ? last_row[static_cast<int64_t>(y) * a.width] : 0;
    if (t == 0) last[8 * y + g] = stop;
    farthest = max(farthest, stop), T[y] = 1;
  }
  farthest = warp_max(farthest);
  fs_syncwarp();
#if HALF
  const float scale = fs_uint_as_float(static_cast<uint32_t>(254 - exponent_of(a)) << 23);  // brings features near 1
#endif
  float sums[2][4 * QUADS][4];
#pragma unroll
  for (int m = 0; m < 2; ++m) {
#pragma unroll
    for (int k = 0; k < 4 * QUADS; ++k) {
      for (int i = 0; i < 4; ++i) sums[m][k][i] = 0;
    }
  }
  Ring& ring = rings[fs_warp()];
  auto take = [&](int head, int members) {
    float w[4][4];  // rows of the patch, splats
    const int patch = again(patch_of_warp());
    const float px = patch_x(patch) + g - 7.5f, py0 = patch_y(patch) - 7.5f;
    uint32_t rows[4];
    for (int j = 0; j < 4; ++j) {
      const bool there = 4 * t + j < members;
      const int at = (head + (there ? 4 * t + j : 0)) % kRing;
      const float4 shape = ring.shape[at], more = ring.more[at];
      rows[j] = ring.id[at];
      const int index = there ? place_in_list(more) : kNever;
      for (int y = 0; y < 4; ++y) {
        const float al = fminf(alpha_at(shape, more.x, more.y, more.z, px, py0 + y), a.alpha_max);
        w[y][j] = index < last[8 * y + g] ? al : 0.f;
      }
    }
    for (int y = 0; y < 4; ++y) {
      // The transmittance before this lane's splats: the product over the lanes before it.
      float after = (1 - w[y][0]) * (1 - w[y][1]) * ((1 - w[y][2]) * (1 - w[y][3]));
      const float one = fs_shfl_up(after, 1);
      if (t >= 1) after *= one;
      const float two = fs_shfl_up(after, 2);
      if (t >= 2) after *= two;
      const float before = fs_shfl_up(after, 1), all = fs_shfl(after, lane | 3);
      float left = t ? T[y] * before : T[y];
      for (int j = 0; j < 4; ++j) {
        const float al = w[y][j];
        w[y][j] = al * left;
        left = fmaf(-al, left, left);
      }
      T[y] *= all;
    }
    uint32_t high[2][4];
#if !HALF
    uint32_t low[2][4];
#endif
    for (int m = 0; m < 2; ++m) {
      for (int r = 0; r < 2; ++r) {
        for (int pair = 0; pair < 2; ++pair) {
          const float p = w[2 * m + r][2 * pair], q = w[2 * m + r][2 * pair + 1];
#if HALF
          high[m][2 * pair + r] = fs_pack_f16(p, q);
#else
          split_pair(p, q, high[m][2 * pair + r], low[m][2 * pair + r]);
#endif
        }
      }
    }
#pragma unroll
    for (int quad = 0; quad < QUADS; ++quad) {
      float4 f[4];
      if (quad >= 2) channel = again(channel);  // not all of them at once: registers
      for (int j = 0; j < 4; ++j) f[j] = load_channels(a.rows + rows[j] * a.dim, channel + 32 * quad + 4 * g, a.dim, true);
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const float f0 = component(f[0], k), f1 = component(f[1], k), f2 = component(f[2], k), f3 = component(f[3], k);
        uint32_t bh[2];
#if HALF
        bh[0] = fs_pack_f16(scale * f0, scale * f1), bh[1] = fs_pack_f16(scale * f2, scale * f3);
        for (int m = 0; m < 2; ++m) mma_m16n8k16_f16_f32(sums[m][4 * quad + k], high[m], bh, sums[m][4 * quad + k]);
#else
        uint32_t bl[2];
        split_pair(f0, f1, bh[0], bl[0]), split_pair(f2, f3, bh[1], bl[1]);
        for (int m = 0; m < 2; ++m) multiply_split(sums[m][4 * quad + k], high[m], low[m], bh, bl);
#endif
      }
    }
  };
  for_groups(a.lists, first, farthest, warp, place.x + kTile / 2, place.y + kTile / 2, ring, [](int) { return true; }, take);
  if (a.sick) {
    float zero = 0;
#pragma unroll
    for (int k = 0; k < 4 * QUADS; ++k) {
      for (int i = 0; i < 4; ++i) zero = fmaf(sums[0][k][i], 0.f, fmaf(sums[1][k][i], 0.f, zero));
    }
    if (!(zero == 0)) *a.sick = 1;
  }
  write_sums(a, sums);
}
