// (1 - w) |x - y| + w (1 - SSIM(x, y)), summed over an image and differentiated in x: the device's loops for the
// formulas of ../ssim.h. A block has one 16x16 tile of one channel; its window reaches 5 pixels further on each side,
// where the images continue as zeros past their borders.
#include "device.cuh"

struct SsimArgs {
  const float* render;  // x [height, width, channels]
  const float* truth;   // y, the same shape
  const float* weight;  // the same shape, zeros and ones, or null for all ones
  float* maps;          // [3, height, width, channels]: R, Q, P; null without a gradient
  double* losses;       // [blocks] the share of each tile
  float* grad;          // [height, width, channels]
  int32_t height, width, channels;
  float dssim, scale;  // w, and what every sum is multiplied by
};

constexpr int kTile = 16, kReach = 5, kTaps = 11, kSide = kTile + 2 * kReach;
constexpr float kC1 = 0.01f * 0.01f, kC2 = 0.03f * 0.03f;

// exp(-(i - 5)^2 / 4.5), normalised.
FS_DEVICE float tap(int i) {
  const float window[6] = {0.266011725f, 0.213005538f, 0.10936069f, 0.0360007721f, 0.00759875814f, 0.00102838008f};
  return window[i < kReach ? kReach - i : i - kReach];
}

// Where a pixel of this block's channel lies.
FS_DEVICE int64_t place(const SsimArgs& a, int x, int y) {
  return (static_cast<int64_t>(y) * a.width + x) * a.channels + static_cast<int>(blockIdx.z);
}

// The tile of an image with its surroundings, zeros outside of the image.
FS_DEVICE void load_tile(const SsimArgs& a, const float* image, float* tile) {
  const int left = static_cast<int>(blockIdx.x) * kTile - kReach, top = static_cast<int>(blockIdx.y) * kTile - kReach;
  for (int i = static_cast<int>(threadIdx.x); i < kSide * kSide; i += kTile * kTile) {
    const int x = left + i % kSide, y = top + i / kSide;
    const bool inside = x >= 0 && x < a.width && y >= 0 && y < a.height;
    tile[i] = inside ? fs_ldg(image + place(a, x, y)) : 0.f;
  }
}

// Down one column of [kSide, kTile] horizontal sums.
FS_DEVICE float down(const float* sums, int x, int y) {
  float total = 0.f;
#pragma unroll
  for (int k = 0; k < kTaps; ++k) total = fmaf(tap(k), sums[(y + k) * kTile + x], total);
  return total;
}

