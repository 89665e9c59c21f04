// What a warp of the backward pass keeps, reads and leaves: its arguments, its shared memory, the gradients that come in, the
// products with the images' gradients and the records that go out. What one splat receives is told in backward.cu.
#pragma once
#include "matrix.cuh"
#include "walk.cuh"

#ifndef COLORS
#define COLORS 1  // gradients of colour, alpha and depth come in
#endif
#ifndef CHANNELS
#define CHANNELS 0  // feature channels handled pixel by pixel: all of them, or none
#endif
#ifndef WIDE
#define WIDE 0  // many feature channels add to c; their own gradients are lift.cu's
#endif
#ifndef GEOMETRY
#define GEOMETRY 1  // gradients to geometry go out
#endif
#ifndef FEATURES_MOVE
#define FEATURES_MOVE 1  // the CHANNELS add to c
#endif
#ifndef ABSOLUTE
#define ABSOLUTE 0  // sums of absolute gradients of the projected centre
#endif
#ifndef MATRIX
#define MATRIX 1  // 0: sums by shuffles, for devices without matrix units
#endif
#ifndef ORDERED
#define ORDERED 0  // every warp leaves its sums in a place of their own, to be added up in a fixed order
#endif
#ifndef GROUP
#define GROUP 8  // splats at a time: 8, or with WIDE 16, 32 or 64
#endif
#ifndef WARPS
#define WARPS 4  // of a block
#endif
#ifndef AHEAD
#define AHEAD 1  // with WIDE: channels are loaded one step ahead, for as many registers
#endif

#define WEIGHTS (COLORS || CHANNELS > 0)  // sums of weights times images' gradients go out

struct BackwardArgs {
  Lists lists;
  const float* rows;         // features [N, dim]
  const float* backgrounds;  // [C, 3] or null
  const float *v_rgb, *v_features, *v_alpha, *v_depth;  // incoming, each may be null
  const float* depth;  // as rendered
  const int32_t* last;
  const float* left;
  const uint32_t* written;   // with ORDERED: the pair of each place, and where the sums of each pair end
  const int64_t* hit_ends;
  float* sums;    // [splats, kRecord], added to, or null; with ORDERED [hits, kRecord]
  float* v_rows;  // [N, CHANNELS] gradients of features, added to, or null; with ORDERED they are part of the sums
  int64_t dim;
  int32_t width, height, tiles, tiles_x;
  float alpha_max;
};

// With vs the gradient of a pixel's exponent sigma, w the blending weight and d = centre - pixel, a record holds: sums of
// vs {1, dx, dy, dx^2, dx dy, dy^2}; of w {v_red, v_green, v_blue, v_depth}; of the absolute gradients of the centre; of
// w v_feature, with ORDERED.
constexpr int kAbsolute = 10, kFeatures = 12, kRecord = 12 + (ORDERED ? (CHANNELS + 3) / 4 * 4 : 0);
// Fields of a product, in matrices of 16: from 0 on 6 moments, from 8 on 4 image gradients, from 12 on features.
constexpr int kMatrices = (12 + CHANNELS + 15) / 16, kFields = 16 * kMatrices;
constexpr int kOut = kFields + 4;  // floats from a splat's sums to the next one's; then the absolute ones
constexpr int kRow = 36;           // floats from a splat's 32 pixels to the next one's
constexpr int kSlots = GROUP > 32 ? 128 : 64;      // of a ring

struct Warp {
  float4 shape[kSlots], more[kSlots];  // l11, l21, u0, l22; v0, log2_opacity, floor, bits of the place in the list
#if COLORS
  float4 color[kSlots];
#endif
  float2 center[kSlots];                              // relative to the tile's
  uint32_t id[kSlots], record[kSlots];  // of the Gaussian; where its sums go
  float4 coming[3][32];                 // of the splats on their way from memory, by lane: centre, factor, rest
#if CHANNELS > 0
  float features[8 * CHANNELS];
#endif
#if MATRIX
  float pairs[WEIGHTS ? 2 : 1][8 * kRow];  // gradients of exponents, weights
#if WEIGHTS
  uint4 images[4 + 8 * (kMatrices - 1)][32];  // the left factors that hold the images' gradients, by lane: see make_fields
#endif
#endif
  float out[8 * kOut];
#if WIDE && MATRIX
  float dots[GROUP * kRow];      // what features add to c
#endif
};

