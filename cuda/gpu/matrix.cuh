// Matrix products of float32 accuracy on 16-bit and tf32 matrix units: an operand is the sum of a high and a low part, and
// the product of the two low parts is left out. bfloat16 keeps float32's range, so nothing needs scaling: the error of a
// product is about 2^-17 of it; with tf32 it is 2^-21.
#pragma once
#include "device.cuh"

// Two numbers as the sum of two pairs of bfloat16.
FS_DEVICE void split_pair(float x, float y, uint32_t& high, uint32_t& low) {
  high = fs_pack_bf16(x, y);
  low = fs_pack_bf16(x - fs_uint_as_float(high << 16), y - fs_uint_as_float(high & 0xffff0000u));
}

FS_DEVICE void split_tf32(float x, uint32_t& high, uint32_t& low) {
  high = fs_tf32(x);
  low = fs_tf32(x - fs_uint_as_float(high));
}

FS_DEVICE void multiply_split(float (&d)[4], const uint32_t (&ah)[4], const uint32_t (&al)[4], const uint32_t (&bh)[2],
                              const uint32_t (&bl)[2]) {
  mma_m16n8k16_bf16_f32(d, al, bh, d);
  mma_m16n8k16_bf16_f32(d, ah, bl, d);
  mma_m16n8k16_bf16_f32(d, ah, bh, d);
}

#ifndef ALIGNED
#define ALIGNED 0  // rows of channels start at multiples of 16 bytes, and their number is a multiple of 4
#endif

// Four channels of a row of `dim`; zeros beyond its end.
FS_DEVICE float4 load_channels(const float* row, int64_t channel, int64_t dim, bool valid) {
  float4 v = make_float4(0, 0, 0, 0);
  if (!valid || channel >= dim) return v;
#if ALIGNED
  v = fs_ldg(reinterpret_cast<const float4*>(row + channel));
#else
  v.x = fs_ldg(row + channel);
  if (channel + 1 < dim) v.y = fs_ldg(row + channel + 1);
  if (channel + 2 < dim) v.z = fs_ldg(row + channel + 2);
  if (channel + 3 < dim) v.w = fs_ldg(row + channel + 3);
#endif
  return v;
}
