// Matrix products between the blending weights and the features of a tile: pixels in groups of four (a row of a
// block), channels in panels of at most 64, the panel's rows packed one after the other so that they stay in cache.
#pragma once
#include "simd.h"
#include "tile.h"

namespace FS_ISA {

constexpr int kPanel = 64;  // channels
#if defined(FS_ISA_avx512)
constexpr int kWide = 4;  // vectors of channels in registers at once, beside four pixels
#else
constexpr int kWide = 1;
#endif

// The splats that four pixels see, near to far, with their weights.
struct Group {
  const uint32_t* splats;
  const float* weights;  // [count][4]
  int count;
};

// All groups of a tile. Group g of block b starts at 4 * begin[b] + g * (length of b's list).
struct Groups {
  uint32_t* splats;
  float* weights;
  int count[16][4];
};

FS_INLINE int64_t group_bytes_per_listed() { return 4 * (4 + 16); }

static Groups take_groups(Scratch& s, int64_t listed) {
  Groups g;
  g.splats = take<uint32_t>(s, 4 * listed + 4);
  g.weights = take<float>(s, 16 * listed + 16);
  return g;
}

static Group group_of(const Groups& all, const Tile& t, int b, int g) {
  const int64_t at = 4 * (int64_t)t.begin[b] + (int64_t)g * (t.begin[b + 1] - t.begin[b]);
  return {all.splats + at, all.weights + 4 * at, all.count[b][g]};
}

// Appends a block's 16 weights for one splat to the groups that have any.
struct GroupWriter {
  uint32_t* splats[4];
  float* weights[4];
  int count[4];
};

static GroupWriter write_groups(const Groups& all, const Tile& t, int b) {
  GroupWriter w;
  for (int g = 0; g < 4; ++g) {
    const int64_t at = 4 * (int64_t)t.begin[b] + (int64_t)g * (t.begin[b + 1] - t.begin[b]);
    w.splats[g] = all.splats + at, w.weights[g] = all.weights + 4 * at, w.count[g] = 0;
  }
  return w;
}

FS_INLINE void append(GroupWriter& o, uint32_t splat, V w) {
  float lanes[16];
  store(lanes, w);
  const unsigned some = bits(w > set(0.f));
  for (int g = 0; g < 4; ++g) {
    const int n = o.count[g];
    o.splats[g][n] = splat;
    memcpy(o.weights[g] + 4 * n, lanes + 4 * g, 16);
    o.count[g] = n + ((some >> (4 * g) & 15) != 0);
  }
}

FS_INLINE int vectors(int channels) { return (channels + 15) / 16; }

// Copies channels [c0, c0 + channels) of the tile's splats into rows of 16 * vectors(channels), padded with zeros.
// False when one is not finite.
static bool pack_rows(const Tile& t, int count, const float* rows, int64_t dim, int64_t c0, int channels,
                      float* FS_RESTRICT panel) {
  const int stride = 16 * vectors(channels), whole = channels / 16;
  V zero = set(0.f);
  for (int k = 0; k < count; ++k) {
    const float* from = rows + (int64_t)t.splats[k].id * dim + c0;
    float* to = panel + (int64_t)k * stride;
    if (k + 4 < count) {
      const float* soon = rows + (int64_t)t.splats[k + 4].id * dim + c0;
      for (int c = 0; c < channels; c += 16) prefetch(soon + c);
    }
    for (int q = 0; q < whole; ++q) {
      const V v = load(from + 16 * q);
      zero = fma(v, set(0.f), zero);
      store(to + 16 * q, v);
    }
    if (channels & 15) {
      store(to + 16 * whole, set(0.f));
      for (int c = 16 * whole; c < channels; ++c) to[c] = from[c];
      zero = fma(load(to + 16 * whole), set(0.f), zero);
    }
  }
  return sum(zero) == 0;
}

// acc[4 pixels][kN vectors] = sum over the group's splats of weight * panel row (from vector q on).
template <int kN>
FS_INLINE void gather_rows(const Group& g, const float* panel, int stride, V acc[4][kN]) {
  for (int p = 0; p < 4; ++p) {
    for (int q = 0; q < kN; ++q) acc[p][q] = set(0.f);
  }
  for (int i = 0; i < g.count; ++i) {
    const float* row = panel + (int64_t)g.splats[i] * stride;
    const float* w = g.weights + 4 * i;
    V f[kN];
    for (int q = 0; q < kN; ++q) f[q] = load(row + 16 * q);
    for (int p = 0; p < 4; ++p) {
      const V wp = set(w[p]);
      for (int q = 0; q < kN; ++q) acc[p][q] = fma(wp, f[q], acc[p][q]);
    }
  }
}

}  // namespace FS_ISA
