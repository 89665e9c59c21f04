// (1 - w) |x - y| + w (1 - SSIM(x, y)), summed over an image and differentiated in x; channels interleaved.
//
// With G* the separable 11-tap Gaussian (sigma 1.5, zeros past the border), m = G*x, n = G*y, and
//   A1 = 2 m n + C1   A2 = 2 (G*xy - m n) + C2   B1 = m^2 + n^2 + C1   B2 = G*xx + G*yy - m^2 - n^2 + C2
// SSIM is S = A1 A2 / (B1 B2). Its derivatives by G*xy, G*xx and m, a weight of the pixel included, are the maps
//   P = 2 A1 / (B1 B2)   Q = -S / B2   R = 2 n A2 / (B1 B2) - 2 m S / B1 - n P - 2 m Q
// and, G being symmetric, d(sum S)/dx = G*R + 2 x (G*Q) + y (G*P).
#pragma once
#include "isa.h"

namespace fs {

struct Photometric {
  const float *render, *truth;  // x, y: [height, width * channels]
  const float* weight;          // the same shape, or null for all ones
  int64_t height, row, channels;  // row = width * channels
  double dssim, scale;          // w, and what every sum is multiplied by
  float* maps;                  // [3, height, row] scratch: R, Q, P; null without a gradient
  double* sums;                 // [2, height]: per image row, sum of weighted S and sum of weighted |x - y|
  float* grad;                  // [height, row], or null
};

constexpr int64_t kStripRows = 4;     // rows of one item of work
constexpr int64_t kMostChannels = 8;

}  // namespace fs

FS_DECLARE(void, ssim_strip, (const fs::Photometric& p, int64_t strip))       // sums, maps
FS_DECLARE(void, ssim_grad_strip, (const fs::Photometric& p, int64_t strip))  // grad, from all maps
