// Entry points of the transposes: gradients, and lifting.
#include <string.h>

#include <algorithm>

#include "api.h"
#include "backward.h"
#include "plan.h"
#include "project_backward.h"

namespace fs {

namespace {

// Feature sums of (splat, tile) pairs are [entries, dim]: too much to hold at once, and they should stay in cache
// between the tiles that write them and the Gaussians that collect them. So tiles go in batches of about this size.
constexpr int64_t kBatchBytes = int64_t{16} << 20;

struct Batch {
  int64_t begin = 0, end = 0;  // tiles
  std::vector<Visit> visits;
};

std::vector<Batch> make_batches(const View& view, int64_t dim) {
  const int64_t rows = std::max<int64_t>(1, kBatchBytes / (64 * ((dim + 15) / 16)));
  std::vector<Batch> batches;
  std::vector<uint32_t> batch_of(static_cast<size_t>(view.tiles));
  for (int64_t t = 0; t < view.tiles; ++t) {
    if (batches.empty() || view.offsets[t + 1] - view.offsets[batches.back().begin] > rows) {
      batches.emplace_back();
      batches.back().begin = t;
    }
    batches.back().end = t + 1;
    batch_of[t] = static_cast<uint32_t>(batches.size() - 1);
  }
  for (Batch& b : batches) {
    const int64_t entries = view.offsets[b.end] - view.offsets[b.begin];
    b.visits.reserve(static_cast<size_t>(std::min(entries, view.visible)));
  }
  // A splat's entries ascend in tiles, so those of one batch are neighbours.
  for (int64_t r = 0; r < view.visible; ++r) {
    const uint32_t slot = view.order[r], id = view.splats[slot].id, end = view.starts[slot] + view.counts[slot];
    for (uint32_t e = view.starts[slot]; e < end;) {
      const uint32_t b = batch_of[view.entry_tiles[e]];
      uint32_t last = e + 1;
      while (last < end && batch_of[view.entry_tiles[last]] == b) ++last;
      batches[b].visits.push_back({id, e, last});
      e = last;
    }
  }
  return batches;
}

void run_batch(const View& view, const Frame& frame, const Batch& batch, Transposed& io, float* out) {
  std::vector<uint32_t> order;
  for (int64_t t = batch.begin; t < batch.end; ++t) order.push_back(static_cast<uint32_t>(t));
  auto length = [&](uint32_t t) { return view.offsets[t + 1] - view.offsets[t]; };
  std::stable_sort(order.begin(), order.end(), [&](uint32_t a, uint32_t b) { return length(a) > length(b); });
  io.first_place = view.offsets[batch.begin];
  {
    Timer timer(kTiles);
    auto tile = [&](int64_t i, int worker) { FS_PICK(transpose_tile)(frame, order[i], io, scratch_of(worker)); };
    parallel(static_cast<int64_t>(order.size()), tile);
  }
  Timer timer(kGather);
  constexpr int64_t kStep = 256;
  const int64_t visits = static_cast<int64_t>(batch.visits.size());
  auto collect = [&](int64_t i, int) {
    const int64_t begin = i * kStep;
    FS_PICK(add_features)(frame, batch.visits.data() + begin, std::min(kStep, visits - begin), view.places.get(),
                          view.entry_tiles.get(), io, out);
  };
  parallel((visits + kStep - 1) / kStep, collect);
}

// All tiles of a view, in batches when feature sums are asked for: out [N, dim] or null.
void run_tiles(const View& view, Transposed& io, float* out) {
  const Frame frame = view.frame();
  if (!out) {
    Timer timer(kTiles);
    for_tiles(view, [&](int64_t tile, Scratch& scratch) { FS_PICK(transpose_tile)(frame, tile, io, scratch); });
    return;
  }
  const std::vector<Batch> batches = make_batches(view, io.dim);
  int64_t most = 0;
  for (const Batch& b : batches) most = std::max<int64_t>(most, view.offsets[b.end] - view.offsets[b.begin]);
  Array<float> sums(most * 16 * ((io.dim + 15) / 16));
  Array<uint32_t> used(view.tiles);
  io.feature_sums = sums.get(), io.used = used.get();
  for (const Batch& batch : batches) run_batch(view, frame, batch, io, out);
}

Transposed incoming(const fs_call& call, const fs_images& rendered, const fs_gradients& g, int64_t camera) {
  const int64_t at = camera * call.width * call.height;
  Transposed io = {};
  io.v_rgb = g.rgb ? g.rgb + 3 * at : nullptr;
  io.v_alpha = g.alpha ? g.alpha + at : nullptr;
  io.v_depth = g.depth ? g.depth + at : nullptr;
  io.v_features = g.features && call.dim > 0 ? g.features + call.dim * at : nullptr;
  io.alpha = rendered.alpha + at, io.depth = rendered.depth + at;
  for (int k = 0; k < 3; ++k) io.background[k] = call.backgrounds ? call.backgrounds[3 * camera + k] : 0.f;
  io.feature_rows = g.features_move_geometry ? call.features : nullptr;
  io.dim = call.dim, io.power = 1;
  return io;
}

void clear_gradients(const fs_call& call, const fs_gradients& g) {
  const int64_t n = call.gaussians, cameras = call.cameras;
  const int64_t plain = call.camera_colors ? 3 * cameras : 3;
  const int64_t color = call.color_kind == kHarmonics ? 3 * int64_t{call.sh_rows} : plain;
  const std::pair<float*, int64_t> all[] = {
      {g.means, 3 * n}, {g.quats, 4 * n}, {g.scales, 3 * n}, {g.opacities, n}, {g.colors, color * n},
      {g.feature_rows, call.dim * n}, {g.backgrounds, 3 * cameras}, {g.viewmats, 16 * cameras},
      {g.means2d, 2 * cameras * n}, {g.means2d_abs, 2 * cameras * n}};
  for (const auto& [data, count] : all) zero(data, 4 * count);
}

void backward_camera(const fs_call& call, const fs_images& rendered, const fs_gradients& g, int64_t camera,
                     const View& view) {
  Transposed io = incoming(call, rendered, g, camera);
  const bool moves = g.means || g.quats || g.scales || g.opacities || g.viewmats || g.means2d;
  const bool seen = io.v_rgb || io.v_alpha || io.v_depth || (io.v_features && io.feature_rows);
  const bool records = (moves && seen) || (g.colors && io.v_rgb);
  if (!moves) io.feature_rows = nullptr;
  Array<Record> record_memory;
  Array<float> absolute;
  Array<double> background;
  if (records) {
    record_memory.reset(view.entries);
    io.records = record_memory.get();
    if (g.means2d_abs) {
      absolute.reset(2 * view.entries);
      io.absolute = absolute.get();
    }
  }
  if (g.backgrounds && io.v_rgb) {
    background.reset(3 * view.tiles);
    io.background_sums = background.get();
  }
  float* feature_rows = io.v_features ? g.feature_rows : nullptr;
  if (!records && !feature_rows && !io.background_sums) return;
  run_tiles(view, io, feature_rows);
  if (io.background_sums) {
    double sums[3] = {};
    for (int64_t i = 0; i < 3 * view.tiles; ++i) sums[i % 3] += background[i];
    for (int k = 0; k < 3; ++k) g.backgrounds[3 * camera + k] += static_cast<float>(sums[k]);
  }
  if (!records) return;

  Timer timer(kProjectBack);
  const Frame frame = view.frame();
  const Gaussians gaussians = gaussians_of(call, camera);
  const Entries entries = {view.starts.get(), view.counts.get(), view.places.get(),
                           view.entry_tiles.get(), io.records, io.absolute};
  const int64_t chunks = static_cast<int64_t>(view.chunks.size()), n = call.gaussians;
  std::vector<double> viewmats(g.viewmats ? static_cast<size_t>(chunks) * 12 : 0);
  GaussianGradients out = {g.means, g.quats, g.scales, g.opacities, nullptr, nullptr, nullptr, nullptr};
  if (g.colors) out.colors = g.colors + call.camera_colors * camera;
  if (g.means2d) out.means2d = g.means2d + 2 * n * camera;
  if (g.means2d_abs) out.means2d_abs = g.means2d_abs + 2 * n * camera;
  auto task = [&](int64_t c, int) {
    GaussianGradients mine = out;
    mine.viewmat = g.viewmats ? viewmats.data() + 12 * c : nullptr;
    FS_PICK(project_backward)(gaussians, frame, view.settings, entries, c * kChunk, c * kChunk + view.chunks[c],
                              io.v_rgb != nullptr, mine);
  };
  parallel(chunks, task);
  if (g.viewmats) {
    double total[12] = {};
    for (int64_t c = 0; c < chunks; ++c) {
      for (int k = 0; k < 12; ++k) total[k] += viewmats[12 * c + k];
    }
    for (int k = 0; k < 12; ++k) g.viewmats[16 * camera + k] += static_cast<float>(total[k]);
  }
}

}  // namespace
}  // namespace fs

