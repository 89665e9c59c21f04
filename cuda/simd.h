// Sixteen floats as one value V, sixteen truths as one value M: one AVX-512 register, two AVX ones, four SSE or NEON
// ones, or plain arrays. Only cuda/*.cpp include this (see isa.h); everything is static.
#pragma once
#include <math.h>
#include <stdint.h>
#include <string.h>

#include "isa.h"

#if defined(FS_X86)
#include <immintrin.h>
#elif defined(FS_ISA_neon)
#include <arm_neon.h>
#endif

#if defined(_MSC_VER)
#define FS_INLINE static __forceinline
#define FS_RESTRICT __restrict
#else
#define FS_INLINE static inline __attribute__((always_inline))
#define FS_RESTRICT __restrict__
#endif

namespace FS_ISA {

// One hardware register (Q) of kPart floats, and the truths of its lanes (K).
#if defined(FS_ISA_avx512)

typedef __m512 Q;
typedef __mmask16 K;
constexpr int kPart = 16;
FS_INLINE Q q_load(const float* p) { return _mm512_loadu_ps(p); }
FS_INLINE void q_store(float* p, Q a) { _mm512_storeu_ps(p, a); }
FS_INLINE void q_stream(float* p, Q a) { _mm512_stream_ps(p, a); }
FS_INLINE Q q_set(float x) { return _mm512_set1_ps(x); }
FS_INLINE Q q_add(Q a, Q b) { return _mm512_add_ps(a, b); }
FS_INLINE Q q_sub(Q a, Q b) { return _mm512_sub_ps(a, b); }
FS_INLINE Q q_mul(Q a, Q b) { return _mm512_mul_ps(a, b); }
FS_INLINE Q q_fma(Q a, Q b, Q c) { return _mm512_fmadd_ps(a, b, c); }
FS_INLINE Q q_fnma(Q a, Q b, Q c) { return _mm512_fnmadd_ps(a, b, c); }
FS_INLINE Q q_min(Q a, Q b) { return _mm512_min_ps(a, b); }
FS_INLINE Q q_max(Q a, Q b) { return _mm512_max_ps(a, b); }
FS_INLINE Q q_abs(Q a) { return _mm512_abs_ps(a); }
FS_INLINE K q_ge(Q a, Q b) { return _mm512_cmp_ps_mask(a, b, _CMP_GE_OQ); }
FS_INLINE K q_gt(Q a, Q b) { return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ); }
FS_INLINE Q q_zero_unless(K m, Q a) { return _mm512_maskz_mov_ps(m, a); }
FS_INLINE Q q_select(K m, Q a, Q b) { return _mm512_mask_mov_ps(b, m, a); }
FS_INLINE K k_and(K a, K b) { return a & b; }
FS_INLINE unsigned k_bits(K a) { return a; }

#elif defined(FS_ISA_avx2)

