// The transpose of blending. Per pixel, back to front, with c the gradient of the loss to a weight and R the c blended
// behind: v_alpha = T (c - R), R <- R + alpha (c - R). One pixel a lane, every warp by itself. What a splat receives from a
// warp's 32 pixels is one matrix product, 8 splats at a time: [fields x pixels] times [pixels x splats], where the fields are
// {1, x, y, x^2, xy, y^2} for the gradients of exponents, and the images' gradients for the weights.
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
  const uint32_t* offsets;
  const Entry* entries;
  const uint32_t* slots;
  const Splat* splats;
  const float* rows;         // features [N, dim]
  const float* backgrounds;  // [C, 3] or null
  const float *v_rgb, *v_features, *v_alpha, *v_depth;  // incoming, each may be null
  const float *alpha, *depth;  // as rendered
  const int32_t* last;
  const float* left;
  const uint32_t* written;   // with ORDERED: the pair of each place, and where the sums of each pair begin
  const int64_t* hit_ends;
  float* sums;  // [C, N, kRecord], added to; with ORDERED [hits, kRecord]
  int64_t n, dim;
  int32_t width, height, tiles, tiles_x;
  float alpha_max;
};

// With vs the gradient of a pixel's exponent sigma, w the blending weight and d = centre - pixel, a record holds: sums of
// vs {1, dx, dy, dx^2, dx dy, dy^2}; of w {v_red, v_green, v_blue, v_depth}; of the absolute gradients of the centre; of
// w v_feature.
constexpr int kAbsolute = 10, kFeatures = 12, kRecord = 12 + (CHANNELS + 3) / 4 * 4;
// Fields of a product: 6 moments, 4 image gradients, features, in matrices of 16.
constexpr int kMatrices = (10 + CHANNELS + 15) / 16, kFields = 16 * kMatrices;
constexpr int kOut = kFields + 4;                  // floats from a splat's sums to the next one's; then the absolute ones
constexpr int kPairRow = 40, kDotRow = 36;         // from a splat's 32 pixels to the next one's
constexpr int kSlots = GROUP > 32 ? 128 : 64;      // of a ring

// The left factors: rows are fields, columns pixels; element k of part p is the pixel (k % 8, 2 p + k / 8) of the patch.
struct Fields {
  uint32_t moments[2][2];  // rows 0 to 7; exact in bfloat16
#if WEIGHTS
  uint32_t high[kMatrices][2][4], low[kMatrices][2][4];
#endif
};

struct Warp {
  float4 shape[kSlots], more[kSlots];  // as in Entry; more.w holds the place in the tile's list
#if COLORS
  float4 color[kSlots];
#endif
  float2 center[kSlots];                              // relative to the tile's
  uint32_t slot[kSlots];
#if ORDERED
  uint32_t hit[kSlots];
#endif
#if CHANNELS > 0
  float features[8 * CHANNELS];
#endif
#if MATRIX
  uint16_t pairs[WEIGHTS ? 4 : 2][8 * kPairRow];  // vs high, vs low, w high, w low
#endif
  float out[8 * kOut];
#if WIDE && MATRIX
  float dots[GROUP * kDotRow];      // what features add to c
  Fields fields[32];                // of each lane: the registers are needed otherwise
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
      rows[m][r] = s.slot[(head + (row < count ? row : 0)) % kSlots] - static_cast<uint32_t>(a.n * place.camera);
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
      float* to = s.dots + (16 * m + g) * kDotRow + 8 * j + 2 * t;
      to[0] = c[m][j][0], to[1] = c[m][j][1];
      to[8 * kDotRow] = c[m][j][2], to[8 * kDotRow + 1] = c[m][j][3];
    }
  }
}
#endif

#if MATRIX
FS_DEVICE float moment(int field, float x, float y) {
  return field == 0 ? 1.f : field == 1 ? x : field == 2 ? y : field == 3 ? x * x : field == 4 ? x * y : field == 5 ? y * y : 0.f;
}

