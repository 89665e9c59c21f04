// The host's meaning of device.cuh: kernels run on the CPU, one block at a time, a block's threads as fibers.
//
// Every barrier and warp collective is a point where fibers may change. What goes wrong is an error with a message
// and the source line, never a hang: lanes that do not all come to a collective, threads at different barriers,
// threads that left while others wait, blocks larger than the kernel's bound. Shared memory is filled with NaN bits
// before each block; asynchronous copies arrive only when they are waited for. See ../README.md.
#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

#define FS_MATRIX_UNITS 1
#define FS_DEVICE inline __attribute__((always_inline, unused))
#define FS_INF (__builtin_inff())
#define FS_NAN (__builtin_nanf(""))

// ---- CUDA's own types and names ----------------------------------------------------------------------------------
#define __restrict__ __restrict
#define __device__
#define __host__
#define __forceinline__ inline
#define __align__(n) alignas(n)

struct uint3 { unsigned x, y, z; };
struct dim3 { unsigned x, y, z; };
struct alignas(8) float2 { float x, y; };
struct float3 { float x, y, z; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(8) int2 { int x, y; };
struct int3 { int x, y, z; };
struct alignas(16) int4 { int x, y, z, w; };
struct alignas(8) uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
static inline float2 make_float2(float x, float y) { return {x, y}; }
static inline float3 make_float3(float x, float y, float z) { return {x, y, z}; }
static inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
static inline int2 make_int2(int x, int y) { return {x, y}; }
static inline int3 make_int3(int x, int y, int z) { return {x, y, z}; }
static inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
static inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
static inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
static inline int min(int a, int b) { return a < b ? a : b; }
static inline int max(int a, int b) { return a > b ? a : b; }
static inline unsigned min(unsigned a, unsigned b) { return a < b ? a : b; }
static inline unsigned max(unsigned a, unsigned b) { return a > b ? a : b; }
static inline int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t max(int64_t a, int64_t b) { return a > b ? a : b; }
static inline float min(float a, float b) { return fminf(a, b); }
static inline float max(float a, float b) { return fmaxf(a, b); }
static inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
static inline float __saturatef(float x) { return fminf(fmaxf(x, 0.0f), 1.0f); }
static inline int __float2int_rd(float x) { return static_cast<int>(floorf(x)); }
static inline int __float2int_ru(float x) { return static_cast<int>(ceilf(x)); }
static inline int __float2int_rn(float x) { return static_cast<int>(rintf(x)); }

// ---- the emulator (shim.cpp) ---------------------------------------------------------------------------------------
#pragma GCC visibility push(default)
namespace fs_shim {

enum Op : int {
  op_syncwarp, op_shfl, op_ballot, op_match, op_mma_f16, op_mma_bf16, op_mma_tf32, op_ldmatrix,
  op_sync, op_sync_or, op_sync_and, op_sync_count
};

// Where a collective stands in the source; all its lanes must name the same place.
struct Site {
  const char* file;
  int line;
};

struct Slot {  // what one lane brings to a collective
  alignas(16) unsigned char bytes[64];
};
using Finish = void (*)(Slot* slots, int argument);

struct Index {
  uint3 thread;
  int lane, warp;
};
extern const Index* here;
extern uint3 block_index;
extern dim3 block_size, grid_size;
extern unsigned char* dynamic_shared;
extern int64_t dynamic_shared_size;

// Brings `size` bytes to the collective; returns the 32 lanes' slots when all have come. `finish` runs once, by the
// last lane. The slots stay valid until this lane's next but one collective.
Slot* exchange(Op op, const void* bytes, int size, Site site, Finish finish = nullptr, int argument = 0);
int barrier(Op op, int predicate, Site site);
void copy_async(void* dst, const void* src, int size, int read, Site site);  // the rest becomes zero
void copy_commit();
void copy_wait(int groups);
// Fills an array with NaN bits, the first time in each block that a thread meets its declaration.
void poison_shared(void* bytes, int64_t size);
extern int64_t block_serial;
[[noreturn]] void fail(Site site, const char* format, ...) __attribute__((format(printf, 2, 3)));
void finish_mma_f16(Slot* slots, int);
void finish_mma_bf16(Slot* slots, int);
void finish_mma_tf32(Slot* slots, int);
void finish_ldmatrix(Slot* slots, int matrices_and_transposed);
uint16_t half_from_float(float x);
float float_from_half(uint16_t h);

}  // namespace fs_shim
#pragma GCC visibility pop

namespace fs_shim {
template <int... I> struct Indices {};
template <int N, int... I> struct MakeIndices : MakeIndices<N - 1, N - 1, I...> {};
template <int... I> struct MakeIndices<0, I...> { using type = Indices<I...>; };
template <class T> struct Plain { using type = T; };
template <class T> struct Plain<const T> { using type = T; };

template <class... A, int... I> inline void call(void (*kernel)(A...), void** args, Indices<I...>) {
  kernel(*static_cast<typename Plain<A>::type*>(args[I])...);
}
template <class... A> inline void call(void (*kernel)(A...), void** args) {
  call(kernel, args, typename MakeIndices<sizeof...(A)>::type{});
}

}  // namespace fs_shim

#define FS_SITE_PARAMETERS const char *fs_file = __builtin_FILE(), int fs_line = __builtin_LINE()
#define FS_SITE (fs_shim::Site{fs_file, fs_line})

#define threadIdx (fs_shim::here->thread)
#define blockIdx (fs_shim::block_index)
#define blockDim (fs_shim::block_size)
#define gridDim (fs_shim::grid_size)

// A kernel NAME exports fs_call_NAME (unpacks arguments, runs one thread) and fs_threads_NAME (its bound).
#define FS_KERNEL(threads, name, ...)                                                                     \
  static void name(__VA_ARGS__);                                                                          \
  extern "C" __attribute__((visibility("default"))) void fs_call_##name(void** args) {                    \
    fs_shim::call(&name, args);                                                                           \
  }                                                                                                       \
  extern "C" __attribute__((visibility("default"))) const int fs_threads_##name;                          \
  const int fs_threads_##name = threads;                                                                  \
  static void name(__VA_ARGS__)
