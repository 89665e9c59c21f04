// Kernels of test_shim.py: each shows one thing the emulator must do, or one mistake that it must catch.
#include "device.cuh"

#ifndef SCALE
#define SCALE 1
#endif

FS_KERNEL(1024, places, int* thread, int* block, int* lane, int* warp) {
  const int size = static_cast<int>(blockDim.x * blockDim.y);
  const int t = static_cast<int>(threadIdx.x + blockDim.x * threadIdx.y);
  const int b = static_cast<int>(blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z));
  const int i = b * size + t;
  thread[i] = SCALE * t;
  block[i] = b;
  if (blockDim.y == 1) lane[i] = fs_lane(), warp[i] = fs_warp();
}

FS_KERNEL(64, shuffles, const float* in, float* out) {
  const int i = static_cast<int>(fs_global_thread()), n = static_cast<int>(gridDim.x * blockDim.x);
  const float v = in[i];
  out[i] = fs_shfl(v, 5);
  out[n + i] = fs_shfl_up(v, 3);
  out[2 * n + i] = fs_shfl_down(v, 4);
  out[3 * n + i] = fs_shfl_xor(v, 9);
  out[4 * n + i] = static_cast<float>(fs_shfl(static_cast<double>(v) + i, fs_lane() * 7));
  out[5 * n + i] = static_cast<float>(fs_shfl(static_cast<int64_t>(i) << 33, 31 - fs_lane()) >> 33);
}

FS_KERNEL(64, votes, const int* in, uint32_t* out) {
  const int i = static_cast<int>(fs_global_thread()), n = static_cast<int>(gridDim.x * blockDim.x);
  out[i] = fs_ballot(in[i] > 3);
  out[n + i] = static_cast<uint32_t>(fs_any(in[i] > 8));
  out[2 * n + i] = static_cast<uint32_t>(fs_all(in[i] >= 0));
  out[3 * n + i] = fs_match_any(static_cast<uint32_t>(in[i]));
}

// Sums of a block by a tree in shared memory, and the three barriers that answer.
FS_KERNEL(256, block_sums, const float* in, float* sums, int* answers) {
  FS_SHARED(float, s, 256);
  const int t = static_cast<int>(threadIdx.x);
  s[t] = in[fs_global_thread()];
  fs_sync();
  for (int half = 128; half > 0; half /= 2) {
    if (t < half) s[t] += s[t + half];
    fs_sync();
  }
  if (t == 0) sums[blockIdx.x] = s[0];
  const int some = fs_sync_or(t == 77), every = fs_sync_and(t != 77), count = fs_sync_count(t % 3 == 0);
  if (t == 9) answers[3 * blockIdx.x] = some, answers[3 * blockIdx.x + 1] = every, answers[3 * blockIdx.x + 2] = count;
}

// Threads that return do not hold up the barriers of the others.
FS_KERNEL(64, early_return, int* out) {
  if (threadIdx.x >= 32) return;
  fs_sync();
  out[threadIdx.x] = fs_sync_count(1);
}

FS_KERNEL(128, atomics, int* i32, unsigned* u32, int64_t* i64, uint64_t* u64, float* f32, float* four) {
  const int t = static_cast<int>(threadIdx.x);
  fs_atomic_add(i32, -t);
  fs_atomic_max(i32 + 1, t * 3 % 128);
  fs_atomic_min(i32 + 2, t * 3 % 128 - 7);
  fs_atomic_add(u32, 1u);
  fs_atomic_or(u32 + 1, 1u << (t % 32));
  fs_atomic_cas(u32 + 2, static_cast<unsigned>(t), static_cast<unsigned>(t + 1));
  u32[3 + fs_atomic_add(u32 + 140, 1u)] = 7u;  // each old value once
  fs_atomic_add(i64, static_cast<int64_t>(-1) << 33);
  fs_atomic_add(u64, static_cast<uint64_t>(1) << 33);
  fs_atomic_add(f32, 0.5f);
  fs_red_add4(four, 1.f, 2.f, 3.f, 4.f);
}