typedef __m256 Q;
typedef __m256 K;
constexpr int kPart = 8;
FS_INLINE Q q_load(const float* p) { return _mm256_loadu_ps(p); }
FS_INLINE void q_store(float* p, Q a) { _mm256_storeu_ps(p, a); }
FS_INLINE void q_stream(float* p, Q a) { _mm256_stream_ps(p, a); }
FS_INLINE Q q_set(float x) { return _mm256_set1_ps(x); }
FS_INLINE Q q_add(Q a, Q b) { return _mm256_add_ps(a, b); }
FS_INLINE Q q_sub(Q a, Q b) { return _mm256_sub_ps(a, b); }
FS_INLINE Q q_mul(Q a, Q b) { return _mm256_mul_ps(a, b); }
FS_INLINE Q q_fma(Q a, Q b, Q c) { return _mm256_fmadd_ps(a, b, c); }
FS_INLINE Q q_fnma(Q a, Q b, Q c) { return _mm256_fnmadd_ps(a, b, c); }
FS_INLINE Q q_min(Q a, Q b) { return _mm256_min_ps(a, b); }
FS_INLINE Q q_max(Q a, Q b) { return _mm256_max_ps(a, b); }
FS_INLINE Q q_abs(Q a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.f), a); }
FS_INLINE K q_ge(Q a, Q b) { return _mm256_cmp_ps(a, b, _CMP_GE_OQ); }
FS_INLINE K q_gt(Q a, Q b) { return _mm256_cmp_ps(a, b, _CMP_GT_OQ); }
FS_INLINE Q q_zero_unless(K m, Q a) { return _mm256_and_ps(m, a); }
FS_INLINE Q q_select(K m, Q a, Q b) { return _mm256_blendv_ps(b, a, m); }
FS_INLINE K k_and(K a, K b) { return _mm256_and_ps(a, b); }
FS_INLINE unsigned k_bits(K a) { return (unsigned)_mm256_movemask_ps(a); }
FS_INLINE Q q_round(Q x, Q* power) {
  const __m256i n = _mm256_cvtps_epi32(x);
  *power = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(n, _mm256_set1_epi32(127)), 23));
  return _mm256_cvtepi32_ps(n);
}

#elif defined(FS_X86)

typedef __m128 Q;
typedef __m128 K;
constexpr int kPart = 4;
FS_INLINE Q q_load(const float* p) { return _mm_loadu_ps(p); }
FS_INLINE void q_store(float* p, Q a) { _mm_storeu_ps(p, a); }
FS_INLINE void q_stream(float* p, Q a) { _mm_stream_ps(p, a); }
FS_INLINE Q q_set(float x) { return _mm_set1_ps(x); }
FS_INLINE Q q_add(Q a, Q b) { return _mm_add_ps(a, b); }
FS_INLINE Q q_sub(Q a, Q b) { return _mm_sub_ps(a, b); }
FS_INLINE Q q_mul(Q a, Q b) { return _mm_mul_ps(a, b); }
FS_INLINE Q q_fma(Q a, Q b, Q c) { return _mm_add_ps(_mm_mul_ps(a, b), c); }
FS_INLINE Q q_fnma(Q a, Q b, Q c) { return _mm_sub_ps(c, _mm_mul_ps(a, b)); }
FS_INLINE Q q_min(Q a, Q b) { return _mm_min_ps(a, b); }
FS_INLINE Q q_max(Q a, Q b) { return _mm_max_ps(a, b); }
FS_INLINE Q q_abs(Q a) { return _mm_andnot_ps(_mm_set1_ps(-0.f), a); }
FS_INLINE K q_ge(Q a, Q b) { return _mm_cmpge_ps(a, b); }
FS_INLINE K q_gt(Q a, Q b) { return _mm_cmpgt_ps(a, b); }
FS_INLINE Q q_zero_unless(K m, Q a) { return _mm_and_ps(m, a); }
FS_INLINE Q q_select(K m, Q a, Q b) { return _mm_or_ps(_mm_and_ps(m, a), _mm_andnot_ps(m, b)); }
FS_INLINE K k_and(K a, K b) { return _mm_and_ps(a, b); }
FS_INLINE unsigned k_bits(K a) { return (unsigned)_mm_movemask_ps(a); }
FS_INLINE Q q_round(Q x, Q* power) {
  const __m128i n = _mm_cvtps_epi32(x);
  *power = _mm_castsi128_ps(_mm_slli_epi32(_mm_add_epi32(n, _mm_set1_epi32(127)), 23));
  return _mm_cvtepi32_ps(n);
}

#elif defined(FS_ISA_neon)

