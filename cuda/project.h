// First stage: from 3D Gaussians to splats.
#pragma once
#include "isa.h"
#include "splat.h"

// By-products for every Gaussian, zero where it is not drawn.
struct Meta {
  float* means2d;  // [N, 2]
  int32_t* radii;  // [N, 2]
  float* depths;   // [N]
  float* conics;   // [N, 3]
};

// Projects the Gaussians [begin, end); writes the visible ones to out, in order, and returns how many.
// excluded: [N] flags of Gaussians to leave out, or null.
FS_DECLARE(int64_t, project,
           (const Gaussians& g, const Camera& camera, const Settings& s, const Meta& meta, int64_t begin, int64_t end,
            const uint8_t* excluded, Splat* out))
