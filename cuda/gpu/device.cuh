// What every kernel of this folder includes: one vocabulary, two meanings.
//
// Compiled for a GPU (NVRTC or nvcc) the names below are thin wrappers over CUDA built-ins and inline PTX. With
// FS_HOST_SHIM they are emulated on the CPU (shim/shim.h), where a wrong index, a missing barrier or a divergent
// collective is an error that a test shows without a GPU. README.md lists the names and what the emulator checks.
//
// Not used here: <cuda_fp16.h>, <cuda_runtime.h> or any other toolkit header, so that NVRTC needs none.
#pragma once

#ifdef FS_HOST_SHIM
#include "shim/shim.h"
#else

#ifdef __CUDACC_RTC__
typedef signed char int8_t;
typedef unsigned char uint8_t;
typedef short int16_t;
typedef unsigned short uint16_t;
typedef int int32_t;
typedef unsigned int uint32_t;
typedef long long int64_t;
typedef unsigned long long uint64_t;
#else
#include <stdint.h>
#endif

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
#define FS_MATRIX_UNITS 0  // sm_75: no m16n8k16, no tf32, no cp.async; the scalar kernels serve it
#else
#define FS_MATRIX_UNITS 1
#endif

#define FS_DEVICE __device__ __forceinline__
#define FS_INF (__int_as_float(0x7f800000))
#define FS_NAN (__int_as_float(0x7fffffff))

// FS_KERNEL(threads per block, name, parameters...) { body }: an extern "C" kernel. Parameters are pointers, int,
// unsigned, int64_t, uint64_t, float, double or a plain struct; featuresplat/raster/_nvrtc.py reads this line.
#define FS_KERNEL(threads, name, ...) extern "C" __global__ void __launch_bounds__(threads) name(__VA_ARGS__)
// The same, asking the compiler to fit at least `blocks` blocks on a multiprocessor.
#define FS_KERNEL_OCCUPANCY(threads, blocks, name, ...) \
  extern "C" __global__ void __launch_bounds__(threads, blocks) name(__VA_ARGS__)

// FS_SHARED(type, name, count): one array a block. FS_DYNAMIC_SHARED(type, name): the bytes given at launch.
#define FS_SHARED(type, name, count) __shared__ __align__(16) type name[count]
#define FS_DYNAMIC_SHARED(type, name) type* const name = reinterpret_cast<type*>(fs_dynamic_shared_bytes())

FS_DEVICE unsigned char* fs_dynamic_shared_bytes() {
  extern __shared__ __align__(128) unsigned char fs_dynamic_shared[];
  return fs_dynamic_shared;
}

// ---- place -----------------------------------------------------------------------------------------------------
FS_DEVICE int fs_lane() { return static_cast<int>(threadIdx.x & 31u); }  // blocks are one-dimensional in x by warps
FS_DEVICE int fs_warp() { return static_cast<int>(threadIdx.x >> 5); }
FS_DEVICE int64_t fs_global_thread() { return static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; }

// ---- barriers: every thread of the block (or lane of the warp) that has not returned must come ------------------
FS_DEVICE void fs_sync() { __syncthreads(); }
FS_DEVICE int fs_sync_or(int predicate) { return __syncthreads_or(predicate); }
FS_DEVICE int fs_sync_and(int predicate) { return __syncthreads_and(predicate); }
FS_DEVICE int fs_sync_count(int predicate) { return __syncthreads_count(predicate); }
FS_DEVICE void fs_syncwarp() { __syncwarp(); }
FS_DEVICE void fs_threadfence() { __threadfence(); }

// ---- warp collectives: all 32 lanes ------------------------------------------------------------------------------
// T: int, unsigned, float, int64_t, uint64_t, double.
template <class T> FS_DEVICE T fs_shfl(T v, int lane) { return __shfl_sync(0xffffffffu, v, lane); }
template <class T> FS_DEVICE T fs_shfl_up(T v, int delta) { return __shfl_up_sync(0xffffffffu, v, delta); }
template <class T> FS_DEVICE T fs_shfl_down(T v, int delta) { return __shfl_down_sync(0xffffffffu, v, delta); }
template <class T> FS_DEVICE T fs_shfl_xor(T v, int mask) { return __shfl_xor_sync(0xffffffffu, v, mask); }
FS_DEVICE uint32_t fs_ballot(int predicate) { return __ballot_sync(0xffffffffu, predicate); }
FS_DEVICE int fs_any(int predicate) { return __any_sync(0xffffffffu, predicate); }
FS_DEVICE int fs_all(int predicate) { return __all_sync(0xffffffffu, predicate); }
FS_DEVICE uint32_t fs_match_any(uint32_t v) { return __match_any_sync(0xffffffffu, v); }

