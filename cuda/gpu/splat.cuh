// What the kernels hand to each other. An image is cut into tiles of 16x16 pixels, a tile into 8 patches of 8x4 pixels,
// one for each warp of a block: patch w lies in column w % 2 and row w / 2.
#pragma once
#include "device.cuh"

constexpr int kTile = 16, kPixels = 256, kPatches = 8;
constexpr int kNever = 0x7fffffff;  // depth key of a Gaussian that is not drawn

// A Gaussian that shows in a camera. Its exponent at a pixel p is log2_opacity - u^2 - v^2, where
//   u = l11 (p.x - x) + l21 (p.y - y),  v = l22 (p.y - y)
// comes from the Cholesky factor of its inverse 2D covariance, times sqrt(log2(e) / 2): squares of small sums keep
// their digits where the terms of a quadratic form (long thin splats, far from the centre) cancel.
// Splats of all cameras stand one after the other, each camera's near to far; "rank" is a splat's place there.
struct __align__(16) Splat {
  float x, y, x_rest, y_rest;  // centre in pixels: rounded, and what rounding left
  float l11, l21, l22, log2_opacity;
  float r, g, b, z;
  float floor;         // exponents below this do not count: extent and alpha_min together
  uint32_t tiles_x;    // tiles its bounding box meets: first in the low half, end (exclusive) in the high half
  uint32_t tiles_y;
  uint32_t id;         // of the Gaussian
};

// A pixel's alpha and the transmittance behind it in one number: the smaller of the two, which the other follows from
// without a loss; alpha with its sign changed.
FS_DEVICE float pack_left(float transmittance, float alpha) {
  return transmittance <= 0.5f ? fmaxf(transmittance, 1e-37f) : -alpha;
}
FS_DEVICE float transmittance_of(float left) { return left > 0 ? left : 1 + left; }
FS_DEVICE float alpha_of(float left) { return left > 0 ? 1 - left : -left; }

// The numbers of a splat as one tile sees it, pixel coordinates relative to the tile's centre (cx, cy):
// u = u0 + l11 x + l21 y, v = v0 + l22 y. `shape` is {l11, l21, u0, l22}.
FS_DEVICE float4 seen_from(float4 center, float4 factor, int cx, int cy, float& v0) {
  const double dx = (cx - static_cast<double>(center.x)) - center.z, dy = (cy - static_cast<double>(center.y)) - center.w;
  v0 = static_cast<float>(factor.z * dy);
  return make_float4(factor.x, factor.y, static_cast<float>(factor.x * dx + factor.y * dy), factor.z);
}

// alpha before the clamp by alpha_max, 0 where the pair does not count.
FS_DEVICE float alpha_at(float4 shape, float v0, float log2_opacity, float floor, float px, float py) {
  const float u = fmaf(shape.y, py, fmaf(shape.x, px, shape.z)), v = fmaf(shape.w, py, v0);
  const float e = fmaf(-v, v, fmaf(-u, u, log2_opacity));
  return e >= floor ? fs_exp2(e) : 0.f;
}

// The least u^2 + v^2 over a rectangle of pixel centres lies on its edges that face the centre (or is 0 inside): along
// the vertical one at dx the minimum is at dy = k1 dx, along the horizontal one at dx = k2 dy.
struct Ellipse {
  float l11, l21, l22, k1, k2, limit, size;
};

FS_DEVICE Ellipse ellipse_of(float l11, float l21, float l22, float log2_opacity, float floor) {
  Ellipse e;
  e.l11 = l11, e.l21 = l21, e.l22 = l22;
  e.k1 = -(l11 * l21) / fmaf(l21, l21, l22 * l22);
  e.k2 = -l21 / l11;
  e.limit = fmaf(log2_opacity - floor, 1.0001f, 1e-3f);
  e.size = 1e-5f * (l11 + fabsf(l21) + l22);
  return e;
}

