// The front end: one camera's splats, their depth order and the tiles' lists.
#pragma once
#include <stdint.h>

#include <vector>

#include "bin.h"
#include "engine.h"
#include "memory.h"
#include "parallel.h"
#include "project.h"
#include "splat.h"

namespace fs {

enum Stage { kProject, kSort, kBin, kBlend, kTiles, kGather, kProjectBack, kStages };

// Adds the time of its life to a stage of the last call.
class Timer {
 public:
  explicit Timer(Stage stage);
  ~Timer();

 private:
  Stage stage_;
  double start_;
};
void clear_timings(bool backward);

constexpr int64_t kChunk = 1024;  // Gaussians projected at a time

// One camera, ready to blend. Splats live in slots: slot order is index order, with gaps.
struct View {
  Camera camera;
  Settings settings;
  std::vector<int64_t> chunks;  // splats of chunk c: slots [kChunk c, kChunk c + chunks[c])
  int64_t slots = 0, visible = 0, entries = 0, tiles = 0;
  Array<Splat> splats;     // [slots]
  Array<uint32_t> order;   // [visible] slots, near to far
  Array<uint32_t> starts;  // [slots] a splat's first entry
  Array<uint32_t> counts;  // [slots] its entries: (splat, tile) pairs, in row-major order of tiles
  Array<uint32_t> places;  // [entries] where the entry lies in the tiles' lists
  Array<uint32_t> entry_tiles;  // [entries] and in which tile
  Array<uint32_t> ids;     // [entries] the tiles' lists: slots, near to far,
  Array<uint16_t> masks;   //           and the blocks they reach
  Array<uint32_t> offsets;     // [tiles + 1]
  Array<uint32_t> tile_order;  // [tiles] the longest lists first

  Frame frame() const;
};

Camera camera_of(const fs_call& call, int64_t camera);
Gaussians gaussians_of(const fs_call& call, int64_t camera);
// excluded: [N] flags of Gaussians to leave out, or null. Without a Meta the by-products are dropped.
View make_view(const fs_call& call, int64_t camera, const Meta* meta, const uint8_t* excluded);

Scratch& scratch_of(int worker);

// Runs fn(tile, scratch) over a view's tiles, heaviest first.
template <class F>
void for_tiles(const View& view, F fn) {
  auto task = [&](int64_t i, int worker) { fn(static_cast<int64_t>(view.tile_order[i]), scratch_of(worker)); };
  parallel(view.tiles, task);
}

}  // namespace fs