// ---- atomics: each returns the old value -------------------------------------------------------------------------
FS_DEVICE int fs_atomic_add(int* p, int v) { return atomicAdd(p, v); }
FS_DEVICE unsigned fs_atomic_add(unsigned* p, unsigned v) { return atomicAdd(p, v); }
FS_DEVICE float fs_atomic_add(float* p, float v) { return atomicAdd(p, v); }
FS_DEVICE uint64_t fs_atomic_add(uint64_t* p, uint64_t v) {
  return atomicAdd(reinterpret_cast<unsigned long long*>(p), static_cast<unsigned long long>(v));
}
FS_DEVICE int64_t fs_atomic_add(int64_t* p, int64_t v) {
  return static_cast<int64_t>(
      atomicAdd(reinterpret_cast<unsigned long long*>(p), static_cast<unsigned long long>(v)));
}
FS_DEVICE int fs_atomic_max(int* p, int v) { return atomicMax(p, v); }
FS_DEVICE unsigned fs_atomic_max(unsigned* p, unsigned v) { return atomicMax(p, v); }
FS_DEVICE int fs_atomic_min(int* p, int v) { return atomicMin(p, v); }
FS_DEVICE unsigned fs_atomic_or(unsigned* p, unsigned v) { return atomicOr(p, v); }
FS_DEVICE unsigned fs_atomic_cas(unsigned* p, unsigned expected, unsigned v) { return atomicCAS(p, expected, v); }
// p[0..3] += x, y, z, w, without the old values; p aligned to 16 bytes. One instruction on sm_90 and newer.
FS_DEVICE void fs_red_add4(float* p, float x, float y, float z, float w) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("red.global.add.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(p), "f"(x), "f"(y), "f"(z), "f"(w) : "memory");
#else
  atomicAdd(p, x), atomicAdd(p + 1, y), atomicAdd(p + 2, z), atomicAdd(p + 3, w);
#endif
}

// ---- loads and mathematics ---------------------------------------------------------------------------------------
template <class T> FS_DEVICE T fs_ldg(const T* p) { return __ldg(p); }
FS_DEVICE float fs_exp2(float x) {  // 2 ulp; subnormal results are zero
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
FS_DEVICE float fs_log2(float x) {
  float y;
  asm("lg2.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
FS_DEVICE float fs_rcp(float x) {  // 1 ulp
  float y;
  asm("rcp.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
FS_DEVICE float fs_rsqrt(float x) { return rsqrtf(x); }  // 2 ulp
FS_DEVICE int fs_popc(uint32_t x) { return __popc(x); }
FS_DEVICE int fs_ffs(uint32_t x) { return __ffs(x); }  // 1 + index of the lowest set bit; 0 when there is none
FS_DEVICE int fs_clz(uint32_t x) { return __clz(x); }
FS_DEVICE uint32_t fs_float_as_uint(float x) { return __float_as_uint(x); }
FS_DEVICE float fs_uint_as_float(uint32_t x) { return __uint_as_float(x); }
FS_DEVICE bool fs_isfinite(float x) { return (__float_as_uint(x) & 0x7f800000u) != 0x7f800000u; }

// ---- halves, as raw bits -----------------------------------------------------------------------------------------
FS_DEVICE uint32_t fs_pack_f16(float lo, float hi) {  // round to nearest even; lo in the lower 16 bits
  uint32_t r;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(hi), "f"(lo));
  return r;
}
FS_DEVICE uint32_t fs_pack_bf16(float lo, float hi) {  // round to nearest even; lo in the lower 16 bits
#if FS_MATRIX_UNITS
  uint32_t r;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(hi), "f"(lo));
  return r;
#else
  const uint32_t a = __float_as_uint(lo), b = __float_as_uint(hi);  // finite values only
  return ((a + 0x7fffu + (a >> 16 & 1u)) >> 16) | ((b + 0x7fffu + (b >> 16 & 1u)) & 0xffff0000u);
#endif
}
FS_DEVICE uint16_t fs_f2h(float x) {
  uint16_t r;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(r) : "f"(x));
  return r;
}
FS_DEVICE float fs_h2f(uint16_t h) {
  float x;
  asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(h));
  return x;
}
FS_DEVICE void fs_unpack_f16(uint32_t h, float& lo, float& hi) {
  lo = fs_h2f(static_cast<uint16_t>(h & 0xffffu));
  hi = fs_h2f(static_cast<uint16_t>(h >> 16));
}
FS_DEVICE void fs_unpack_bf16(uint32_t b, float& lo, float& hi) {
  lo = __uint_as_float(b << 16);
  hi = __uint_as_float(b & 0xffff0000u);
}
FS_DEVICE uint32_t fs_tf32(float x) {  // the nearest tf32, as float bits
#if FS_MATRIX_UNITS
  uint32_t r;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(r) : "f"(x));
  return r;
#else
  return __float_as_uint(x);
#endif
}

// ---- asynchronous copies from global to shared memory (plain copies below sm_80) ---------------------------------
FS_DEVICE uint32_t fs_shared_address(const void* p) { return static_cast<uint32_t>(__cvta_generic_to_shared(p)); }
// 16 bytes; both sides aligned to 16. With valid = false, 16 zero bytes (src is not read but must be a legal pointer).
FS_DEVICE void fs_cp_async16(void* dst, const void* src, bool valid = true) {
#if FS_MATRIX_UNITS
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(fs_shared_address(dst)), "l"(src),
               "r"(valid ? 16 : 0)
               : "memory");
