// Exact ellipse against rectangle, for the 16 blocks of a tile at once. Only culling: generous by more than rounding.
#include "bin.h"

#include "simd.h"

namespace FS_ISA {

static const float kColumns[16] = {0, 4, 8, 12, 0, 4, 8, 12, 0, 4, 8, 12, 0, 4, 8, 12};
static const float kRows[16] = {0, 0, 0, 0, 4, 4, 4, 4, 8, 8, 8, 8, 12, 12, 12, 12};

FS_INLINE float magnitude(float x) { return x < 0 ? -x : x; }

// The least u^2 + v^2 over each block's rectangle of pixel centres lies on its edges that face the centre (or is 0
// inside): along the vertical one at dx the minimum is at dy = k1 dx, along the horizontal one at dx = k2 dy.
struct Ellipse {
  float l11, l21, l22, k1, k2, limit;
};

FS_INLINE unsigned blocks_reached(const Ellipse& e, float mx, float my, V x0, V y0) {
  const V cx = set(mx), cy = set(my), three = set(3.f), l11 = set(e.l11), l21 = set(e.l21), l22 = set(e.l22);
  const V left = x0 - cx, right = left + three, top = y0 - cy, bottom = top + three;
  const V zero = set(0.f);
  const V dx = min(max(zero, left), right), dy = min(max(zero, top), bottom);
  const V dy1 = min(max(set(e.k1) * dx, top), bottom), dx2 = min(max(set(e.k2) * dy, left), right);
  const V u1 = fma(l21, dy1, l11 * dx), v1 = l22 * dy1, u2 = fma(l21, dy, l11 * dx2), v2 = l22 * dy;
  const V least = min(fma(u1, u1, v1 * v1), fma(u2, u2, v2 * v2));
  const float rounding = 1e-5f * (magnitude(mx) + magnitude(my)) * (e.l11 + magnitude(e.l21) + e.l22);
  return bits(set(e.limit + rounding) >= least);
}

void emit(const Splat* splats, const uint32_t* order, int64_t begin, int64_t end, int tiles_x, Emitted* out,
          uint32_t* histogram, uint32_t* starts, uint32_t* counts) {
  const V half = set(0.5f), x0 = load(kColumns) + half, y0 = load(kRows) + half;
  for (int64_t r = begin; r < end; ++r) {
    const uint32_t v = order[r];
    if (r + 8 < end) prefetch(&splats[order[r + 8]]);
    const Splat& s = splats[v];
    const int64_t box = (int64_t)(s.tile_x1 - s.tile_x0) * (s.tile_y1 - s.tile_y0);
    const int64_t first = out->size;
    if (box > 0) {
      if (first + box > out->capacity) out->reserve(out, box);
      Ellipse e = {s.l11, s.l21, s.l22, 0, 0, 0};
      e.k1 = -s.l11 * s.l21 / (s.l21 * s.l21 + s.l22 * s.l22);
      e.k2 = -s.l21 / s.l11;
      e.limit = (s.log2_opacity - s.floor) * 1.0001f + 1e-3f;
      int64_t n = first;
      for (int ty = s.tile_y0; ty < s.tile_y1; ++ty) {
        const float my = (s.y - (float)(ty * kTile)) + s.y_rest;
        for (int tx = s.tile_x0; tx < s.tile_x1; ++tx) {
          const float mx = (s.x - (float)(tx * kTile)) + s.x_rest;
          const unsigned mask = blocks_reached(e, mx, my, x0, y0);
          const uint32_t tile = (uint32_t)(ty * tiles_x + tx);
          out->tile[n] = tile, out->mask[n] = (uint16_t)mask;
          const int hit = mask != 0;
          histogram[tile] += (uint32_t)hit;
          n += hit;
        }
      }
      out->size = n;
    }
    starts[v] = (uint32_t)first, counts[v] = (uint32_t)(out->size - first);
  }
}

void scatter(const uint32_t* order, int64_t begin, int64_t end, const Emitted* entries, const uint32_t* counts,
             uint32_t base, uint32_t* starts, uint32_t* cursor, uint32_t* ids, uint16_t* masks,
             uint32_t* places, uint32_t* entry_tiles) {
  int64_t e = 0;
  for (int64_t r = begin; r < end; ++r) {
    const uint32_t v = order[r];
    starts[v] += base;
    for (uint32_t k = 0; k < counts[v]; ++k, ++e) {
      const uint32_t tile = entries->tile[e], place = cursor[tile]++;
      ids[place] = v, masks[place] = entries->mask[e];
      places[e] = place, entry_tiles[e] = tile;
    }
  }
}

}  // namespace FS_ISA