FS_KERNEL(32, dynamic_shared, float* out, int n) {
  FS_DYNAMIC_SHARED(float, s);
  for (int i = fs_lane(); i < n; i += 32) out[i] = s[i];  // nothing was written: NaN
  fs_syncwarp();
  for (int i = fs_lane(); i < n; i += 32) s[i] = static_cast<float>(i);
  fs_syncwarp();
  for (int i = fs_lane(); i < n; i += 32) out[n + i] = s[n - 1 - i];
}

struct Given {
  const float* in;
  float* out;
  int64_t n;
  float add;
  int times;
};
FS_KERNEL_OCCUPANCY(32, 2, by_struct, const Given g) {
  if (fs_lane() < g.n) g.out[fs_lane()] = g.in[fs_lane()] * static_cast<float>(g.times) + g.add;
}

FS_KERNEL(32, mixed_arguments, double* out, bool flag, int a, unsigned b, int64_t c, uint64_t d, float e, double f,
          const float* none) {
  if (fs_lane() == 0) {
    out[0] = flag, out[1] = a, out[2] = b, out[3] = static_cast<double>(c), out[4] = static_cast<double>(d);
    out[5] = e, out[6] = f, out[7] = none == nullptr;
  }
}

FS_KERNEL(32, conversions, const float* in, uint32_t* f16, uint32_t* bf16, uint32_t* tf32, float* back, int n) {
  for (int i = fs_lane(); i < n; i += 32) {
    f16[i] = fs_pack_f16(in[i], -in[i]);
    bf16[i] = fs_pack_bf16(in[i], -in[i]);
    tf32[i] = fs_tf32(in[i]);
    fs_unpack_f16(f16[i], back[4 * i], back[4 * i + 1]);
    fs_unpack_bf16(bf16[i], back[4 * i + 2], back[4 * i + 3]);
  }
}

FS_KERNEL(32, mathematics, const float* in, float* out, int n) {
  for (int i = fs_lane(); i < n; i += 32) {
    const float x = in[i];
    out[6 * i] = fs_exp2(x);
    out[6 * i + 1] = fs_log2(fabsf(x) + 0.25f);
    out[6 * i + 2] = fs_rcp(x + 1e-3f);
    out[6 * i + 3] = fs_rsqrt(fabsf(x) + 0.5f);
    out[6 * i + 4] = static_cast<float>(fs_popc(fs_float_as_uint(x)) + 100 * fs_clz(static_cast<uint32_t>(i)) +
                                        10000 * fs_ffs(static_cast<uint32_t>(i)));
    out[6 * i + 5] = static_cast<float>(fs_isfinite(x));
  }
}

// One product a warp. a [16, K] and b [K, 8] row-major float, c and d [16, 8].
FS_KERNEL(32, multiply_f16, const float* a, const float* b, const float* c, float* d, int bf16) {
  const int g = fs_lane() / 4, t = fs_lane() % 4;
  uint32_t fa[4], fb[2];
  float acc[4];
  for (int i = 0; i < 4; ++i) {
    const float* at = a + 16 * (g + 8 * (i & 1)) + 2 * t + 8 * (i >> 1);
    fa[i] = bf16 ? fs_pack_bf16(at[0], at[1]) : fs_pack_f16(at[0], at[1]);
    acc[i] = c[8 * (g + 8 * (i >> 1)) + 2 * t + (i & 1)];
  }
  for (int i = 0; i < 2; ++i) {
    const float* at = b + 8 * (2 * t + 8 * i) + g;
    fb[i] = bf16 ? fs_pack_bf16(at[0], at[8]) : fs_pack_f16(at[0], at[8]);
  }
  if (bf16) mma_m16n8k16_bf16_f32(acc, fa, fb, acc);
  else mma_m16n8k16_f16_f32(acc, fa, fb, acc);
  for (int i = 0; i < 4; ++i) d[8 * (g + 8 * (i >> 1)) + 2 * t + (i & 1)] = acc[i];
}