FS_DEVICE void make_fields(Warp& s, int patch, const Seen& seen, Fields& f) {
  const int lane = fs_lane(), g = lane >> 2, t = lane & 3;
  float* scratch = reinterpret_cast<float*>(s.shape);  // [kFields][32], before the ring is used
  for (int i = 0; i < 6; ++i) scratch[32 * i + lane] = 0;
  const float own[4] = {seen.r, seen.g, seen.b, seen.z};
  for (int i = 0; i < 4; ++i) scratch[32 * (6 + i) + lane] = own[i];
#pragma unroll
  for (int i = 10; i < kFields; ++i) scratch[32 * i + lane] = i - 10 < CHANNELS ? seen.features[i - 10 < CHANNELS ? i - 10 : 0] : 0.f;
  fs_syncwarp();
  for (int p = 0; p < 2; ++p) {
    for (int half = 0; half < 2; ++half) {  // columns k < 8 and k >= 8
      [[maybe_unused]] const int at = 8 * (2 * p + half) + 2 * t;
      const float x = patch_x(patch) + 2 * t - 7.5f, y = patch_y(patch) + 2 * p + half - 7.5f;
      f.moments[p][half] = fs_pack_bf16(moment(g, x, y), moment(g, x + 1, y));
#if WEIGHTS
#pragma unroll
      for (int m = 0; m < kMatrices; ++m) {
        for (int r = 0; r < 2; ++r) {
          const float* from = scratch + 32 * (16 * m + g + 8 * r) + at;
          split_pair(from[0], from[1], f.high[m][p][2 * half + r], f.low[m][p][2 * half + r]);
        }
      }
#endif
    }
  }
  fs_syncwarp();
}

// The products of 8 splats, laid out splat by splat in s.out.
FS_DEVICE void multiply_fields(Warp& s, const Fields& f) {
  const int lane = fs_lane(), g = lane >> 2, t = lane & 3, at = (lane & 7) * kPairRow + (lane >> 3) * 8;
  float d[kMatrices][4];
#pragma unroll
  for (int m = 0; m < kMatrices; ++m) d[m][0] = d[m][1] = d[m][2] = d[m][3] = 0;
  uint32_t h[4], l[4];
#if GEOMETRY
  ldmatrix_x4(h, s.pairs[0] + at), ldmatrix_x4(l, s.pairs[1] + at);
  for (int p = 0; p < 2; ++p) {
    const uint32_t a[4] = {f.moments[p][0], 0, f.moments[p][1], 0};
    const uint32_t bh[2] = {h[2 * p], h[2 * p + 1]}, bl[2] = {l[2 * p], l[2 * p + 1]};
    mma_m16n8k16_bf16_f32(d[0], a, bl, d[0]);
    mma_m16n8k16_bf16_f32(d[0], a, bh, d[0]);
  }
#endif
#if WEIGHTS
  ldmatrix_x4(h, s.pairs[2] + at), ldmatrix_x4(l, s.pairs[3] + at);
  for (int p = 0; p < 2; ++p) {
    const uint32_t bh[2] = {h[2 * p], h[2 * p + 1]}, bl[2] = {l[2 * p], l[2 * p + 1]};
#pragma unroll
    for (int m = 0; m < kMatrices; ++m) multiply_split(d[m], f.high[m][p], f.low[m][p], bh, bl);
  }
#endif
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
    v0 = e.y * (e.x * o[0] - o[1]) - e.x * o[2] + o[4], v1 = e.y * (e.y * o[0] - 2 * o[2]) + o[5], v2 = o[6], v3 = o[7];
  } else if (q == 2) {
    v0 = o[8], v1 = o[9], v2 = ABSOLUTE ? o[kFields] : 0, v3 = ABSOLUTE ? o[kFields + 1] : 0;
  } else {
    v0 = v1 = v2 = v3 = 0;
  }
#if ORDERED
  float* record = a.sums + static_cast<int64_t>(s.hit[at]) * kRecord;
  if (q < 3) *reinterpret_cast<float4*>(record + 4 * q) = make_float4(v0, v1, v2, v3);
#else
  float* record = a.sums + static_cast<int64_t>(s.slot[at]) * kRecord;
  if (v0 != 0 || v1 != 0 || v2 != 0 || v3 != 0) fs_red_add4(record + 4 * q, v0, v1, v2, v3);
#endif
#pragma unroll
  for (int k = 0; k < kRecord / 4 - 3; ++k) {
    if ((k & 3) != 3 - q) continue;
    float v[4];
    for (int i = 0; i < 4; ++i) v[i] = 4 * k + i < CHANNELS ? o[10 + 4 * k + i] : 0.f;
#if ORDERED
    *reinterpret_cast<float4*>(record + kFeatures + 4 * k) = make_float4(v[0], v[1], v[2], v[3]);
#else
    fs_red_add4(record + kFeatures + 4 * k, v[0], v[1], v[2], v[3]);
#endif
  }
}