int fs_backward(void* plan, const fs_call* call, const fs_images* rendered, const fs_gradients* gradients) {
  return fs::guarded([&] {
    fs::clear_timings(true);
    fs::clear_gradients(*call, *gradients);
    const auto& views = static_cast<const fs::Plan*>(plan)->views;
    for (size_t camera = 0; camera < views.size(); ++camera)
      fs::backward_camera(*call, *rendered, *gradients, static_cast<int64_t>(camera), views[camera]);
  });
}

int fs_lift(const fs_call* call, const float* maps, int64_t dim, int32_t power, float* sums, float* weights) {
  return fs::guarded([&] {
    fs::zero(dim > 0 ? sums : nullptr, 4 * dim * call->gaussians);
    fs::zero(weights, 4 * call->gaussians);
    fs::clear_timings(false), fs::clear_timings(true);
    for (int64_t camera = 0; camera < call->cameras; ++camera) {
      const fs::View view = fs::make_view(*call, camera, nullptr, nullptr);
      fs::Array<Tally> tallies(view.entries);
      Transposed io = {};
      io.dim = dim, io.power = power, io.tallies = tallies.get();
      io.v_features = dim > 0 ? maps + camera * call->width * call->height * dim : nullptr;
      fs::run_tiles(view, io, dim > 0 ? sums : nullptr);
      for (int64_t r = 0; r < view.visible; ++r) {
        const uint32_t slot = view.order[r];
        float& to = weights[view.splats[slot].id];
        for (uint32_t e = view.starts[slot]; e < view.starts[slot] + view.counts[slot]; ++e)
          to += tallies[view.places[e]].sum;
      }
    }
  });
}

int fs_contributions(const fs_call* call, float* sums, float* maxima, int64_t* pixels) {
  return fs::guarded([&] {
    const int64_t all = call->cameras * call->gaussians;
    fs::zero(sums, 4 * all), fs::zero(maxima, 4 * all), fs::zero(pixels, 8 * all);
    fs::clear_timings(false), fs::clear_timings(true);
    for (int64_t camera = 0; camera < call->cameras; ++camera) {
      const fs::View view = fs::make_view(*call, camera, nullptr, nullptr);
      fs::Array<Tally> tallies(view.entries);
      Transposed io = {};
      io.power = 1, io.tallies = tallies.get();
      fs::run_tiles(view, io, nullptr);
      for (int64_t r = 0; r < view.visible; ++r) {
        const uint32_t slot = view.order[r];
        const int64_t at = camera * call->gaussians + view.splats[slot].id;
        for (uint32_t e = view.starts[slot]; e < view.starts[slot] + view.counts[slot]; ++e) {
          const Tally& t = tallies[view.places[e]];
          sums[at] += t.sum, pixels[at] += t.pixels, maxima[at] = std::max(maxima[at], t.greatest);
        }
      }
    }
  });
}