FS_DEVICE float warp_sum(float v) {
  for (int d = 16; d; d >>= 1) v += fs_shfl_xor(v, d);
  return v;
}

// The incoming gradients of a pixel: to colour, to sum(w z), to sum(w) (which the background sees too), to features.
struct Seen {
  float r, g, b, z, weight;
  float features[CHANNELS ? CHANNELS : 1];
};

FS_DEVICE void read_gradients(const BackwardArgs& a, int camera, int64_t pixel, bool inside, Seen& s) {
  s.r = s.g = s.b = s.z = s.weight = 0;
  for (int c = 0; c < CHANNELS; ++c) s.features[c] = 0;
  if (!inside) return;
#if COLORS
  if (a.v_rgb) {
    s.r = a.v_rgb[3 * pixel], s.g = a.v_rgb[3 * pixel + 1], s.b = a.v_rgb[3 * pixel + 2];
    if (a.backgrounds) {
      const float* b = a.backgrounds + 3 * camera;
      s.weight = -(s.r * b[0] + s.g * b[1] + s.b * b[2]);
    }
  }
  if (a.v_alpha) s.weight += a.v_alpha[pixel];
  const float alpha = a.v_depth ? alpha_of(a.left[pixel]) : 0;
  if (alpha > 0) {  // depth = sum(w z) / sum(w)
    const float v = a.v_depth[pixel] / alpha;
    s.z = v, s.weight -= v * a.depth[pixel];
  }
#endif
#if CHANNELS > 0
  for (int c = 0; c < CHANNELS; ++c) s.features[c] = a.v_features[pixel * CHANNELS + c];
#endif
}

#if WIDE && MATRIX
// What features add to c: for up to 16 kTiles splats and the warp's pixels, <features, gradient image>. Lane 4 g + t holds
// channels 4 t to 4 t + 3 of every 16: of splats g and g + 8, and of pixel column g.
template <int kTiles>
FS_DEVICE void dot_features(const BackwardArgs& a, const Place& place, int patch, Warp& s, int head, int count) {
  const int lane = fs_lane(), g = lane >> 2, t = lane & 3, dim = static_cast<int>(a.dim);
  const int x = place.x + patch_x(patch) + g, y0 = place.y + patch_y(patch);
  const float* pixels = a.v_features + ((static_cast<int64_t>(place.camera) * a.height + y0) * a.width + x) * dim;
  const int inside = x < a.width ? a.height - y0 : 0;  // rows of pixels
  uint32_t rows[kTiles][2];
  float c[kTiles][4][4];
#pragma unroll
  for (int m = 0; m < kTiles; ++m) {
    for (int r = 0; r < 2; ++r) {
      const int row = 16 * m + g + 8 * r;
      rows[m][r] = s.id[(head + (row < count ? row : 0)) % kSlots];
    }
    for (int j = 0; j < 4; ++j) {
      for (int i = 0; i < 4; ++i) c[m][j][i] = 0;
    }
  }
  float4 v[4], f[kTiles][2];
  auto load = [&](int at, float4 (&image)[4], float4 (&feature)[kTiles][2]) {
    const int channel = at + 4 * t;
    for (int j = 0; j < 4; ++j) {
      image[j] = load_channels(pixels + static_cast<int64_t>(j) * a.width * dim, channel, dim, j < inside);
    }
#pragma unroll
    for (int m = 0; m < kTiles; ++m) {
      for (int r = 0; r < 2; ++r) feature[m][r] = load_channels(a.rows + static_cast<int64_t>(rows[m][r]) * dim, channel, dim, true);
    }
  };
  load(0, v, f);
#pragma unroll 1
  for (int at = 0; at < dim; at += 16) {
#if AHEAD
    float4 next_v[4], next_f[kTiles][2];  // under way while this step is multiplied
    load(at + 16, next_v, next_f);
#else
    if (at) load(at, v, f);
#endif
    uint32_t high[4][2], low[4][2];
    for (int j = 0; j < 4; ++j) {
      split_pair(v[j].x, v[j].y, high[j][0], low[j][0]), split_pair(v[j].z, v[j].w, high[j][1], low[j][1]);
#if AHEAD
      v[j] = next_v[j];
#endif
    }
#pragma unroll
    for (int m = 0; m < kTiles; ++m) {
      uint32_t h[4], l[4];
      for (int r = 0; r < 2; ++r) {
        split_pair(f[m][r].x, f[m][r].y, h[r], l[r]), split_pair(f[m][r].z, f[m][r].w, h[2 + r], l[2 + r]);
#if AHEAD
        f[m][r] = next_f[m][r];
#endif
      }
      for (int j = 0; j < 4; ++j) multiply_split(c[m][j], h, l, high[j], low[j]);
    }
  }
#pragma unroll
  for (int m = 0; m < kTiles; ++m) {
    for (int j = 0; j < 4; ++j) {
      float* to = s.dots + (16 * m + g) * kRow + 8 * j + 2 * t;
      to[0] = c[m][j][0], to[1] = c[m][j][1];
      to[8 * kRow] = c[m][j][2], to[8 * kRow + 1] = c[m][j][3];
    }
  }
}
#endif

