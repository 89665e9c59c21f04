// Between rows of memory (one Gaussian's numbers, one pixel's channels) and lanes (the same number of sixteen of them).
#pragma once
#include "simd.h"

namespace FS_ISA {

// r[i] lane j becomes r[j] lane i.
FS_INLINE void transpose16(V r[16]) {
#if defined(FS_ISA_avx512)
  __m512 t[16], u[16];
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_ps(r[i].q[0], r[i + 1].q[0]);
    t[i + 1] = _mm512_unpackhi_ps(r[i].q[0], r[i + 1].q[0]);
  }
  for (int i = 0; i < 16; i += 4) {
    for (int j = 0; j < 2; ++j) {
      const __m512d lo = _mm512_castps_pd(t[i + j]), hi = _mm512_castps_pd(t[i + j + 2]);
      u[i + 2 * j] = _mm512_castpd_ps(_mm512_unpacklo_pd(lo, hi));
      u[i + 2 * j + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(lo, hi));
    }
  }
  for (int j = 0; j < 4; ++j) {  // u[4 g + j] holds, in its 128-bit part p, column 4 p + j of rows 4 g .. 4 g + 3
    const __m512 a = _mm512_shuffle_f32x4(u[j], u[4 + j], 0x88), b = _mm512_shuffle_f32x4(u[8 + j], u[12 + j], 0x88);
    const __m512 c = _mm512_shuffle_f32x4(u[j], u[4 + j], 0xdd), d = _mm512_shuffle_f32x4(u[8 + j], u[12 + j], 0xdd);
    r[j].q[0] = _mm512_shuffle_f32x4(a, b, 0x88);
    r[8 + j].q[0] = _mm512_shuffle_f32x4(a, b, 0xdd);
    r[4 + j].q[0] = _mm512_shuffle_f32x4(c, d, 0x88);
    r[12 + j].q[0] = _mm512_shuffle_f32x4(c, d, 0xdd);
  }
#else
  float rows[16][16], columns[16][16];
  for (int i = 0; i < 16; ++i) store(rows[i], r[i]);
  for (int i = 0; i < 16; ++i) {
    for (int j = 0; j < 16; ++j) columns[i][j] = rows[j][i];
  }
  for (int i = 0; i < 16; ++i) r[i] = load(columns[i]);
#endif
}

// The first `left` floats (any number) at p, zeros after them; nothing beyond them is read.
FS_INLINE V load_first(const float* p, int left) {
  if (left >= 16) return load(p);
#if defined(FS_ISA_avx512)
  V r;
  r.q[0] = _mm512_maskz_loadu_ps((__mmask16)(left > 0 ? (1 << left) - 1 : 0), p);
  return r;
#else
  float lanes[16] = {};
  for (int i = 0; i < left; ++i) lanes[i] = p[i];
  return load(lanes);
#endif
}

FS_INLINE void store_first(float* p, V v, int left) {
  if (left >= 16) {
    store(p, v);
    return;
  }
#if defined(FS_ISA_avx512)
  _mm512_mask_storeu_ps(p, (__mmask16)(left > 0 ? (1 << left) - 1 : 0), v.q[0]);
#else
  float lanes[16];
  store(lanes, v);
  for (int i = 0; i < left; ++i) p[i] = lanes[i];
#endif
}

// lanes[c][i] = rows[i][c] for c < count; room for count rounded up to 16.
static void rows_to_lanes(const float* const rows[16], int count, float* lanes) {
  for (int c = 0; c < count; c += 16) {
    V r[16];
    for (int i = 0; i < 16; ++i) r[i] = load_first(rows[i] + c, count - c);
    transpose16(r);
    for (int i = 0; i < 16; ++i) store(lanes + 16 * (c + i), r[i]);
  }
}

// rows[i][c] += lanes[c][i] for c < count and i < n.
static void add_lanes_to_rows(const float* lanes, int count, float* const rows[16], int n) {
  for (int c = 0; c < count; c += 16) {
    V r[16];
    for (int i = 0; i < 16; ++i) r[i] = load(lanes + 16 * (c + i));
    transpose16(r);
    for (int i = 0; i < n; ++i) store_first(rows[i] + c, load_first(rows[i] + c, count - c) + r[i], count - c);
  }
}

}  // namespace FS_ISA