typedef float32x4_t Q;
typedef uint32x4_t K;
constexpr int kPart = 4;
FS_INLINE Q q_load(const float* p) { return vld1q_f32(p); }
FS_INLINE void q_store(float* p, Q a) { vst1q_f32(p, a); }
FS_INLINE void q_stream(float* p, Q a) { vst1q_f32(p, a); }
FS_INLINE Q q_set(float x) { return vdupq_n_f32(x); }
FS_INLINE Q q_add(Q a, Q b) { return vaddq_f32(a, b); }
FS_INLINE Q q_sub(Q a, Q b) { return vsubq_f32(a, b); }
FS_INLINE Q q_mul(Q a, Q b) { return vmulq_f32(a, b); }
FS_INLINE Q q_fma(Q a, Q b, Q c) { return vfmaq_f32(c, a, b); }
FS_INLINE Q q_fnma(Q a, Q b, Q c) { return vfmsq_f32(c, a, b); }
FS_INLINE Q q_min(Q a, Q b) { return vminq_f32(a, b); }
FS_INLINE Q q_max(Q a, Q b) { return vmaxq_f32(a, b); }
FS_INLINE Q q_abs(Q a) { return vabsq_f32(a); }
FS_INLINE K q_ge(Q a, Q b) { return vcgeq_f32(a, b); }
FS_INLINE K q_gt(Q a, Q b) { return vcgtq_f32(a, b); }
FS_INLINE Q q_zero_unless(K m, Q a) { return vreinterpretq_f32_u32(vandq_u32(m, vreinterpretq_u32_f32(a))); }
FS_INLINE Q q_select(K m, Q a, Q b) { return vbslq_f32(m, a, b); }
FS_INLINE K k_and(K a, K b) { return vandq_u32(a, b); }
FS_INLINE unsigned k_bits(K a) {
  const uint32_t weight[4] = {1, 2, 4, 8};
  return vaddvq_u32(vandq_u32(a, vld1q_u32(weight)));
}
FS_INLINE Q q_round(Q x, Q* power) {
  const int32x4_t n = vcvtnq_s32_f32(x);
  *power = vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(n, vdupq_n_s32(127)), 23));
  return vcvtq_f32_s32(n);
}

#else

typedef float Q;
typedef bool K;
constexpr int kPart = 1;
FS_INLINE Q q_load(const float* p) { return *p; }
FS_INLINE void q_store(float* p, Q a) { *p = a; }
FS_INLINE void q_stream(float* p, Q a) { *p = a; }
FS_INLINE Q q_set(float x) { return x; }
FS_INLINE Q q_add(Q a, Q b) { return a + b; }
FS_INLINE Q q_sub(Q a, Q b) { return a - b; }
FS_INLINE Q q_mul(Q a, Q b) { return a * b; }
FS_INLINE Q q_fma(Q a, Q b, Q c) { return a * b + c; }
FS_INLINE Q q_fnma(Q a, Q b, Q c) { return c - a * b; }
FS_INLINE Q q_min(Q a, Q b) { return a < b ? a : b; }
FS_INLINE Q q_max(Q a, Q b) { return a > b ? a : b; }
FS_INLINE Q q_abs(Q a) { return a < 0 ? -a : a; }
FS_INLINE K q_ge(Q a, Q b) { return a >= b; }
FS_INLINE K q_gt(Q a, Q b) { return a > b; }
FS_INLINE Q q_zero_unless(K m, Q a) { return m ? a : 0.f; }
FS_INLINE Q q_select(K m, Q a, Q b) { return m ? a : b; }
FS_INLINE K k_and(K a, K b) { return a && b; }
FS_INLINE unsigned k_bits(K a) { return a; }
FS_INLINE Q q_round(Q x, Q* power) {
  const int32_t n = (int32_t)floorf(x + 0.5f);
  const int32_t bits = (n + 127) * (1 << 23);
  memcpy(power, &bits, 4);
  return (float)n;
}

#endif

constexpr int kParts = 16 / kPart;

struct V {
  Q q[kParts];
};
struct M {
  K k[kParts];
};

#define FS_EACH for (int i = 0; i < kParts; ++i)