FS_KERNEL(32, multiply_tf32, const float* a, const float* b, const float* c, float* d) {
  const int g = fs_lane() / 4, t = fs_lane() % 4;
  uint32_t fa[4], fb[2];
  float acc[4], out[4];
  for (int i = 0; i < 4; ++i) {
    fa[i] = fs_float_as_uint(a[8 * (g + 8 * (i & 1)) + t + 4 * (i >> 1)]);
    acc[i] = c[8 * (g + 8 * (i >> 1)) + 2 * t + (i & 1)];
  }
  for (int i = 0; i < 2; ++i) fb[i] = fs_float_as_uint(b[8 * (t + 4 * i) + g]);
  mma_m16n8k8_tf32(out, fa, fb, acc);
  for (int i = 0; i < 4; ++i) d[8 * (g + 8 * (i >> 1)) + 2 * t + (i & 1)] = out[i];
}

// a [16, 16] and b [16, 8] as halves, brought by ldmatrix: a by x4; b, stored by rows, by x2 transposed, and again from
// b [8, 16] stored by columns, by x2. Both products, and an x4 transposed load of a as it arrives.
FS_KERNEL(32, multiply_ldmatrix, const uint16_t* a, const uint16_t* b, const uint16_t* bt, float* d, uint32_t* at) {
  FS_SHARED(uint16_t, sa, 16 * 24);  // rows of 24: 48 bytes, a multiple of 16
  FS_SHARED(uint16_t, sb, 16 * 8);
  FS_SHARED(uint16_t, sbt, 8 * 24);
  const int lane = fs_lane();
  for (int i = lane; i < 256; i += 32) sa[24 * (i / 16) + i % 16] = a[i];
  for (int i = lane; i < 128; i += 32) sb[i] = b[i];
  for (int i = lane; i < 128; i += 32) sbt[24 * (i / 16) + i % 16] = bt[i];
  fs_syncwarp();
  uint32_t fa[4], fb[2], fc[2], ta[4];
  const int row = lane % 16, half = lane / 16;
  ldmatrix_x4(fa, sa + 24 * row + 8 * half);
  ldmatrix_x4_trans(ta, sa + 24 * row + 8 * half);
  ldmatrix_x2_trans(fb, sb + 8 * row);
  ldmatrix_x2(fc, sbt + 24 * (lane % 8) + 8 * (lane / 8 % 2));
  float one[4] = {0.f, 0.f, 0.f, 0.f}, two[4] = {0.f, 0.f, 0.f, 0.f};
  mma_m16n8k16_f16_f32(one, fa, fb, one);
  mma_m16n8k16_f16_f32(two, fa, fc, two);
  const int g = lane / 4, t = lane % 4;
  for (int i = 0; i < 4; ++i) {
    d[8 * (g + 8 * (i >> 1)) + 2 * t + (i & 1)] = one[i];
    d[128 + 8 * (g + 8 * (i >> 1)) + 2 * t + (i & 1)] = two[i];
    at[4 * lane + i] = ta[i];
  }
}

FS_KERNEL(32, copies, const float* in, float* out, int wait) {
  FS_SHARED(float, s, 32 * 8);
  float* mine = s + 8 * fs_lane();
  fs_cp_async16(mine, in + 8 * fs_lane());
  fs_cp_commit();
  fs_cp_async8(mine + 4, in + 8 * fs_lane() + 4, fs_lane() % 2 == 0);
  fs_cp_async4(mine + 6, in + 8 * fs_lane() + 6);
  fs_cp_async4(mine + 7, in + 8 * fs_lane() + 7, false);
  fs_cp_commit();
  if (wait == 1) fs_cp_wait<1>();
  if (wait == 0) fs_cp_wait<0>();
  for (int i = 0; i < 8; ++i) out[8 * fs_lane() + i] = mine[i];
}

