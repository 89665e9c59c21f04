// The transpose of projection: from the tiles' records back to the Gaussians.
#pragma once
#include "backward.h"
#include "isa.h"
#include "splat.h"

// Where a splat's records are: entries starts[v] .. starts[v] + counts[v], each in a tile at a place of its list.
struct Entries {
  const uint32_t *starts, *counts, *places, *tiles;
  const Record* records;
  const float* absolute;  // or null
};

// Added to; null where not asked for.
struct GaussianGradients {
  float *means, *quats, *scales, *opacities, *colors;
  double* viewmat;              // [12] rows of (R | t): the sums over the splats of this call
  float *means2d, *means2d_abs;  // [N, 2] of this camera
};

// Splats of slots [begin, end). colored: whether the colours received any gradient.
FS_DECLARE(void, project_backward,
           (const Gaussians& g, const Frame& f, const Settings& s, const Entries& entries, int64_t begin, int64_t end,
            bool colored, const GaussianGradients& out))
