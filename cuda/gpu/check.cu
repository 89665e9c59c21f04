// Gaussians with a feature that is not finite are left out. Few channels are looked at beforehand (check_rows, excluded in
// project.cu). Many channels are looked at only where they are used: when a sum came out sick (features.cu), their rows are
// checked after all, their entries dropped, and everything is blended once more.
#include "splat.cuh"

struct CheckArgs {
  const float* rows;       // [n, dim]
  uint8_t* bad;            // [n] not 0 where one is not finite
  const int32_t* only_if;  // nothing to do while this is 0; or null
  int64_t n, dim;
};

// One warp a row.
FS_KERNEL(256, check_rows, const CheckArgs a) {
  if (a.only_if && !*a.only_if) return;
  const int64_t row = fs_global_thread() >> 5;
  if (row >= a.n) return;
  const float* from = a.rows + row * a.dim;
  float zero = 0;
  int64_t c = fs_lane();
  for (; c + 96 < a.dim; c += 128) {
    const float v0 = fs_ldg(from + c), v1 = fs_ldg(from + c + 32), v2 = fs_ldg(from + c + 64), v3 = fs_ldg(from + c + 96);
    zero = fmaf(v0, 0.f, fmaf(v1, 0.f, fmaf(v2, 0.f, fmaf(v3, 0.f, zero))));
  }
  for (; c < a.dim; c += 32) zero = fmaf(fs_ldg(from + c), 0.f, zero);
  const int bad = fs_any(!(zero == 0));
  if (fs_lane() == 0) a.bad[row] = static_cast<uint8_t>(bad);
}

struct DropArgs {
  const int32_t* only_if;
  const uint8_t* bad;     // [n]
  const int64_t* firsts;  // [C + 1] the first splat of each camera
  Splat* splats;
  float* means2d;  // [C, n, 2] and so on
  int32_t* radii;
  float *depths, *conics;
  int64_t n, capacity;
  int32_t cameras;
};

// One thread for each splat: those of bad rows reach nothing any more.
FS_KERNEL(256, drop_bad, const DropArgs a) {
  if (!*a.only_if) return;
  const int64_t rank = fs_global_thread();
  if (rank >= min(a.capacity, a.firsts[a.cameras])) return;
  Splat& s = a.splats[rank];
  if (!a.bad[s.id]) return;
  s.floor = FS_INF;
  int camera = 0;
  while (rank >= a.firsts[camera + 1]) ++camera;
  const int64_t slot = camera * a.n + s.id;
  for (int k = 0; k < 2; ++k) a.means2d[2 * slot + k] = 0, a.radii[2 * slot + k] = 0;
  for (int k = 0; k < 3; ++k) a.conics[3 * slot + k] = 0;
  a.depths[slot] = 0;
}

struct GreatestArgs {
  const float* rows;      // [n, dim]
  const int64_t* firsts;  // [C + 1]
  const Splat* splats;
  int32_t* bits;          // [1] of the greatest finite magnitude among the drawn; 0 before
  int64_t dim, capacity;
  int32_t cameras;
};

// One warp a splat.
FS_KERNEL(256, greatest_magnitude, const GreatestArgs a) {
  const int64_t count = min(a.capacity, a.firsts[a.cameras]), step = static_cast<int64_t>(gridDim.x) * 8;
  int most = 0;
  for (int64_t rank = fs_global_thread() >> 5; rank < count; rank += step) {
    const float* row = a.rows + a.splats[rank].id * a.dim;
    for (int64_t c = fs_lane(); c < a.dim; c += 32) {
      const int bits = static_cast<int>(fs_float_as_uint(fs_ldg(row + c)) & 0x7fffffffu);
      if (bits < 0x7f800000) most = max(most, bits);
    }
  }
  for (int d = 16; d; d >>= 1) most = max(most, fs_shfl_xor(most, d));
  if (fs_lane() == 0 && most) fs_atomic_max(a.bits, most);
}