#if MATRIX
FS_DEVICE float moment(int field, float x, float y) {
  return field == 0 ? 1.f : field == 1 ? x : field == 2 ? y : field == 3 ? x * x : field == 4 ? x * y : field == 5 ? y * y : 0.f;
}

// The left factors: rows are fields, columns the 8 pixels of row j of the patch. Of the first matrix, rows 0 to 7 meet the
// gradients of exponents and stay in registers (exact in tf32), the others meet the weights.
FS_DEVICE void make_fields(Warp& s, int patch, const Seen& seen, uint32_t (&moments)[4][2]) {
  const int lane = fs_lane(), g = lane >> 2, t = lane & 3;
  for (int j = 0; j < 4; ++j) {
    const float x = patch_x(patch) + t - 7.5f, y = patch_y(patch) + j - 7.5f;
    for (int half = 0; half < 2; ++half) moments[j][half] = fs_float_as_uint(moment(g, x + 4 * half, y));
  }
#if WEIGHTS
  float* scratch = reinterpret_cast<float*>(s.shape);  // [kFields - 8][32], before the ring is used
  const float own[4] = {seen.r, seen.g, seen.b, seen.z};
  for (int i = 0; i < 4; ++i) scratch[32 * i + lane] = own[i];
#pragma unroll
  for (int i = 0; i < kFields - 12; ++i) scratch[32 * (4 + i) + lane] = i < CHANNELS ? seen.features[i < CHANNELS ? i : 0] : 0.f;
  fs_syncwarp();
  auto split = [&](int field, int j) {  // high parts of the columns t and t + 4, then the low ones
    uint4 v;
    split_tf32(scratch[32 * field + 8 * j + t], v.x, v.z), split_tf32(scratch[32 * field + 8 * j + t + 4], v.y, v.w);
    return v;
  };
  for (int j = 0; j < 4; ++j) {
    s.images[j][lane] = split(g, j);
#pragma unroll
    for (int m = 0; m < kMatrices - 1; ++m) {
      for (int r = 0; r < 2; ++r) s.images[4 + 8 * m + 2 * j + r][lane] = split(8 + 16 * m + g + 8 * r, j);
    }
  }
  fs_syncwarp();
#endif
}