FS_KERNEL(256, ssim_maps, const SsimArgs a) {
  FS_SHARED(float, xs, kSide * kSide);
  FS_SHARED(float, ys, kSide * kSide);
  FS_SHARED(float, sums, 5 * kSide * kTile);
  FS_SHARED(double, shares, 8);
  constexpr int plane = kSide * kTile;
  load_tile(a, a.render, xs);
  load_tile(a, a.truth, ys);
  fs_sync();
  for (int i = static_cast<int>(threadIdx.x); i < plane; i += kTile * kTile) {
    const int at = i / kTile * kSide + i % kTile;
    float m = 0.f, n = 0.f, xx = 0.f, yy = 0.f, xy = 0.f;
#pragma unroll
    for (int k = 0; k < kTaps; ++k) {
      const float x = xs[at + k], y = ys[at + k], gx = tap(k) * x, gy = tap(k) * y;
      m += gx, n += gy;
      xx = fmaf(gx, x, xx), yy = fmaf(gy, y, yy), xy = fmaf(gx, y, xy);
    }
    sums[i] = m, sums[plane + i] = n, sums[2 * plane + i] = xx, sums[3 * plane + i] = yy, sums[4 * plane + i] = xy;
  }
  fs_sync();
  const int tx = static_cast<int>(threadIdx.x) % kTile, ty = static_cast<int>(threadIdx.x) / kTile;
  const int px = static_cast<int>(blockIdx.x) * kTile + tx, py = static_cast<int>(blockIdx.y) * kTile + ty;
  float share = 0.f;
  if (px < a.width && py < a.height) {
    const int64_t at = place(a, px, py);
    const float m = down(sums, tx, ty), n = down(sums + plane, tx, ty);
    const float xx = down(sums + 2 * plane, tx, ty), yy = down(sums + 3 * plane, tx, ty);
    const float xy = down(sums + 4 * plane, tx, ty);
    const float product = m * n, squares = fmaf(m, m, n * n);
    const float a1 = fmaf(2.f, product, kC1), a2 = fmaf(2.f, xy - product, kC2);
    const float b1 = squares + kC1, b2 = xx + yy - squares + kC2;
    const float inverse = 1.f / (b1 * b2), s = a1 * a2 * inverse;
    const float weight = a.weight == nullptr ? 1.f : fs_ldg(a.weight + at);
    const int centre = (ty + kReach) * kSide + tx + kReach;
    share = weight * ((1.f - a.dssim) * fabsf(xs[centre] - ys[centre]) + a.dssim * (1.f - s));
    if (a.maps != nullptr) {
      const float factor = -weight * a.dssim * a.scale;
      const float dxy = 2.f * a1 * inverse, dxx = -s * b1 * inverse;
      const float dm = 2.f * (n * a2 * inverse - m * s * b2 * inverse) - n * dxy - 2.f * m * dxx;
      const int64_t size = static_cast<int64_t>(a.height) * a.width * a.channels;
      a.maps[at] = factor * dm, a.maps[size + at] = factor * dxx, a.maps[2 * size + at] = factor * dxy;
    }
  }
  double total = share;
  for (int step = 16; step > 0; step /= 2) total += fs_shfl_xor(total, step);
  if (fs_lane() == 0) shares[fs_warp()] = total;
  fs_sync();
  if (threadIdx.x == 0) {
    for (int w = 1; w < 8; ++w) total += shares[w];
    const int64_t block = blockIdx.x + static_cast<int64_t>(gridDim.x) * (blockIdx.y + gridDim.y * blockIdx.z);
    a.losses[block] = total * static_cast<double>(a.scale);
  }
}

FS_KERNEL(256, ssim_grad, const SsimArgs a) {
  FS_SHARED(float, tile, kSide * kSide);
  FS_SHARED(float, sums, 3 * kSide * kTile);
  constexpr int plane = kSide * kTile;
  const int64_t size = static_cast<int64_t>(a.height) * a.width * a.channels;
  for (int map = 0; map < 3; ++map) {
    load_tile(a, a.maps + map * size, tile);
    fs_sync();
    for (int i = static_cast<int>(threadIdx.x); i < plane; i += kTile * kTile) {
      const int at = i / kTile * kSide + i % kTile;
      float total = 0.f;
#pragma unroll
      for (int k = 0; k < kTaps; ++k) total = fmaf(tap(k), tile[at + k], total);
      sums[map * plane + i] = total;
    }
    fs_sync();
  }
  const int tx = static_cast<int>(threadIdx.x) % kTile, ty = static_cast<int>(threadIdx.x) / kTile;
  const int px = static_cast<int>(blockIdx.x) * kTile + tx, py = static_cast<int>(blockIdx.y) * kTile + ty;
  if (px >= a.width || py >= a.height) return;
  const int64_t at = place(a, px, py);
  const float x = fs_ldg(a.render + at), y = fs_ldg(a.truth + at);
  const float step = (1.f - a.dssim) * a.scale * (a.weight == nullptr ? 1.f : fs_ldg(a.weight + at));
  float grad = down(sums, tx, ty);
  grad = fmaf(2.f * x, down(sums + plane, tx, ty), grad);
  grad = fmaf(y, down(sums + 2 * plane, tx, ty), grad);
  a.grad[at] = grad + (x > y ? step : x < y ? -step : 0.f);
}
