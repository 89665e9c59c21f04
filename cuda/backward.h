// The transpose of blending: from gradients (or any maps) of the images back to the splats of each tile.
#pragma once
#include "isa.h"
#include "splat.h"

// Sums over a tile's pixels for one of its splats, 16 floats. With vs the gradient of a pixel's exponent sigma, w the
// blending weight, x and y pixel centres relative to the tile's centre, v_* gradients of the images:
//   even places  sum of vs {1, x, y, x^2, xy, y^2}
//   odd places   sum of w {v_red, v_green, v_blue, v_depth}
struct Record {
  float value[16];
};

// Sums over a tile's pixels of one splat's blending weights (to the asked power).
struct Tally {
  float sum, greatest;
  uint32_t pixels;
};

struct Transposed {
  // Incoming, of one camera; null where there is none. v_depth is that of the expected depth.
  const float *v_rgb, *v_alpha, *v_depth, *v_features;
  const float *alpha, *depth;  // as rendered
  float background[3];
  const float* feature_rows;  // [N, dim]; null when v_features does not move geometry
  int64_t dim;
  int32_t power;  // of the weights in feature sums and tallies: 1 or 2
  // Outgoing; null where not asked for. Rows of a tile lie where its list does.
  Record* records;
  float* absolute;           // [entries, 2] sums of |gradient of the splat's centre|
  Tally* tallies;
  double* background_sums;   // [tiles, 3]
  float* feature_sums;       // of the tiles from first_place on; a tile's panels follow each other: see panel.h
  int64_t first_place;
  uint32_t* used;            // [tiles] how many of the tile's splats have feature sums
};

FS_DECLARE(void, transpose_tile, (const Frame& f, int64_t tile, const Transposed& io, Scratch& scratch))

// A splat's entries within one batch of tiles.
struct Visit {
  uint32_t id;
  uint32_t begin, end;  // entries
};

// out[id] += the feature sums of each visit's entries, one after the other.
FS_DECLARE(void, add_features,
           (const Frame& f, const Visit* visits, int64_t count, const uint32_t* places, const uint32_t* entry_tiles,
            const Transposed& io, float* out))