#else
  *static_cast<uint4*>(dst) = valid ? *static_cast<const uint4*>(src) : make_uint4(0, 0, 0, 0);
#endif
}
// The same with only the first `bytes` (0..16) read and the rest zero.
FS_DEVICE void fs_cp_async16_zfill(void* dst, const void* src, int bytes) {
#if FS_MATRIX_UNITS
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(fs_shared_address(dst)), "l"(src), "r"(bytes)
               : "memory");
#else
  for (int i = 0; i < 16; ++i) {
    static_cast<uint8_t*>(dst)[i] = i < bytes ? static_cast<const uint8_t*>(src)[i] : static_cast<uint8_t>(0);
  }
#endif
}
FS_DEVICE void fs_cp_async8(void* dst, const void* src, bool valid = true) {
#if FS_MATRIX_UNITS
  asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;" ::"r"(fs_shared_address(dst)), "l"(src),
               "r"(valid ? 8 : 0)
               : "memory");
#else
  *static_cast<uint2*>(dst) = valid ? *static_cast<const uint2*>(src) : make_uint2(0, 0);
#endif
}
FS_DEVICE void fs_cp_async4(void* dst, const void* src, bool valid = true) {
#if FS_MATRIX_UNITS
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(fs_shared_address(dst)), "l"(src),
               "r"(valid ? 4 : 0)
               : "memory");
#else
  *static_cast<uint32_t*>(dst) = valid ? *static_cast<const uint32_t*>(src) : 0u;
#endif
}
FS_DEVICE void fs_cp_commit() {
#if FS_MATRIX_UNITS
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
// Until at most N of this thread's committed groups are under way. Other threads' copies need a barrier after it.
template <int N> FS_DEVICE void fs_cp_wait() {
#if FS_MATRIX_UNITS
  asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
#endif
}

// ---- matrix units: a warp computes d = a b + c (d may be c); fragments are PTX's --------------------------------------------
// With g = lane / 4, t = lane % 4 (PTX ISA, "Matrix fragments for mma.m16n8k16 / m16n8k8"):
//   f16 and bf16 a (16x16, two per word): a[0] = row g, columns 2t, 2t+1; a[1] = row g+8; a[2] = row g, columns 2t+8, +9;
//   a[3] = row g+8, columns 2t+8, +9.   b (16x8): b[0] = rows 2t, 2t+1 of column g; b[1] = rows 2t+8, 2t+9.
//   c, d (16x8): [0], [1] = row g, columns 2t, 2t+1; [2], [3] = row g+8.
//   tf32 a (16x8): a[0] = (g, t), a[1] = (g+8, t), a[2] = (g, t+4), a[3] = (g+8, t+4); b (8x8): b[0] = (t, g),
//   b[1] = (t+4, g). The units ignore the lower 13 bits of a tf32 operand: round with fs_tf32.
FS_DEVICE void mma_m16n8k16_f16_f32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                                    const float (&c)[4]) {
#if FS_MATRIX_UNITS
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
               "{%10,%11,%12,%13};"
               : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "f"(c[0]), "f"(c[1]), "f"(c[2]),
                 "f"(c[3]));
#else
  asm volatile("trap;");
#endif
}
FS_DEVICE void mma_m16n8k16_bf16_f32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                                     const float (&c)[4]) {
#if FS_MATRIX_UNITS
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
               "{%10,%11,%12,%13};"
               : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "f"(c[0]), "f"(c[1]), "f"(c[2]),
                 "f"(c[3]));
#else
  asm volatile("trap;");
#endif
}
FS_DEVICE void mma_m16n8k8_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], const float (&c)[4]) {
#if FS_MATRIX_UNITS
  asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
               "{%10,%11,%12,%13};"
               : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "f"(c[0]), "f"(c[1]), "f"(c[2]),
                 "f"(c[3]));
#else
  asm volatile("trap;");
#endif
}

// ldmatrix: 8x8 matrices of 16-bit elements from shared memory. Lanes 8m..8m+7 give the addresses (aligned to 16) of
// the rows of matrix m; lane gets from each matrix row lane/4, columns 2(lane%4), +1; transposed with _trans: rows
// 2(lane%4), +1 of column lane/4. x2 uses the addresses of lanes 0-15 (the others must still be legal).
FS_DEVICE void ldmatrix_x4(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(fs_shared_address(row))
               : "memory");
}
FS_DEVICE void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(fs_shared_address(row))
               : "memory");
}
FS_DEVICE void ldmatrix_x2(uint32_t (&r)[2], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0,%1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(fs_shared_address(row))
               : "memory");
}
FS_DEVICE void ldmatrix_x2_trans(uint32_t (&r)[2], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(fs_shared_address(row))
               : "memory");
}

#endif  // FS_HOST_SHIM