#define FS_KERNEL_OCCUPANCY(threads, blocks, name, ...) FS_KERNEL(threads, name, __VA_ARGS__)

// One block runs at a time, so a static array is a block's shared array.
#define FS_SHARED(type, name, count)     \
  alignas(16) static type name[count];   \
  static int64_t name##_serial;          \
  if (name##_serial != fs_shim::block_serial) name##_serial = fs_shim::block_serial, fs_shim::poison_shared(name, sizeof(name))
#define FS_DYNAMIC_SHARED(type, name) type* const name = reinterpret_cast<type*>(fs_shim::dynamic_shared)

// ---- place -----------------------------------------------------------------------------------------------------
FS_DEVICE unsigned char* fs_dynamic_shared_bytes() { return fs_shim::dynamic_shared; }
FS_DEVICE int fs_lane() { return fs_shim::here->lane; }
FS_DEVICE int fs_warp() { return fs_shim::here->warp; }
FS_DEVICE int64_t fs_global_thread() { return static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; }

// ---- barriers ------------------------------------------------------------------------------------------------------
FS_DEVICE void fs_sync(FS_SITE_PARAMETERS) { fs_shim::barrier(fs_shim::op_sync, 0, FS_SITE); }
FS_DEVICE int fs_sync_or(int p, FS_SITE_PARAMETERS) { return fs_shim::barrier(fs_shim::op_sync_or, p, FS_SITE); }
FS_DEVICE int fs_sync_and(int p, FS_SITE_PARAMETERS) { return fs_shim::barrier(fs_shim::op_sync_and, p, FS_SITE); }
FS_DEVICE int fs_sync_count(int p, FS_SITE_PARAMETERS) {
  return fs_shim::barrier(fs_shim::op_sync_count, p, FS_SITE);
}
FS_DEVICE void fs_syncwarp(FS_SITE_PARAMETERS) { fs_shim::exchange(fs_shim::op_syncwarp, nullptr, 0, FS_SITE); }
FS_DEVICE void fs_threadfence() {}

// ---- warp collectives ------------------------------------------------------------------------------------------------
template <class T> FS_DEVICE T fs_shim_pick(const fs_shim::Slot* slots, int lane) {
  T v;
  memcpy(&v, slots[lane].bytes, sizeof(T));
  return v;
}
template <class T> FS_DEVICE T fs_shfl(T v, int lane, FS_SITE_PARAMETERS) {
  const fs_shim::Slot* slots = fs_shim::exchange(fs_shim::op_shfl, &v, sizeof(T), FS_SITE);
  return fs_shim_pick<T>(slots, lane & 31);
}
template <class T> FS_DEVICE T fs_shfl_up(T v, int delta, FS_SITE_PARAMETERS) {
  const fs_shim::Slot* slots = fs_shim::exchange(fs_shim::op_shfl, &v, sizeof(T), FS_SITE);
  const int from = fs_lane() - delta;
  return fs_shim_pick<T>(slots, from < 0 ? fs_lane() : from);
}
template <class T> FS_DEVICE T fs_shfl_down(T v, int delta, FS_SITE_PARAMETERS) {
  const fs_shim::Slot* slots = fs_shim::exchange(fs_shim::op_shfl, &v, sizeof(T), FS_SITE);
  const int from = fs_lane() + delta;
  return fs_shim_pick<T>(slots, from > 31 ? fs_lane() : from);
}
template <class T> FS_DEVICE T fs_shfl_xor(T v, int mask, FS_SITE_PARAMETERS) {
  const fs_shim::Slot* slots = fs_shim::exchange(fs_shim::op_shfl, &v, sizeof(T), FS_SITE);
  return fs_shim_pick<T>(slots, (fs_lane() ^ mask) & 31);
}
FS_DEVICE uint32_t fs_ballot(int predicate, FS_SITE_PARAMETERS) {
  const int bit = predicate != 0;
  const fs_shim::Slot* slots = fs_shim::exchange(fs_shim::op_ballot, &bit, sizeof(bit), FS_SITE);
  uint32_t mask = 0;
  for (int lane = 0; lane < 32; ++lane) mask |= static_cast<uint32_t>(fs_shim_pick<int>(slots, lane)) << lane;
  return mask;
}
FS_DEVICE int fs_any(int predicate, FS_SITE_PARAMETERS) { return fs_ballot(predicate, fs_file, fs_line) != 0; }
FS_DEVICE int fs_all(int predicate, FS_SITE_PARAMETERS) { return fs_ballot(predicate, fs_file, fs_line) == ~0u; }
FS_DEVICE uint32_t fs_match_any(uint32_t v, FS_SITE_PARAMETERS) {
  const fs_shim::Slot* slots = fs_shim::exchange(fs_shim::op_match, &v, sizeof(v), FS_SITE);
  uint32_t mask = 0;
  for (int lane = 0; lane < 32; ++lane) mask |= static_cast<uint32_t>(fs_shim_pick<uint32_t>(slots, lane) == v) << lane;
  return mask;
}

// ---- atomics: one fiber runs at a time -------------------------------------------------------------------------------
template <class T> FS_DEVICE T fs_shim_add(T* p, T v) {
  const T old = *p;
  *p = old + v;
  return old;
}
FS_DEVICE int fs_atomic_add(int* p, int v) { return fs_shim_add(p, v); }
FS_DEVICE unsigned fs_atomic_add(unsigned* p, unsigned v) { return fs_shim_add(p, v); }
FS_DEVICE float fs_atomic_add(float* p, float v) { return fs_shim_add(p, v); }
FS_DEVICE uint64_t fs_atomic_add(uint64_t* p, uint64_t v) { return fs_shim_add(p, v); }
FS_DEVICE int64_t fs_atomic_add(int64_t* p, int64_t v) { return fs_shim_add(p, v); }
template <class T> FS_DEVICE T fs_shim_set(T* p, T v) {
  const T old = *p;
  *p = v;
  return old;
}
FS_DEVICE int fs_atomic_max(int* p, int v) { return fs_shim_set(p, v > *p ? v : *p); }
FS_DEVICE unsigned fs_atomic_max(unsigned* p, unsigned v) { return fs_shim_set(p, v > *p ? v : *p); }
FS_DEVICE int fs_atomic_min(int* p, int v) { return fs_shim_set(p, v < *p ? v : *p); }
FS_DEVICE unsigned fs_atomic_or(unsigned* p, unsigned v) { return fs_shim_set(p, *p | v); }
FS_DEVICE unsigned fs_atomic_cas(unsigned* p, unsigned expected, unsigned v) {
  return fs_shim_set(p, *p == expected ? v : *p);
}
FS_DEVICE void fs_red_add4(float* p, float x, float y, float z, float w, FS_SITE_PARAMETERS) {
  if ((reinterpret_cast<uintptr_t>(p) & 15u) != 0) {
    fs_shim::fail(FS_SITE, "fs_red_add4: an address that is not aligned to 16 bytes");
  }
  p[0] += x, p[1] += y, p[2] += z, p[3] += w;
}

// ---- loads and mathematics -----------------------------------------------------------------------------------------------
template <class T> FS_DEVICE T fs_ldg(const T* p) { return *p; }
FS_DEVICE float fs_exp2(float x) { return x < -126.0f ? 0.0f : exp2f(x); }
FS_DEVICE float fs_log2(float x) { return log2f(x); }
FS_DEVICE float fs_rcp(float x) { return 1.0f / x; }
FS_DEVICE float fs_rsqrt(float x) { return 1.0f / sqrtf(x); }
FS_DEVICE int fs_popc(uint32_t x) { return __builtin_popcount(x); }
FS_DEVICE int fs_ffs(uint32_t x) { return __builtin_ffs(static_cast<int>(x)); }
FS_DEVICE int fs_clz(uint32_t x) { return x == 0 ? 32 : __builtin_clz(x); }
FS_DEVICE uint32_t fs_float_as_uint(float x) {
  uint32_t bits;
  memcpy(&bits, &x, 4);
  return bits;
}
FS_DEVICE float fs_uint_as_float(uint32_t bits) {
  float x;
  memcpy(&x, &bits, 4);
  return x;
}
FS_DEVICE bool fs_isfinite(float x) { return (fs_float_as_uint(x) & 0x7f800000u) != 0x7f800000u; }
FS_DEVICE uint32_t __float_as_uint(float x) { return fs_float_as_uint(x); }
FS_DEVICE float __uint_as_float(uint32_t x) { return fs_uint_as_float(x); }
FS_DEVICE int __float_as_int(float x) { return static_cast<int>(fs_float_as_uint(x)); }
FS_DEVICE float __int_as_float(int x) { return fs_uint_as_float(static_cast<uint32_t>(x)); }

// ---- halves -----------------------------------------------------------------------------------------------------------------
FS_DEVICE uint16_t fs_f2h(float x) { return fs_shim::half_from_float(x); }
FS_DEVICE float fs_h2f(uint16_t h) { return fs_shim::float_from_half(h); }
FS_DEVICE uint32_t fs_pack_f16(float lo, float hi) { return fs_f2h(lo) | static_cast<uint32_t>(fs_f2h(hi)) << 16; }
FS_DEVICE void fs_unpack_f16(uint32_t h, float& lo, float& hi) {
  lo = fs_h2f(static_cast<uint16_t>(h & 0xffffu));
  hi = fs_h2f(static_cast<uint16_t>(h >> 16));
}
FS_DEVICE uint32_t fs_shim_bf16(float x) {
  const uint32_t bits = fs_float_as_uint(x);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fffu;
  return (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
}
FS_DEVICE uint32_t fs_pack_bf16(float lo, float hi) { return fs_shim_bf16(lo) | fs_shim_bf16(hi) << 16; }
FS_DEVICE void fs_unpack_bf16(uint32_t b, float& lo, float& hi) {
  lo = fs_uint_as_float(b << 16);
  hi = fs_uint_as_float(b & 0xffff0000u);
}
FS_DEVICE uint32_t fs_tf32(float x) {  // to nearest, ties away from zero
  const uint32_t bits = fs_float_as_uint(x);
  return fs_isfinite(x) ? (bits + 0x1000u) & ~0x1fffu : bits;
}

// ---- asynchronous copies: they arrive when waited for ------------------------------------------------------------------
FS_DEVICE void fs_cp_async16(void* dst, const void* src, bool valid = true, FS_SITE_PARAMETERS) {
  fs_shim::copy_async(dst, src, 16, valid ? 16 : 0, FS_SITE);
}
FS_DEVICE void fs_cp_async16_zfill(void* dst, const void* src, int bytes, FS_SITE_PARAMETERS) {
  fs_shim::copy_async(dst, src, 16, bytes, FS_SITE);
}
FS_DEVICE void fs_cp_async8(void* dst, const void* src, bool valid = true, FS_SITE_PARAMETERS) {
  fs_shim::copy_async(dst, src, 8, valid ? 8 : 0, FS_SITE);
}
FS_DEVICE void fs_cp_async4(void* dst, const void* src, bool valid = true, FS_SITE_PARAMETERS) {
  fs_shim::copy_async(dst, src, 4, valid ? 4 : 0, FS_SITE);
}
FS_DEVICE void fs_cp_commit() { fs_shim::copy_commit(); }
template <int N> FS_DEVICE void fs_cp_wait() { fs_shim::copy_wait(N); }

// ---- matrix units ---------------------------------------------------------------------------------------------------------
struct FsShimMma {
  uint32_t a[4], b[2];
  float c[4];
};
FS_DEVICE void fs_shim_mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], const float (&c)[4],
                           fs_shim::Op op, fs_shim::Finish finish, fs_shim::Site site) {
  const FsShimMma mine{{a[0], a[1], a[2], a[3]}, {b[0], b[1]}, {c[0], c[1], c[2], c[3]}};
  const fs_shim::Slot* slots = fs_shim::exchange(op, &mine, sizeof(mine), site, finish);
  memcpy(d, slots[fs_lane()].bytes, sizeof(d));
}
FS_DEVICE void mma_m16n8k16_f16_f32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                                    const float (&c)[4], FS_SITE_PARAMETERS) {
  fs_shim_mma(d, a, b, c, fs_shim::op_mma_f16, fs_shim::finish_mma_f16, FS_SITE);
}
FS_DEVICE void mma_m16n8k16_bf16_f32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                                     const float (&c)[4], FS_SITE_PARAMETERS) {
  fs_shim_mma(d, a, b, c, fs_shim::op_mma_bf16, fs_shim::finish_mma_bf16, FS_SITE);
}
FS_DEVICE void mma_m16n8k8_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], const float (&c)[4],
                                FS_SITE_PARAMETERS) {
  fs_shim_mma(d, a, b, c, fs_shim::op_mma_tf32, fs_shim::finish_mma_tf32, FS_SITE);
}
template <int N>
FS_DEVICE void fs_shim_ldmatrix(uint32_t (&r)[N], const void* row, bool transposed, fs_shim::Site site) {
  if ((reinterpret_cast<uintptr_t>(row) & 15u) != 0) fs_shim::fail(site, "ldmatrix: a row that is not aligned to 16 bytes");
  const fs_shim::Slot* slots =
      fs_shim::exchange(fs_shim::op_ldmatrix, &row, sizeof(row), site, fs_shim::finish_ldmatrix, N | transposed << 8);
  memcpy(r, slots[fs_lane()].bytes, sizeof(r));
}
FS_DEVICE void ldmatrix_x4(uint32_t (&r)[4], const void* row, FS_SITE_PARAMETERS) {
  fs_shim_ldmatrix(r, row, false, FS_SITE);
}
FS_DEVICE void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row, FS_SITE_PARAMETERS) {
  fs_shim_ldmatrix(r, row, true, FS_SITE);
}
FS_DEVICE void ldmatrix_x2(uint32_t (&r)[2], const void* row, FS_SITE_PARAMETERS) {
  fs_shim_ldmatrix(r, row, false, FS_SITE);
}
FS_DEVICE void ldmatrix_x2_trans(uint32_t (&r)[2], const void* row, FS_SITE_PARAMETERS) {
  fs_shim_ldmatrix(r, row, true, FS_SITE);
}