// Only culling: generous by more than rounding. (x0, y0) is the first pixel centre minus the splat's centre, `distance` of
// the size of its coordinates. Every fused operation is written out: two kernels must find the same.
FS_DEVICE bool reaches(const Ellipse& e, float x0, float y0, float wide, float high, float distance) {
  const float x1 = x0 + wide, y1 = y0 + high;
  const float dx = fminf(fmaxf(0.f, x0), x1), dy = fminf(fmaxf(0.f, y0), y1);
  const float dy1 = fminf(fmaxf(e.k1 * dx, y0), y1), dx2 = fminf(fmaxf(e.k2 * dy, x0), x1);
  const float u1 = fmaf(e.l21, dy1, e.l11 * dx), v1 = e.l22 * dy1;
  const float u2 = fmaf(e.l21, dy, e.l11 * dx2), v2 = e.l22 * dy;
  const float least = fminf(fmaf(u1, u1, v1 * v1), fmaf(u2, u2, v2 * v2));
  return fmaf(distance, e.size, e.limit) >= least;
}

// visit(tile, local number) for each tile of the splat's bounding box that its ellipse reaches; returns how many.
template <class Visit>
FS_DEVICE int for_tiles(const Splat& s, int tiles_x, Visit visit) {
  const Ellipse e = ellipse_of(s.l11, s.l21, s.l22, s.log2_opacity, s.floor);
  const int x0 = s.tiles_x & 0xffff, x1 = s.tiles_x >> 16, y0 = s.tiles_y & 0xffff, y1 = s.tiles_y >> 16;
  int n = 0;
  for (int ty = y0; ty < y1; ++ty) {
    const float top = ((ty * kTile + 0.5f) - s.y) - s.y_rest;
    for (int tx = x0; tx < x1; ++tx) {
      const float left = ((tx * kTile + 0.5f) - s.x) - s.x_rest;
      if (!reaches(e, left, top, kTile - 1, kTile - 1, fabsf(left) + fabsf(top) + kTile)) continue;
      visit(ty * tiles_x + tx, n);
      ++n;
    }
  }
  return n;
}

// Where a block's tile lies. Tiles of all cameras are numbered one after the other.
struct Place {
  int camera, x, y;  // first pixel
};

FS_DEVICE Place place_of(int tile, int tiles, int tiles_x) {
  Place p;
  p.camera = tile / tiles;
  const int local = tile - p.camera * tiles;
  p.y = local / tiles_x;
  p.x = (local - p.y * tiles_x) * kTile, p.y *= kTile;
  return p;
}

// The same number, but the compiler does not know it: what is computed from it is computed anew, not kept in registers.
FS_DEVICE int again(int v) {
#ifndef FS_HOST_SHIM
  asm volatile("" : "+r"(v));
#endif
  return v;
}

// Bit w is set when a splat reaches the patch of warp w. (cx, cy) is the tile's centre.
FS_DEVICE uint32_t patches_reached(const Splat& s, int cx, int cy) {
  const Ellipse e = ellipse_of(s.l11, s.l21, s.l22, s.log2_opacity, s.floor);
  const float x = (cx - s.x) - s.x_rest, y = (cy - s.y) - s.y_rest, distance = fabsf(x) + fabsf(y) + kTile;
  uint32_t mask = 0;
  for (int w = 0; w < kPatches; ++w) {
    const float left = x + ((w & 1) * 8 - 7.5f), top = y + ((w >> 1) * 4 - 7.5f);
    mask |= static_cast<uint32_t>(reaches(e, left, top, 7, 3, distance)) << w;
  }
  return mask;
}

FS_DEVICE Splat load_splat(const Splat* from) {
  Splat s;
  float4* to = reinterpret_cast<float4*>(&s);
  for (int i = 0; i < 4; ++i) to[i] = fs_ldg(reinterpret_cast<const float4*>(from) + i);
  return s;
}

// The pixel of a lane within the patch of its warp, relative to the tile's first pixel.
FS_DEVICE int patch_x(int warp) { return (warp & 1) * 8; }
FS_DEVICE int patch_y(int warp) { return (warp >> 1) * 4; }