// The products of 8 splats, laid out splat by splat in s.out.
FS_DEVICE void multiply_fields(Warp& s, const uint32_t (&moments)[4][2]) {
  const int lane = fs_lane(), g = lane >> 2, t = lane & 3;
  float d[kMatrices][4];
#pragma unroll
  for (int m = 0; m < kMatrices; ++m) d[m][0] = d[m][1] = d[m][2] = d[m][3] = 0;
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    const int at = g * kRow + 8 * j + t;
    uint32_t h[2], l[2];
#if GEOMETRY
    split_tf32(s.pairs[0][at], h[0], l[0]), split_tf32(s.pairs[0][at + 4], h[1], l[1]);
    const uint32_t a[4] = {moments[j][0], 0, moments[j][1], 0};
    mma_m16n8k8_tf32(d[0], a, l, d[0]);
    mma_m16n8k8_tf32(d[0], a, h, d[0]);
#endif
#if WEIGHTS
    split_tf32(s.pairs[1][at], h[0], l[0]), split_tf32(s.pairs[1][at + 4], h[1], l[1]);
    const uint4 image = s.images[j][lane];
    const uint32_t high[4] = {0, image.x, 0, image.y}, low[4] = {0, image.z, 0, image.w};
    mma_m16n8k8_tf32(d[0], low, h, d[0]);
    mma_m16n8k8_tf32(d[0], high, l, d[0]);
    mma_m16n8k8_tf32(d[0], high, h, d[0]);
#pragma unroll
    for (int m = 0; m < kMatrices - 1; ++m) {
      const uint4 upper = s.images[4 + 8 * m + 2 * j][lane], lower = s.images[4 + 8 * m + 2 * j + 1][lane];
      const uint32_t more_high[4] = {upper.x, lower.x, upper.y, lower.y};
      const uint32_t more_low[4] = {upper.z, lower.z, upper.w, lower.w};
      mma_m16n8k8_tf32(d[m + 1], more_low, h, d[m + 1]);
      mma_m16n8k8_tf32(d[m + 1], more_high, l, d[m + 1]);
      mma_m16n8k8_tf32(d[m + 1], more_high, h, d[m + 1]);
    }
#endif
  }
#pragma unroll
  for (int m = 0; m < kMatrices; ++m) {
    for (int i = 0; i < 4; ++i) s.out[(2 * t + (i & 1)) * kOut + 16 * m + g + 8 * (i >> 1)] = d[m][i];
  }
}
#endif

// From s.out to memory: four lanes a splat, moments moved from the tile's centre to the splat's.
FS_DEVICE void add_records(const BackwardArgs& a, Warp& s, int head, int members) {
  const int member = fs_lane() >> 2, q = fs_lane() & 3;
  if (member >= members) return;
  const int at = (head + member) % kSlots;
  const float* o = s.out + member * kOut;
  const float2 e = s.center[at];
  float v0, v1, v2, v3;
  if (q == 0) {
    v0 = o[0], v1 = e.x * o[0] - o[1], v2 = e.y * o[0] - o[2], v3 = e.x * (e.x * o[0] - 2 * o[1]) + o[3];
  } else if (q == 1) {
    v0 = e.y * (e.x * o[0] - o[1]) - e.x * o[2] + o[4], v1 = e.y * (e.y * o[0] - 2 * o[2]) + o[5], v2 = o[8], v3 = o[9];
  } else if (q == 2) {
    v0 = o[10], v1 = o[11], v2 = ABSOLUTE ? o[kFields] : 0, v3 = ABSOLUTE ? o[kFields + 1] : 0;
  } else {
    v0 = v1 = v2 = v3 = 0;
  }
#if ORDERED
  float* record = a.sums + static_cast<int64_t>(s.record[at]) * kRecord;
  if (q < 3) *reinterpret_cast<float4*>(record + 4 * q) = make_float4(v0, v1, v2, v3);
#else
  float* record = a.sums + static_cast<int64_t>(s.record[at]) * kRecord;
  if (a.sums && (v0 != 0 || v1 != 0 || v2 != 0 || v3 != 0)) fs_red_add4(record + 4 * q, v0, v1, v2, v3);
  if (!a.v_rows) return;
  float* row = a.v_rows + static_cast<int64_t>(s.id[at]) * CHANNELS;
#endif
#pragma unroll
  for (int k = 0; k < (CHANNELS + 3) / 4; ++k) {
    if ((k & 3) != 3 - q) continue;
    float v[4];
    for (int i = 0; i < 4; ++i) v[i] = 4 * k + i < CHANNELS ? o[12 + 4 * k + i] : 0.f;
#if ORDERED
    *reinterpret_cast<float4*>(record + kFeatures + 4 * k) = make_float4(v[0], v[1], v[2], v[3]);
#else
    if (CHANNELS % 4 == 0) fs_red_add4(row + 4 * k, v[0], v[1], v[2], v[3]);
    else {
      for (int i = 0; i < 4; ++i) {
        if (4 * k + i < CHANNELS) fs_atomic_add(row + 4 * k + i, v[i]);
      }
    }
#endif
  }
}
