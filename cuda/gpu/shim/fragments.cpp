// Matrix fragments and halves: what a warp's tensor cores, ldmatrix and conversions would give, lane by lane.
#include "shim.h"

namespace fs_shim {
namespace {

float truncate_tf32(uint32_t bits) { return fs_uint_as_float(bits & ~0x1fffu); }

struct MmaSlot {
  uint32_t a[4], b[2];
  float c[4];
};

// d = a b + c for a warp, given readers of its fragments.
template <int K, class ReadA, class ReadB> void multiply(Slot* slots, ReadA read_a, ReadB read_b) {
  float a[16][K], b[K][8], d[16][8];
  for (int lane = 0; lane < 32; ++lane) {
    MmaSlot s;
    memcpy(&s, slots[lane].bytes, sizeof(s));
    const int g = lane / 4, t = lane % 4;
    read_a(a, s, g, t);
    read_b(b, s, g, t);
    d[g][2 * t] = s.c[0], d[g][2 * t + 1] = s.c[1];
    d[g + 8][2 * t] = s.c[2], d[g + 8][2 * t + 1] = s.c[3];
  }
  for (int row = 0; row < 16; ++row) {
    for (int k = 0; k < K; ++k) {
      for (int column = 0; column < 8; ++column) d[row][column] += a[row][k] * b[k][column];
    }
  }
  for (int lane = 0; lane < 32; ++lane) {
    const int g = lane / 4, t = lane % 4;
    const float out[4] = {d[g][2 * t], d[g][2 * t + 1], d[g + 8][2 * t], d[g + 8][2 * t + 1]};
    memcpy(slots[lane].bytes, out, sizeof(out));
  }
}

template <class Unpack> void multiply_pairs(Slot* slots, Unpack unpack) {
  multiply<16>(
      slots,
      [unpack](float (&a)[16][16], const MmaSlot& s, int g, int t) {
        for (int i = 0; i < 4; ++i) {
          const int row = g + 8 * (i & 1), column = 2 * t + 8 * (i >> 1);
          unpack(s.a[i], a[row][column], a[row][column + 1]);
        }
      },
      [unpack](float (&b)[16][8], const MmaSlot& s, int g, int t) {
        for (int i = 0; i < 2; ++i) unpack(s.b[i], b[2 * t + 8 * i][g], b[2 * t + 8 * i + 1][g]);
      });
}

}  // namespace

void finish_mma_f16(Slot* slots, int) {
  multiply_pairs(slots, [](uint32_t pair, float& lo, float& hi) { fs_unpack_f16(pair, lo, hi); });
}

void finish_mma_bf16(Slot* slots, int) {
  multiply_pairs(slots, [](uint32_t pair, float& lo, float& hi) { fs_unpack_bf16(pair, lo, hi); });
}

void finish_mma_tf32(Slot* slots, int) {
  multiply<8>(
      slots,
      [](float (&a)[16][8], const MmaSlot& s, int g, int t) {
        for (int i = 0; i < 4; ++i) a[g + 8 * (i & 1)][t + 4 * (i >> 1)] = truncate_tf32(s.a[i]);
      },
      [](float (&b)[8][8], const MmaSlot& s, int g, int t) {
        for (int i = 0; i < 2; ++i) b[t + 4 * i][g] = truncate_tf32(s.b[i]);
      });
}

void finish_ldmatrix(Slot* slots, int argument) {
  const int matrices = argument & 0xff;
  const bool transposed = (argument >> 8) != 0;
  uint32_t out[32][4];
  for (int matrix = 0; matrix < matrices; ++matrix) {
    uint16_t rows[8][8];
    for (int row = 0; row < 8; ++row) {
      const void* address;
      memcpy(&address, slots[8 * matrix + row].bytes, sizeof(address));
      memcpy(rows[row], address, sizeof(rows[row]));
    }
    for (int lane = 0; lane < 32; ++lane) {
      const int g = lane / 4, t = lane % 4;
      const uint16_t lo = transposed ? rows[2 * t][g] : rows[g][2 * t];
      const uint16_t hi = transposed ? rows[2 * t + 1][g] : rows[g][2 * t + 1];
      out[lane][matrix] = lo | static_cast<uint32_t>(hi) << 16;
    }
  }
  for (int lane = 0; lane < 32; ++lane) memcpy(slots[lane].bytes, out[lane], 4 * static_cast<size_t>(matrices));
}

uint16_t half_from_float(float x) {
  const uint32_t bits = fs_float_as_uint(x), magnitude = bits & 0x7fffffffu;
  const uint16_t sign = static_cast<uint16_t>(bits >> 16 & 0x8000u);
  if (magnitude > 0x7f800000u) return sign | 0x7fffu;            // NaN
  if (magnitude >= 0x477ff000u) return sign | 0x7c00u;           // rounds to infinity
  if (magnitude < 0x33000001u) return sign;                      // at most half of the smallest subnormal
  if (magnitude < 0x38800000u) {                                 // subnormal: value in units of 2^-24, to nearest even
    const int shift = 126 - static_cast<int>(magnitude >> 23);
    const uint32_t mantissa = (magnitude & 0x7fffffu) | 0x800000u;
    const uint32_t rest = mantissa & ((1u << shift) - 1), half = 1u << (shift - 1);
    uint32_t value = mantissa >> shift;
    value += rest > half || (rest == half && (value & 1));
    return static_cast<uint16_t>(sign | value);
  }
  const uint32_t rounded = magnitude + 0xfffu + (magnitude >> 13 & 1);
  return static_cast<uint16_t>(sign | ((rounded - 0x38000000u) >> 13));
}

float float_from_half(uint16_t h) {
  const uint32_t sign = static_cast<uint32_t>(h & 0x8000u) << 16, exponent = h >> 10 & 31u, mantissa = h & 0x3ffu;
  if (exponent == 31) return fs_uint_as_float(sign | 0x7f800000u | mantissa << 13);
  if (exponent == 0) {
    const float value = static_cast<float>(mantissa) * 5.9604644775390625e-8f;  // 2^-24
    return sign != 0 ? -value : value;
  }
  return fs_uint_as_float(sign | (exponent + 112) << 23 | mantissa << 13);
}

}  // namespace fs_shim
