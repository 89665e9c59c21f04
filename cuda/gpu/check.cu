// Which rows of features hold a number that is not finite: their Gaussians are left out.
#include "device.cuh"

struct CheckArgs {
  const float* rows;  // [n, dim]
  uint8_t* out;       // [n] not 0 where one is not finite
  int64_t n, dim;
};

// One warp a row.
FS_KERNEL(256, check_rows, const CheckArgs a) {
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
  if (fs_lane() == 0) a.out[row] = static_cast<uint8_t>(bad);
}