FS_KERNEL(32, zero_filled, const float* in, float* out) {
  FS_SHARED(float, s, 32 * 4);
  fs_cp_async16_zfill(s + 4 * fs_lane(), in + 4 * fs_lane(), 4 * (fs_lane() % 5));
  fs_cp_commit();
  fs_cp_wait<0>();
  for (int i = 0; i < 4; ++i) out[4 * fs_lane() + i] = s[4 * fs_lane() + i];
}

// ---- mistakes ------------------------------------------------------------------------------------------------------

FS_KERNEL(64, lanes_part, float* out) {  // half a warp shuffles, the other half goes on to the barrier
  float v = static_cast<float>(fs_lane());
  if (fs_lane() < 16) v = fs_shfl_xor(v, 1);
  fs_sync();
  out[threadIdx.x] = v;
}

FS_KERNEL(32, different_collectives, float* out) {
  float v = static_cast<float>(fs_lane());
  if (fs_lane() < 16) v = fs_shfl_xor(v, 1);
  else v = static_cast<float>(fs_ballot(1));
  out[threadIdx.x] = v;
}

FS_KERNEL(32, different_shuffles, float* out) {
  float v = static_cast<float>(fs_lane());
  if (fs_lane() < 16) v = fs_shfl_xor(v, 1);
  else v = fs_shfl_xor(v, 2);
  out[threadIdx.x] = v;
}

FS_KERNEL(32, lane_returned, float* out) {
  if (fs_lane() == 3) return;
  out[threadIdx.x] = fs_shfl_xor(1.f, 1);
}

FS_KERNEL(64, different_barriers, float* out) {
  if (threadIdx.x < 32) fs_sync();
  else fs_sync();
  out[threadIdx.x] = 1.f;
}

// Reverses 64 numbers through shared memory; without the barrier it reads what is not there yet.
FS_KERNEL(64, missing_barrier, const float* in, float* out) {
  FS_SHARED(float, s, 64);
  s[threadIdx.x] = in[threadIdx.x];
#ifdef WITH_BARRIER
  fs_sync();
#endif
  out[threadIdx.x] = s[63 - threadIdx.x];
}

// Rotates 64 numbers twice; without the second barrier one warp overwrites what another has still to read.
FS_KERNEL(64, missing_second_barrier, const float* in, float* out) {
  FS_SHARED(float, s, 64);
  float v = in[threadIdx.x];
  for (int round = 0; round < 2; ++round) {
    s[threadIdx.x] = v;
    fs_sync();
    v = s[(threadIdx.x + 1) % 64];
#ifdef WITH_BARRIER
    fs_sync();
#endif
  }
  out[threadIdx.x] = v;
}

// The same within a warp: lanes do not move in step.
FS_KERNEL(32, missing_syncwarp, const float* in, float* out) {
  FS_SHARED(float, s, 32);
  s[fs_lane()] = in[fs_lane()];
#ifdef WITH_BARRIER
  fs_syncwarp();
#endif
  out[fs_lane()] = s[31 - fs_lane()];
}

FS_KERNEL(32, misaligned_copy, const float* in) {
  FS_SHARED(float, s, 256);
  fs_cp_async16(s + 1, in);
}

FS_KERNEL(32, misaligned_matrix, float* out) {
  FS_SHARED(uint16_t, s, 1024);
  uint32_t r[4];
  ldmatrix_x4(r, s + 12 * fs_lane());
  out[0] = static_cast<float>(r[0]);
}

FS_KERNEL(32, out_of_bounds, float* out, int dynamic, int i) {
  FS_SHARED(float, s, 32);
  FS_DYNAMIC_SHARED(float, d);
  if (dynamic) d[i + fs_lane()] = 1.f;
  else s[i + fs_lane()] = 1.f;
  fs_syncwarp();
  out[fs_lane()] = dynamic ? d[fs_lane()] : s[fs_lane()];
}