FS_KERNEL_OCCUPANCY(32 * WARPS, (WIDE ? (AHEAD ? 2 : (COLORS ? 12 : 16) / WARPS) : CHANNELS > 4 || !MATRIX ? 3 : 5), blend_backward, const BackwardArgs a) {
  FS_DYNAMIC_SHARED(Warp, warps);
  Warp& s = warps[fs_warp()];
  const int lane = fs_lane();
  const int64_t mine = static_cast<int64_t>(blockIdx.x) * WARPS + fs_warp();
  const int tile = static_cast<int>(mine / kPatches), patch = static_cast<int>(mine % kPatches);
  const Place place = place_of(tile, a.tiles, a.tiles_x);
  const int lx = patch_x(patch) + (lane & 7), ly = patch_y(patch) + (lane >> 3);
  const bool inside = place.x + lx < a.width && place.y + ly < a.height;
  const int64_t pixel = (static_cast<int64_t>(place.camera) * a.height + place.y + ly) * a.width + place.x + lx;
  const float px = lx - 7.5f, py = ly - 7.5f;
  const uint32_t first = a.offsets[tile];
  const int last = inside ? a.last[pixel] : 0;
  const int farthest = warp_max(last);
  if (farthest == 0) return;
  Seen seen;
  read_gradients(a, place.camera, pixel, inside, seen);
#if MATRIX
#if WIDE
  make_fields(s, patch, seen, s.fields[lane]);
  const Fields& fields = s.fields[lane];
#else
  Fields fields;
  make_fields(s, patch, seen, fields);
#endif
#endif
  float T = inside ? a.left[pixel] : 1.f, behind = 0;

  // Up to 8 splats from ring place head on, far to near; `row` is the first one's in s.dots.
  auto take = [&](int head, int members, int row) {
#if CHANNELS > 0
    for (int i = lane; i < members * CHANNELS; i += 32) {
      const int k = i / CHANNELS, c = i - k * CHANNELS;
      const int64_t id = s.slot[(head + k) % kSlots] - static_cast<uint32_t>(a.n * place.camera);
      s.features[i] = fs_ldg(a.rows + id * CHANNELS + c);
    }
    fs_syncwarp();
#endif
#pragma unroll
    for (int quad = 0; quad < 8; quad += 4) {  // four at a time, so that they do not wait for each other
      float al[4], raw[4], c[4];
#pragma unroll
      for (int m = 0; m < 4; ++m) {
        const int k = min(quad + m, members - 1), at = (head + k) % kSlots;
        const float4 shape = s.shape[at], more = s.more[at];
        raw[m] = alpha_at(shape, more.x, more.y, more.z, px, py);
        al[m] = quad + m < members && place_in_list(more) < last ? fminf(raw[m], a.alpha_max) : 0.f;
        c[m] = 0;
#if GEOMETRY
#if COLORS
        const float4 color = s.color[at];
        c[m] = fmaf(color.x, seen.r, fmaf(color.y, seen.g, fmaf(color.z, seen.b, fmaf(color.w, seen.z, seen.weight))));
#endif
#if CHANNELS > 0 && FEATURES_MOVE
        for (int i = 0; i < CHANNELS; ++i) c[m] = fmaf(s.features[k * CHANNELS + i], seen.features[i], c[m]);
#endif
#if WIDE && MATRIX
        c[m] += s.dots[(row + k) * kDotRow + lane];
#elif WIDE
        if (al[m] > 0) {
          const float* features = a.rows + static_cast<int64_t>(s.slot[at] - static_cast<uint32_t>(a.n * place.camera)) * a.dim;
          const float* image = a.v_features + pixel * a.dim;
          for (int64_t i = 0; i < a.dim; ++i) c[m] = fmaf(fs_ldg(features + i), fs_ldg(image + i), c[m]);
        }
#endif
#endif
      }
      float inverse[4];
#pragma unroll
      for (int m = 0; m < 4; ++m) inverse[m] = fs_rcp(1 - al[m]);
#pragma unroll
      for (int m = 0; m < 4; ++m) {
        T *= inverse[m];
        const float w = al[m] * T, d = c[m] - behind;
        behind = fmaf(al[m], d, behind);
        const float vs = GEOMETRY && raw[m] < a.alpha_max ? -w * d : 0.f;
#if ABSOLUTE
        {  // d sigma / d centre = -2 ln 2 (l11 u, l21 u + l22 v)
          const int at = (head + min(quad + m, members - 1)) % kSlots;
          const float4 shape = s.shape[at];
          const float u = fmaf(shape.y, py, fmaf(shape.x, px, shape.z)), v = fmaf(shape.w, py, s.more[at].x);
          const float gx = warp_sum(fabsf(vs * u)), gy = warp_sum(fabsf(vs * fmaf(shape.w, v, shape.y * u)));
          if (lane < 2) s.out[(quad + m) * kOut + kFields + lane] = lane ? 1.3862944f * gy : 1.3862944f * shape.x * gx;
        }
#endif
#if MATRIX
        uint32_t high, low;
        split_pair(vs, w, high, low);
        uint16_t* to = s.pairs[0] + (quad + m) * kPairRow + lane;
        to[0] = static_cast<uint16_t>(high), to[8 * kPairRow] = static_cast<uint16_t>(low);
#if WEIGHTS
        to[16 * kPairRow] = static_cast<uint16_t>(high >> 16), to[24 * kPairRow] = static_cast<uint16_t>(low >> 16);
#endif
#else
        const float values[10] = {vs, vs * px, vs * py, vs * px * px, vs * px * py, vs * py * py,
                                  w * seen.r, w * seen.g, w * seen.b, w * seen.z};
        float* out = s.out + (quad + m) * kOut;
        for (int i = 0; i < 10; ++i) {
          const float sum = warp_sum(values[i]);
          if (lane == 0) out[i] = sum;
        }
        for (int i = 0; i < CHANNELS; ++i) {
          const float sum = warp_sum(w * seen.features[i]);
          if (lane == 0) out[10 + i] = sum;
        }
#endif
      }
    }
    fs_syncwarp();
#if MATRIX
    multiply_fields(s, fields);
    fs_syncwarp();
#endif
    add_records(a, s, head, members);
    fs_syncwarp();
  };

  const float4* from = reinterpret_cast<const float4*>(a.entries);
  const float center_x = place.x + 0.5f * kTile, center_y = place.y + 0.5f * kTile;
  int head = 0, tail = 0;
  for (int base = (farthest - 1) / 32 * 32;; base -= 32) {
    const bool more_to_come = base >= 0;
    if (more_to_come) {
      const int index = base + 31 - lane;
      const int64_t at = first + static_cast<uint32_t>(index);
      float4 more = make_float4(0, 0, 0, 0);
      if (index < farthest) more = fs_ldg(from + 3 * at + 1);
      const bool hit = fs_float_as_uint(more.w) >> patch & 1;
      const uint32_t bits = fs_ballot(hit);
      if (hit) {
        const int k = (tail + fs_popc(bits & ((1u << lane) - 1))) % kSlots;
#if ORDERED
        const uint32_t mask = fs_float_as_uint(more.w), pair = a.written[at];
        s.hit[k] = static_cast<uint32_t>((pair ? a.hit_ends[pair - 1] : 0) + fs_popc(mask & ((1u << patch) - 1)));
#endif
        more.w = fs_uint_as_float(static_cast<uint32_t>(index));
        const uint32_t slot = fs_ldg(a.slots + at);
        s.shape[k] = fs_ldg(from + 3 * at), s.more[k] = more, s.slot[k] = slot;
#if COLORS
        s.color[k] = fs_ldg(from + 3 * at + 2);
#endif
        const float4 center = fs_ldg(reinterpret_cast<const float4*>(a.splats + slot));
        s.center[k] = make_float2((center.x - center_x) + center.z, (center.y - center_y) + center.w);
      }
      tail += fs_popc(bits);
    }
    fs_syncwarp();
    const int least = more_to_come ? GROUP : 1;
    for (; tail - head >= least; head += GROUP) {
      const int members = min(GROUP, tail - head);
#if WIDE && MATRIX
#if GROUP > 16
      if (members > 16) dot_features<GROUP / 16>(a, place, patch, s, head, members);
      else
#endif
      dot_features<1>(a, place, patch, s, head, members);
      fs_syncwarp();
#endif
      for (int start = 0; start < members; start += 8) take(head + start, min(8, members - start), start);
    }
    if (!more_to_come) return;
  }
}
