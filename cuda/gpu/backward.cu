// The transpose of blending. Per tile, back to front, with c the gradient of a pixel's loss to a weight and R the c blended
// behind: v_alpha = T (c - R), R <- R + alpha (c - R). One pixel a thread; what a splat receives from its 32 pixels is a
// product of small matrices, [splats x pixels] times [pixels x {1, x, y, x^2, xy, y^2}] and times the images' gradients.
// Warps leave their sums side by side, so a tile writes each splat's record once and no sum depends on timing.
#include "matrix.cuh"
#include "splat.cuh"

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
#ifndef BATCH
#define BATCH 64  // entries of a tile at once: 32, 64 or 128
#endif

struct BackwardArgs {
  const uint32_t* offsets;
  const Entry* entries;
  const uint32_t *slots, *written;
  const float* rows;         // features [N, dim]
  const float* backgrounds;  // [C, 3] or null
  const float *v_rgb, *v_features, *v_alpha, *v_depth;  // incoming, each may be null
  const float *alpha, *depth;  // as rendered
  const int32_t* last;
  const float* left;
  float* records;  // [pairs, kRecord]; see kMoments
  int64_t n, dim;
  int32_t width, height, tiles, tiles_x;
  float alpha_max;
};

// With vs the gradient of a pixel's exponent sigma, w the blending weight, x and y pixel centres relative to the tile's
// centre, a record holds: sums of vs {1, x, y, x^2, xy, y^2}; of w {v_red, v_green, v_blue, v_depth}; of the absolute
// gradients of the centre; of w v_feature.
constexpr int kMoments = 0, kColors = 6, kAbsolute = 10, kFeatures = 12;
constexpr int kRecord = 12 + (CHANNELS + 3) / 4 * 4;
constexpr int kColumns = (4 + CHANNELS + 7) / 8 * 8, kColumnStride = kColumns + 4;  // of the images' gradients
constexpr int kRow = 40, kGroup = 16;  // floats from one splat's 32 pixels to the next; splats in a matrix product
constexpr int kRows = WIDE ? (BATCH < 64 ? BATCH : 64) : kGroup;

