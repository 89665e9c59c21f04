#include "view.h"

#include <string.h>

#include <algorithm>
#include <chrono>
#include <stdexcept>
#include <vector>

namespace fs {

namespace {

double timings[kStages];
Scratch scratches[1024];

double now() {
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

void grow_scratch(Scratch* s, int64_t capacity) {
  if (s->base) give_back(s->base, static_cast<size_t>(s->capacity));
  s->base = nullptr, s->capacity = 0;
  size_t got = 0;
  s->base = static_cast<char*>(acquire(static_cast<size_t>(capacity + capacity / 2), &got));
  s->capacity = static_cast<int64_t>(got);
}

struct Growing : Emitted {
  Array<uint32_t> tiles_memory;
  Array<uint16_t> masks_memory;
};

void grow_emitted(Emitted* e, int64_t extra) {
  auto* g = static_cast<Growing*>(e);
  const int64_t capacity = std::max<int64_t>(2 * e->capacity, e->size + extra);
  Array<uint32_t> tiles(capacity);
  Array<uint16_t> masks(capacity);
  if (e->size) {
    memcpy(tiles.get(), e->tile, static_cast<size_t>(e->size) * 4);
    memcpy(masks.get(), e->mask, static_cast<size_t>(e->size) * 2);
  }
  g->tiles_memory = std::move(tiles), g->masks_memory = std::move(masks);
  e->tile = g->tiles_memory.get(), e->mask = g->masks_memory.get();
  e->capacity = capacity;
}

// Contiguous parts of [0, n), about `parts` of them but none much smaller than `least`.
struct Parts {
  Parts(int64_t n, int64_t parts, int64_t least) : n_(n) {
    count = std::max<int64_t>(1, std::min(parts, n / std::max<int64_t>(least, 1)));
  }
  int64_t begin(int64_t i) const { return n_ * i / count; }
  int64_t end(int64_t i) const { return n_ * (i + 1) / count; }
  int64_t count;

 private:
  int64_t n_;
};

struct Key {
  uint32_t depth, slot;
};

// Stable radix sort by depth, 11 bits at a time; positive floats sort as their bits.
void sort_keys(Array<Key>& keys, int64_t n) {
  constexpr int kBits = 11, kBins = 1 << kBits;
  Array<Key> other(n);
  const Parts parts(n, threads(), 8192);
  std::vector<uint32_t> bins(static_cast<size_t>(parts.count) * kBins);
  for (int shift = 0; shift < 32; shift += kBits) {
    std::fill(bins.begin(), bins.end(), 0u);
    auto count = [&](int64_t p, int) {
      uint32_t* h = bins.data() + p * kBins;
      for (int64_t i = parts.begin(p); i < parts.end(p); ++i) ++h[keys[i].depth >> shift & (kBins - 1)];
    };
    parallel(parts.count, count);
    uint32_t total = 0;
    bool one_bin = false;
    for (int b = 0; b < kBins; ++b) {
      const uint32_t before = total;
      for (int64_t p = 0; p < parts.count; ++p) {
        const uint32_t c = bins[p * kBins + b];
        bins[p * kBins + b] = total;
        total += c;
      }
      one_bin |= total - before == n;
    }
    if (one_bin) continue;
    auto move = [&](int64_t p, int) {
      uint32_t* h = bins.data() + p * kBins;
      for (int64_t i = parts.begin(p); i < parts.end(p); ++i)
        other[h[keys[i].depth >> shift & (kBins - 1)]++] = keys[i];
    };
    parallel(parts.count, move);
    std::swap(keys, other);
  }
}

// Depths that agree in float32 are put in the order of their exact values, then of their index.
void settle_ties(const Gaussians& g, const View& view, Array<Key>& keys, int64_t n) {
  const double* r = view.camera.R;
  auto depth = [&](const Key& key) {
    const float* m = g.means + 3 * static_cast<int64_t>(view.splats[key.slot].id);
    return r[6] * m[0] + r[7] * m[1] + r[8] * m[2];
  };
  for (int64_t i = 1; i < n; ++i) {
    if (keys[i].depth != keys[i - 1].depth) continue;
    int64_t end = i + 1;
    while (end < n && keys[end].depth == keys[i].depth) ++end;
    std::stable_sort(keys.get() + i - 1, keys.get() + end,
                     [&](const Key& a, const Key& b) { return depth(a) < depth(b); });
    i = end;
  }
}

void project_stage(const fs_call& call, int64_t camera, const Meta* meta, const uint8_t* excluded, View& view,
                   Array<Key>& keys) {
  const int64_t n = call.gaussians, chunks = (n + kChunk - 1) / kChunk;
  const Gaussians g = gaussians_of(call, camera);
  view.slots = n;
  view.splats.reset(n);
  std::vector<int64_t> counts(static_cast<size_t>(chunks) + 1);
  {
    Timer timer(kProject);
    Array<float> dropped;
    Meta none = {};
    if (!meta) {
      dropped.reset(8 * n);
      float* p = dropped.get();
      none = {p, reinterpret_cast<int32_t*>(p + 2 * n), p + 4 * n, p + 5 * n};
      meta = &none;
    }
    auto task = [&](int64_t c, int) {
      const int64_t begin = c * kChunk, end = std::min(n, begin + kChunk);
      counts[c + 1] =
          FS_PICK(project)(g, view.camera, view.settings, *meta, begin, end, excluded, view.splats.get() + begin);
    };
    parallel(chunks, task);
  }
  Timer timer(kSort);
  view.chunks.assign(counts.begin() + 1, counts.end());
  for (int64_t c = 0; c < chunks; ++c) counts[c + 1] += counts[c];
  view.visible = counts[chunks];
  keys.reset(view.visible);
  auto task = [&](int64_t c, int) {
    for (int64_t i = counts[c]; i < counts[c + 1]; ++i) {
      const uint32_t slot = static_cast<uint32_t>(c * kChunk + i - counts[c]);
      keys[i].slot = slot;
      memcpy(&keys[i].depth, &view.splats[slot].z, 4);
    }
  };
  parallel(chunks, task);
  sort_keys(keys, view.visible);
  settle_ties(g, view, keys, view.visible);
  view.order.reset(view.visible);
  for (int64_t i = 0; i < view.visible; ++i) view.order[i] = keys[i].slot;
}

// Tiles with the longest lists first, so that no thread is left with a long one at the end.
void order_tiles(View& view) {
  constexpr int kBins = 1024;
  auto bin = [&](int64_t t) {
    return kBins - 1 - static_cast<int>(std::min<uint32_t>((view.offsets[t + 1] - view.offsets[t]) / 4, kBins - 1));
  };
  uint32_t at[kBins + 1] = {};
  for (int64_t t = 0; t < view.tiles; ++t) ++at[bin(t) + 1];
  for (int b = 0; b < kBins; ++b) at[b + 1] += at[b];
  view.tile_order.reset(view.tiles);
  for (int64_t t = 0; t < view.tiles; ++t) view.tile_order[at[bin(t)]++] = static_cast<uint32_t>(t);
}

void bin_stage(View& view) {
  Timer timer(kBin);
  const int64_t tiles = view.tiles;
  const Parts parts(view.visible, 4 * static_cast<int64_t>(threads()), 2048);
  std::vector<Growing> emitted(static_cast<size_t>(parts.count));
  Array<uint32_t> cursor(parts.count * tiles);
  view.starts.reset(view.slots);
  view.counts.reset(view.slots);
  auto emit_part = [&](int64_t p, int) {
    Growing& e = emitted[p];
    e.tile = nullptr, e.mask = nullptr, e.size = e.capacity = 0, e.reserve = grow_emitted;
    grow_emitted(&e, 4 * (parts.end(p) - parts.begin(p)) + 64);
    uint32_t* histogram = cursor.get() + p * tiles;
    memset(histogram, 0, static_cast<size_t>(tiles) * 4);
    FS_PICK(emit)(view.splats.get(), view.order.get(), parts.begin(p), parts.end(p), view.camera.tiles_x, &e,
                  histogram, view.starts.get(), view.counts.get());
  };
  parallel(parts.count, emit_part);
  std::vector<int64_t> base(static_cast<size_t>(parts.count) + 1);
  for (int64_t p = 0; p < parts.count; ++p) base[p + 1] = base[p] + emitted[p].size;
  view.entries = base[parts.count];
  if (view.entries >= int64_t{1} << 32) throw std::length_error("more than 2^32 (Gaussian, tile) pairs in one camera");
  view.offsets.reset(tiles + 1);
  uint32_t total = 0;
  for (int64_t t = 0; t < tiles; ++t) {
    view.offsets[t] = total;
    for (int64_t p = 0; p < parts.count; ++p) {
      const uint32_t c = cursor[p * tiles + t];
      cursor[p * tiles + t] = total;
      total += c;
    }
  }
  view.offsets[tiles] = total;
  view.ids.reset(view.entries), view.masks.reset(view.entries), view.places.reset(view.entries);
  view.entry_tiles.reset(view.entries);
  auto scatter_part = [&](int64_t p, int) {
    FS_PICK(scatter)(view.order.get(), parts.begin(p), parts.end(p), &emitted[p], view.counts.get(),
                     static_cast<uint32_t>(base[p]), view.starts.get(), cursor.get() + p * tiles, view.ids.get(),
                     view.masks.get(), view.places.get() + base[p], view.entry_tiles.get() + base[p]);
  };
  parallel(parts.count, scatter_part);
  order_tiles(view);
}

}  // namespace

Timer::Timer(Stage stage) : stage_(stage), start_(now()) {}
Timer::~Timer() { timings[stage_] += now() - start_; }

void clear_timings(bool backward) {
  for (int s = backward ? kTiles : 0; s < (backward ? kStages : kTiles); ++s) timings[s] = 0;
}

Scratch& scratch_of(int worker) {
  Scratch& s = scratches[worker];
  s.grow = grow_scratch;
  return s;
}

Frame View::frame() const {
  Frame f = {};
  f.camera = camera;
  f.alpha_max = static_cast<float>(settings.alpha_max);
  f.transmittance_min = static_cast<float>(settings.transmittance_min);
  f.splats = splats.get(), f.ids = ids.get(), f.masks = masks.get(), f.offsets = offsets.get();
  return f;
}

Camera camera_of(const fs_call& call, int64_t index) {
  Camera c = {};
  const float *V = call.viewmats + 16 * index, *K = call.Ks + 9 * index;
  for (int i = 0; i < 3; ++i) {
    for (int j = 0; j < 3; ++j) c.R[3 * i + j] = V[4 * i + j];
    c.t[i] = V[4 * i + 3];
  }
  for (int j = 0; j < 3; ++j) c.center[j] = -(c.R[j] * c.t[0] + c.R[3 + j] * c.t[1] + c.R[6 + j] * c.t[2]);
  c.fx = K[0], c.fy = K[4], c.cx = K[2], c.cy = K[5];
  c.width = static_cast<int32_t>(call.width), c.height = static_cast<int32_t>(call.height);
  const double mx = 0.15 * c.width / c.fx, my = 0.15 * c.height / c.fy;
  c.lim_x0 = -(c.cx / c.fx + mx), c.lim_x1 = (c.width - c.cx) / c.fx + mx;
  c.lim_y0 = -(c.cy / c.fy + my), c.lim_y1 = (c.height - c.cy) / c.fy + my;
  c.tiles_x = (c.width + kTile - 1) / kTile, c.tiles_y = (c.height + kTile - 1) / kTile;
  return c;
}

Gaussians gaussians_of(const fs_call& call, int64_t camera) {
  Gaussians g = {};
  g.count = call.gaussians;
  g.means = call.means, g.quats = call.quats, g.scales = call.scales, g.opacities = call.opacities;
  g.colors = call.colors ? call.colors + call.camera_colors * camera : nullptr;
  g.color_kind = call.color_kind, g.sh_degree = call.sh_degree, g.sh_rows = call.sh_rows;
  return g;
}

View make_view(const fs_call& call, int64_t camera, const Meta* meta, const uint8_t* excluded) {
  if (call.width > 65535 * int64_t{kTile} || call.height > 65535 * int64_t{kTile})
    throw std::length_error("images of more than a million pixels a side are not supported");
  if (call.gaussians >= int64_t{1} << 32) throw std::length_error("more than 2^32 Gaussians in one call");
  View view;
  view.camera = camera_of(call, camera);
  view.tiles = static_cast<int64_t>(view.camera.tiles_x) * view.camera.tiles_y;
  view.settings = {call.near, call.far, call.eps2d, call.extent, call.alpha_max, call.alpha_min,
                   call.transmittance_min, call.antialiased};
  Array<Key> keys;
  project_stage(call, camera, meta, excluded, view, keys);
  bin_stage(view);
  return view;
}

}  // namespace fs

void fs_timings(double milliseconds[7]) { memcpy(milliseconds, fs::timings, sizeof fs::timings); }