FS_INLINE V load(const float* p) { V r; FS_EACH r.q[i] = q_load(p + i * kPart); return r; }
FS_INLINE void store(float* p, V a) { FS_EACH q_store(p + i * kPart, a.q[i]); }
// Past the caches; p must be aligned to 64 bytes.
FS_INLINE void stream(float* p, V a) { FS_EACH q_stream(p + i * kPart, a.q[i]); }
FS_INLINE V set(float x) { V r; const Q q = q_set(x); FS_EACH r.q[i] = q; return r; }
FS_INLINE V operator+(V a, V b) { V r; FS_EACH r.q[i] = q_add(a.q[i], b.q[i]); return r; }
FS_INLINE V operator-(V a, V b) { V r; FS_EACH r.q[i] = q_sub(a.q[i], b.q[i]); return r; }
FS_INLINE V operator*(V a, V b) { V r; FS_EACH r.q[i] = q_mul(a.q[i], b.q[i]); return r; }
FS_INLINE V fma(V a, V b, V c) { V r; FS_EACH r.q[i] = q_fma(a.q[i], b.q[i], c.q[i]); return r; }    // a b + c
FS_INLINE V fnma(V a, V b, V c) { V r; FS_EACH r.q[i] = q_fnma(a.q[i], b.q[i], c.q[i]); return r; }  // c - a b
FS_INLINE V min(V a, V b) { V r; FS_EACH r.q[i] = q_min(a.q[i], b.q[i]); return r; }
FS_INLINE V max(V a, V b) { V r; FS_EACH r.q[i] = q_max(a.q[i], b.q[i]); return r; }
FS_INLINE V abs(V a) { V r; FS_EACH r.q[i] = q_abs(a.q[i]); return r; }
FS_INLINE M operator>=(V a, V b) { M r; FS_EACH r.k[i] = q_ge(a.q[i], b.q[i]); return r; }
FS_INLINE M operator>(V a, V b) { M r; FS_EACH r.k[i] = q_gt(a.q[i], b.q[i]); return r; }
FS_INLINE M operator&(M a, M b) { M r; FS_EACH r.k[i] = k_and(a.k[i], b.k[i]); return r; }
FS_INLINE V zero_unless(M m, V a) { V r; FS_EACH r.q[i] = q_zero_unless(m.k[i], a.q[i]); return r; }
FS_INLINE V select(M m, V a, V b) { V r; FS_EACH r.q[i] = q_select(m.k[i], a.q[i], b.q[i]); return r; }
FS_INLINE unsigned bits(M m) { unsigned r = 0; FS_EACH r |= k_bits(m.k[i]) << (i * kPart); return r; }

FS_INLINE float sum(V a) {
#if defined(FS_ISA_avx512)
  return _mm512_reduce_add_ps(a.q[0]);
#else
  float lanes[16];
  store(lanes, a);
  float r[4];
  for (int i = 0; i < 4; ++i) r[i] = (lanes[i] + lanes[i + 4]) + (lanes[i + 8] + lanes[i + 12]);
  return (r[0] + r[1]) + (r[2] + r[3]);
#endif
}

FS_INLINE float greatest(V a) {
#if defined(FS_ISA_avx512)
  return _mm512_reduce_max_ps(a.q[0]);
#else
  float lanes[16];
  store(lanes, a);
  float most = lanes[0];
  for (int i = 1; i < 16; ++i) most = lanes[i] > most ? lanes[i] : most;
  return most;
#endif
}

