// Third stage: blending.
#pragma once
#include "isa.h"
#include "splat.h"

struct Images {
  float *rgb, *alpha, *depth, *features;  // [H, W, 3], [H, W], [H, W], [H, W, dim]; rgb and features may be null
  float background[3];
  const float* feature_rows;  // [N, dim]
  int64_t dim;
  uint8_t* unhealthy;  // [N] set to 1 for a Gaussian met with a feature that is not finite
};

FS_DECLARE(void, blend_tile, (const Frame& f, int64_t tile, const Images& out, Scratch& scratch))
