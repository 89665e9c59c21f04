#include "queries.h"

#include "tile.h"

namespace FS_ISA {

// visit(block, pixel of the image, lane, ids, weights[listed][16], count) for the pixels of a tile.
template <class Visit>
static void for_pixels(const Frame& f, int64_t index, Scratch& scratch, Visit visit) {
  Tile t;
  open_tile(f, index, scratch, 0, 64, 1024, t);
  float* kept = take<float>(scratch, 16 * (int64_t)t.begin[16]);
  for (int b = 0; b < 16; ++b) {
    const Block block = open_block(f, t, b);
    if (!block.visible) continue;
    const int used =
        walk_block(f, t, b, block, [&](int i, uint32_t, V, V, V w, M) { store(kept + 16 * (int64_t)i, w); });
    for (int p = 0; p < 16; ++p) {
      const int x = block.x + (p & 3), y = block.y + (p >> 2);
      if (x < f.camera.width && y < f.camera.height)
        visit((int64_t)y * f.camera.width + x, t.splats, t.list + t.begin[b], kept + p, used);
    }
  }
}

void topk_tile(const Frame& f, int64_t tile, int64_t k, int64_t* ids, float* weights, Scratch& scratch) {
  for_pixels(f, tile, scratch, [&](int64_t pixel, const Packed* splats, const uint32_t* list, const float* w,
                                      int used) {
    int64_t *best = ids + pixel * k, found = 0;
    float* most = weights + pixel * k;
    for (int i = 0; i < used; ++i) {
      const float weight = w[16 * (int64_t)i];
      if (!(weight > 0) || (found == k && weight <= most[k - 1])) continue;
      int64_t at = found < k ? found++ : k - 1;
      for (; at > 0 && most[at - 1] < weight; --at) most[at] = most[at - 1], best[at] = best[at - 1];
      most[at] = weight, best[at] = splats[list[i]].id;
    }
    for (int64_t at = found; at < k; ++at) most[at] = 0, best[at] = -1;
  });
}

void count_tile(const Frame& f, int64_t tile, int64_t* counts, Scratch& scratch) {
  for_pixels(f, tile, scratch, [&](int64_t pixel, const Packed*, const uint32_t*, const float* w, int used) {
    int64_t n = 0;
    for (int i = 0; i < used; ++i) n += w[16 * (int64_t)i] > 0;
    counts[pixel] = n;
  });
}

void list_tile(const Frame& f, int64_t tile, const int64_t* starts, int64_t* ids, float* weights, Scratch& scratch) {
  for_pixels(f, tile, scratch, [&](int64_t pixel, const Packed* splats, const uint32_t* list, const float* w,
                                      int used) {
    int64_t n = starts[pixel];
    for (int i = 0; i < used; ++i) {
      if (!(w[16 * (int64_t)i] > 0)) continue;
      ids[n] = splats[list[i]].id, weights[n] = w[16 * (int64_t)i];
      ++n;
    }
  });
}

}  // namespace FS_ISA
