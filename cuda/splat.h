// What the stages hand to each other, one camera at a time. An image is cut into tiles of 16x16 pixels, a tile into
// 16 blocks of 4x4; bit b of a block mask is the block in row b / 4 and column b % 4.
#pragma once
#include <stdint.h>

constexpr int kTile = 16, kBlock = 4;

// A Gaussian that shows in the camera, 64 bytes. Its exponent at a pixel p is log2_opacity - u^2 - v^2, where
//   u = l11 (p.x - x) + l21 (p.y - y),  v = l22 (p.y - y)
// comes from the Cholesky factor of its inverse 2D covariance, times sqrt(log2(e) / 2): squares of small sums keep
// their digits where the terms of a quadratic form (long thin splats, far from the centre) cancel.
struct Splat {
  float x, y, x_rest, y_rest;  // centre in pixels: rounded, and what rounding left
  float l11, l21, l22;
  float log2_opacity;
  float floor;  // exponents below this do not count: extent and alpha_min together
  float z;
  float rgb[3];
  uint32_t id;                         // index of the Gaussian
  uint16_t tile_x0, tile_y0, tile_x1, tile_y1;  // tiles its bounding box meets, end exclusive
};

struct Camera {
  double R[9], t[3], center[3];  // world to camera; camera centre in the world
  double fx, fy, cx, cy;
  double lim_x0, lim_x1, lim_y0, lim_y1;  // x / z and y / z are clamped to these in the Jacobian
  int32_t width, height, tiles_x, tiles_y;
};

struct Settings {
  double near, far, eps2d, extent, alpha_max, alpha_min, transmittance_min;
  int32_t antialiased;
};

// Colours: none, [N, 3], or spherical-harmonic coefficients [N, sh_rows, 3] evaluated up to sh_degree.
enum ColorKind { kNoColor = 0, kPlainColor = 1, kHarmonics = 2 };

struct Gaussians {
  int64_t count;
  const float *means, *quats, *scales, *opacities, *colors;
  int32_t color_kind, sh_degree, sh_rows;
};

// What the host hands to the loops over tiles.
struct Frame {
  Camera camera;
  float alpha_max, transmittance_min;
  const Splat* splats;
  const uint32_t* ids;     // splats of all tiles, near to far within a tile
  const uint16_t* masks;   // and the blocks each of them reaches
  const uint32_t* offsets; // [tiles + 1]
};

// A worker's memory: one block that only grows, cut into pieces anew for every tile.
struct Scratch {
  char* base;
  int64_t capacity, used;
  void (*grow)(Scratch* self, int64_t capacity);  // keeps nothing
};