// 2^x for x <= 126, relative error at most 1.7e-7; 0 (or next to it) below -126. Degree 5, fitted for relative error.
FS_INLINE V exp2(V x) {
  V r;
  FS_EACH {
#if defined(FS_ISA_avx512)
    const Q n = _mm512_roundscale_ps(x.q[i], 0);
    const Q f = q_sub(x.q[i], n);
#else
    const Q y = q_max(x.q[i], q_set(-126.f));
    Q power;
    const Q f = q_sub(y, q_round(y, &power));
#endif
    Q p = q_set(1.32647266e-3f);
    p = q_fma(p, f, q_set(9.67151296e-3f));
    p = q_fma(p, f, q_set(5.55073375e-2f));
    p = q_fma(p, f, q_set(2.40222421e-1f));
    p = q_fma(p, f, q_set(6.93146978e-1f));
    p = q_fma(p, f, q_set(1.f));
#if defined(FS_ISA_avx512)
    r.q[i] = _mm512_scalef_ps(p, n);
#else
    r.q[i] = q_mul(p, power);
#endif
  }
  return r;
}

// Products over pixels that leave channels in lanes: a value and a weight per pixel, as pairs in memory.
// weave stores a and b as 16 pairs (a_p, b_p), pair m being that of pixel kPairPixel[m]; pair broadcasts one pair.
#if defined(FS_ISA_avx512)
static const int kPairPixel[16] = {0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15};
FS_INLINE void weave(V a, V b, float* out) {
  _mm512_storeu_ps(out, _mm512_unpacklo_ps(a.q[0], b.q[0]));
  _mm512_storeu_ps(out + 16, _mm512_unpackhi_ps(a.q[0], b.q[0]));
}
FS_INLINE Q q_pair(const float* p) {
  double both;
  memcpy(&both, p, 8);
  return _mm512_castpd_ps(_mm512_set1_pd(both));
}
#elif defined(FS_ISA_avx2)
static const int kPairPixel[16] = {0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15};
FS_INLINE void weave(V a, V b, float* out) {
  FS_EACH {
    _mm256_storeu_ps(out + 16 * i, _mm256_unpacklo_ps(a.q[i], b.q[i]));
    _mm256_storeu_ps(out + 16 * i + 8, _mm256_unpackhi_ps(a.q[i], b.q[i]));
  }
}
FS_INLINE Q q_pair(const float* p) {
  double both;
  memcpy(&both, p, 8);
  return _mm256_castpd_ps(_mm256_set1_pd(both));
}
#else
static const int kPairPixel[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
FS_INLINE void weave(V a, V b, float* out) {
  float x[16], y[16];
  FS_EACH { q_store(x + i * kPart, a.q[i]), q_store(y + i * kPart, b.q[i]); }
  for (int p = 0; p < 16; ++p) out[2 * p] = x[p], out[2 * p + 1] = y[p];
}
#if defined(FS_X86)
FS_INLINE Q q_pair(const float* p) {
  double both;
  memcpy(&both, p, 8);
  return _mm_castpd_ps(_mm_set1_pd(both));
}
#elif defined(FS_ISA_neon)
FS_INLINE Q q_pair(const float* p) { return vcombine_f32(vld1_f32(p), vld1_f32(p)); }
#endif
#endif
FS_INLINE V pair(const float* p) {
  V r;
#if defined(FS_X86) || defined(FS_ISA_neon)
  const Q q = q_pair(p);
  FS_EACH r.q[i] = q;
#else
  FS_EACH r.q[i] = p[i & 1];
#endif
  return r;
}

FS_INLINE void prefetch(const void* p) {
#if defined(_MSC_VER) && defined(FS_X86)
  _mm_prefetch((const char*)p, _MM_HINT_T0);
#elif !defined(_MSC_VER)
  __builtin_prefetch(p);
#else
  (void)p;
#endif
}

FS_INLINE int popcount16(unsigned x) {
#if defined(_MSC_VER)
  x = x - ((x >> 1) & 0x5555u);
  x = (x & 0x3333u) + ((x >> 2) & 0x3333u);
  x = (x + (x >> 4)) & 0x0f0fu;
  return (int)((x + (x >> 8)) & 31u);
#else
  return __builtin_popcount(x);
#endif
}

}  // namespace FS_ISA