struct Shared {
  float4 entries[BATCH * 3];
  float features[BATCH * (CHANNELS ? CHANNELS : 1)];
  float sums[kPatches][BATCH * kRecord];
  uint32_t used[kPatches][BATCH / 32];
  int32_t list[kPatches][BATCH];
#if MATRIX
  float vs[kPatches][kRows * kRow];  // WIDE: first what features add to c
  float w[kPatches][kGroup * kRow];
  float images[kPatches][32 * kColumnStride];
#endif
  int32_t last;
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
  const float alpha = a.v_depth ? a.alpha[pixel] : 0;
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
// What features add to c: for 16 kTiles listed splats and the warp's pixels, <features, gradient image>. Lane 4 g + t holds
// channels 4 t to 4 t + 3 of every 16: of splats g and g + 8, and of pixel column g.
template <int kTiles>
FS_DEVICE void dot_features(const BackwardArgs& a, const Place& place, int warp, const int32_t* list, int count,
                            uint32_t first, float* out) {
  const int lane = fs_lane(), g = lane >> 2, t = lane & 3, dim = static_cast<int>(a.dim);
  const int x = place.x + patch_x(warp) + g, y0 = place.y + patch_y(warp);
  const float* pixels = a.v_features + ((static_cast<int64_t>(place.camera) * a.height + y0) * a.width + x) * dim;
  const int inside = x < a.width ? a.height - y0 : 0;  // rows of pixels
  uint32_t rows[kTiles][2];
  float c[kTiles][4][4];
#pragma unroll
  for (int m = 0; m < kTiles; ++m) {
    for (int r = 0; r < 2; ++r) {
      const int row = 16 * m + g + 8 * r;
      rows[m][r] = a.slots[first + list[row < count ? row : 0]] - static_cast<uint32_t>(a.n * place.camera);
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
    float4 next_v[4], next_f[kTiles][2];  // under way while this step is multiplied
    load(at + 16, next_v, next_f);
    uint32_t high[4][2], low[4][2];
    for (int j = 0; j < 4; ++j) {
      split_pair(v[j].x, v[j].y, high[j][0], low[j][0]), split_pair(v[j].z, v[j].w, high[j][1], low[j][1]);
      v[j] = next_v[j];
    }
#pragma unroll
    for (int m = 0; m < kTiles; ++m) {
      uint32_t h[4], l[4];
      for (int r = 0; r < 2; ++r) {
        split_pair(f[m][r].x, f[m][r].y, h[r], l[r]), split_pair(f[m][r].z, f[m][r].w, h[2 + r], l[2 + r]);
        f[m][r] = next_f[m][r];
      }
      for (int j = 0; j < 4; ++j) multiply_split(c[m][j], h, l, high[j], low[j]);
    }
  }
#pragma unroll
  for (int m = 0; m < kTiles; ++m) {
    for (int j = 0; j < 4; ++j) {
      float* to = out + (16 * m + g) * kRow + 8 * j + 2 * t;
      to[0] = c[m][j][0], to[1] = c[m][j][1];
      to[8 * kRow] = c[m][j][2], to[8 * kRow + 1] = c[m][j][3];
    }
  }
}
#endif

#if MATRIX
// sums of a group's splats over the warp's pixels, into their records of this warp.
FS_DEVICE void sum_group(Shared& s, int warp, const float* vs, const int32_t* list, int count) {
  const int lane = fs_lane(), g = lane >> 2, t = lane & 3;
  float moments[4] = {0, 0, 0, 0};
  float images[kColumns / 8][4];
  for (int k = 0; k < kColumns / 8; ++k) {
    for (int i = 0; i < 4; ++i) images[k][i] = 0;
  }
  const float* w = s.w[warp];
  const float* image = s.images[warp];
  const float x0 = patch_x(warp) + 2 * t - 7.5f;
  for (int j = 0; j < 4; ++j) {  // a row of 8 pixels; element k of a product is pixel 2k, or 2k - 7 from k = 4 on
    const int at = g * kRow + 8 * j + 2 * t;
    uint32_t h[4], l[4];
#if GEOMETRY
    const float y = patch_y(warp) + j - 7.5f;
    uint32_t b[2];
    for (int i = 0; i < 2; ++i) {  // exact in tf32
      const float x = x0 + i;
      const float column = g == 0 ? 1.f : g == 1 ? x : g == 2 ? y : g == 3 ? x * x : g == 4 ? x * y : g == 5 ? y * y : 0.f;
      b[i] = fs_float_as_uint(column);
    }
    split_tf32(vs[at], h[0], l[0]), split_tf32(vs[at + 8 * kRow], h[1], l[1]);
    split_tf32(vs[at + 1], h[2], l[2]), split_tf32(vs[at + 8 * kRow + 1], h[3], l[3]);
    mma_m16n8k8_tf32(moments, h, b, moments);
    mma_m16n8k8_tf32(moments, l, b, moments);
#endif
    split_tf32(w[at], h[0], l[0]), split_tf32(w[at + 8 * kRow], h[1], l[1]);
    split_tf32(w[at + 1], h[2], l[2]), split_tf32(w[at + 8 * kRow + 1], h[3], l[3]);
    for (int k = 0; k < kColumns / 8; ++k) {
      uint32_t bh[2], bl[2];
      for (int i = 0; i < 2; ++i) split_tf32(image[(8 * j + 2 * t + i) * kColumnStride + 8 * k + g], bh[i], bl[i]);
      mma_m16n8k8_tf32(images[k], h, bh, images[k]);
      mma_m16n8k8_tf32(images[k], l, bh, images[k]);
      mma_m16n8k8_tf32(images[k], h, bl, images[k]);
    }
  }
  for (int i = 0; i < 4; ++i) {
    const int row = g + 8 * (i >> 1), column = 2 * t + (i & 1);
    if (row >= count) continue;
    float* record = s.sums[warp] + list[row] * kRecord;
    if (column < 6) record[kMoments + column] = moments[i];
    if (column < 4) record[kColors + column] = images[0][i];
    for (int k = 0; k < kColumns / 8; ++k) {
      const int c = 8 * k + column - 4;
      if (c >= 0 && c < CHANNELS) record[kFeatures + c] = images[k][i];
    }
  }
}
#endif

FS_KERNEL_OCCUPANCY(256, 1, blend_backward, const BackwardArgs a) {
  FS_DYNAMIC_SHARED(Shared, shared);
  Shared& s = *shared;
  const int tile = blockIdx.x, warp = fs_warp(), lane = fs_lane();
  const Place place = place_of(tile, a.tiles, a.tiles_x);
  const int lx = patch_x(warp) + (lane & 7), ly = patch_y(warp) + (lane >> 3);
  const bool inside = place.x + lx < a.width && place.y + ly < a.height;
  const int64_t pixel = (static_cast<int64_t>(place.camera) * a.height + place.y + ly) * a.width + place.x + lx;
  const float px = lx - 7.5f, py = ly - 7.5f;
  const uint32_t first = a.offsets[tile];
  const int count = static_cast<int>(a.offsets[tile + 1] - first);
  if (count == 0) return;

  const int last = inside ? a.last[pixel] : 0;
  int warp_last = last;
  for (int d = 16; d; d >>= 1) warp_last = max(warp_last, fs_shfl_xor(warp_last, d));
  if (threadIdx.x == 0) s.last = 0;
  fs_sync();
  if (lane == 0) fs_atomic_max(&s.last, warp_last);
  fs_sync();
  const int tile_last = s.last;
  for (int i = threadIdx.x; i < (count - tile_last) * kRecord; i += 256) {  // nobody used these
    const int k = i / kRecord;
    a.records[static_cast<int64_t>(a.written[first + tile_last + k]) * kRecord + i - k * kRecord] = 0;
  }
  Seen seen;
  read_gradients(a, place.camera, pixel, inside, seen);
#if MATRIX
  {
    float* row = s.images[warp] + lane * kColumnStride;
    row[0] = seen.r, row[1] = seen.g, row[2] = seen.b, row[3] = seen.z;
    for (int c = 4; c < kColumns; ++c) row[c] = 0;
    for (int c = 0; c < CHANNELS; ++c) row[4 + c] = seen.features[c];
  }
#endif
  float T = inside ? a.left[pixel] : 1.f, behind = 0;

  for (int base = (tile_last - 1) / BATCH * BATCH; base >= 0 && tile_last; base -= BATCH) {
    const int n = min(BATCH, tile_last - base);
    const float4* from = reinterpret_cast<const float4*>(a.entries + first + base);
    for (int i = threadIdx.x; i < n * 3; i += 256) s.entries[i] = fs_ldg(from + i);
#if CHANNELS > 0
    for (int i = threadIdx.x; i < n * CHANNELS; i += 256) {
      const int k = i / CHANNELS, c = i - k * CHANNELS;
      const int64_t id = a.slots[first + base + k] - a.n * place.camera;
      s.features[i] = fs_ldg(a.rows + id * CHANNELS + c);
    }
#endif
    fs_sync();
    // This warp's splats, far to near.
    int32_t* list = s.list[warp];
    int hits = 0;
    for (int half = BATCH / 32 - 1; half >= 0; --half) {
      const int mine = 32 * half + lane;
      const bool hit = mine < n && base + mine < warp_last && (fs_float_as_uint(s.entries[3 * mine + 1].w) >> warp & 1);
      const uint32_t bits = fs_ballot(hit);
      if (hit) list[hits + fs_popc(bits >> lane >> 1)] = mine;
      if (lane == 0) s.used[warp][half] = bits;
      hits += fs_popc(bits);
    }
    fs_syncwarp();
    for (int start = 0; start < hits; start += kGroup) {
#if WIDE && MATRIX
      if (start % kRows == 0) {
        const int some = min(kRows, hits - start);
        const int32_t* from = list + start;
        if (some <= 16) dot_features<1>(a, place, warp, from, some, first + base, s.vs[warp]);
        else if (some <= 32) dot_features<2>(a, place, warp, from, some, first + base, s.vs[warp]);
#if BATCH > 32
        else if (some <= 48) dot_features<3>(a, place, warp, from, some, first + base, s.vs[warp]);
        else dot_features<4>(a, place, warp, from, some, first + base, s.vs[warp]);
#endif
        fs_syncwarp();
      }
#endif
      const int members = min(kGroup, hits - start);
#if MATRIX
      float* vs_rows = s.vs[warp] + (WIDE ? start % kRows * kRow : 0);
      for (int m = members; m < kGroup; ++m) vs_rows[m * kRow + lane] = s.w[warp][m * kRow + lane] = 0;
#endif
      for (int m = 0; m < members; ++m) {
        const int k = list[start + m];
        const float4 shape = s.entries[3 * k], more = s.entries[3 * k + 1];
        const float raw = alpha_at(shape, more.x, more.y, more.z, px, py);
        const float al = base + k < last ? fminf(raw, a.alpha_max) : 0.f;
        T *= fs_rcp(1 - al);
        const float w = al * T;
        float vs = 0;
#if GEOMETRY
        float c = seen.weight;
#if COLORS
        const float4 color = s.entries[3 * k + 2];
        c = fmaf(color.x, seen.r, fmaf(color.y, seen.g, fmaf(color.z, seen.b, fmaf(color.w, seen.z, c))));
#endif
#if CHANNELS > 0 && FEATURES_MOVE
        for (int i = 0; i < CHANNELS; ++i) c = fmaf(s.features[k * CHANNELS + i], seen.features[i], c);
#endif
#if WIDE && MATRIX
        c += vs_rows[m * kRow + lane];
#elif WIDE
        if (al > 0) {
          const float *row = a.rows + (a.slots[first + base + k] - a.n * place.camera) * a.dim;
          const float* image = a.v_features + pixel * a.dim;
          for (int64_t i = 0; i < a.dim; ++i) c = fmaf(fs_ldg(row + i), fs_ldg(image + i), c);
        }
#endif
        const float d = c - behind;
        behind = fmaf(al, d, behind);
        vs = raw < a.alpha_max ? -w * d : 0.f;
#endif
#if ABSOLUTE
        {  // d sigma / d centre = -2 ln 2 (l11 u, l21 u + l22 v)
          const float u = fmaf(shape.y, py, fmaf(shape.x, px, shape.z)), v = fmaf(shape.w, py, more.x);
          const float gx = warp_sum(fabsf(vs * u)), gy = warp_sum(fabsf(vs * fmaf(shape.w, v, shape.y * u)));
          if (lane == 0) {
            float* record = s.sums[warp] + k * kRecord + kAbsolute;
            record[0] = 1.3862944f * shape.x * gx, record[1] = 1.3862944f * gy;
          }
        }
#else
        if (lane < 2) s.sums[warp][k * kRecord + kAbsolute + lane] = 0;
#endif
#if MATRIX
        vs_rows[m * kRow + lane] = vs, s.w[warp][m * kRow + lane] = w;
#else
        const float values[10] = {vs, vs * px, vs * py, vs * px * px, vs * px * py, vs * py * py,
                                  w * seen.r, w * seen.g, w * seen.b, w * seen.z};
        float* record = s.sums[warp] + k * kRecord;
        for (int i = 0; i < 10; ++i) {
          const float sum = warp_sum(values[i]);
          if (lane == 0) record[i] = sum;
        }
        for (int i = 0; i < CHANNELS; ++i) {
          const float sum = warp_sum(w * seen.features[i]);
          if (lane == 0) record[kFeatures + i] = sum;
        }
#endif
      }
#if MATRIX
      fs_syncwarp();
      sum_group(s, warp, vs_rows, list + start, members);
      fs_syncwarp();
#endif
    }
    fs_sync();
    for (int i = threadIdx.x; i < n * kRecord; i += 256) {
      const int k = i / kRecord, field = i - k * kRecord;
      float sum = 0;
      if (field < kFeatures + CHANNELS) {
        for (int w = 0; w < kPatches; ++w) {
          if (s.used[w][k >> 5] >> (k & 31) & 1) sum += s.sums[w][k * kRecord + field];
        }
      }
      a.records[static_cast<int64_t>(a.written[first + base + k]) * kRecord + field] = sum;
    }
  }
}
