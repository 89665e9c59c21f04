// Blending, front to back: per 4x4 block the weights of its list of splats, 16 pixels at a time, with colour, alpha and
// depth accumulated in registers on the way; features by matrix products over the same weights.
#include "forward.h"

#include "lanes.h"
#include "panel.h"

namespace FS_ISA {

constexpr int kFew = 8;  // up to so many channels are accumulated pixel-wise, as colours are

struct Color {
  V r, g, b, z, alpha;
};

// Blends the list of block b. kGroups: also hands the weights to `groups`; kKeep: also leaves them in kept[i][16].
// Returns how many splats of the list were used before every pixel had stopped.
template <bool kGroups, bool kKeep>
FS_INLINE int blend_block(const Frame& f, const Tile& t, int b, const Block& block, Color& out, GroupWriter* groups,
                          float* kept) {
  V red = set(0.f), green = red, blue = red, z = red, alpha = red;
  const int used = walk_block(f, t, b, block, [&](int i, uint32_t k, V, V, V w, M) {
    const Packed& p = t.splats[k];
    red = fma(set(p.r), w, red), green = fma(set(p.g), w, green), blue = fma(set(p.b), w, blue);
    z = fma(set(p.z), w, z), alpha = alpha + w;
    if (kGroups) append(*groups, k, w);
    if (kKeep) store(kept + 16 * i, w);
  });
  out.r = red, out.g = green, out.b = blue, out.z = z, out.alpha = alpha;
  return used;
}

static void write_color(const Frame& f, const Block& block, const Color& c, const Images& out) {
  float r[16], g[16], b[16], z[16], a[16];
  store(r, c.r), store(g, c.g), store(b, c.b), store(z, c.z), store(a, c.alpha);
  for (int y = 0; y < kBlock && block.y + y < f.camera.height; ++y) {
    for (int x = 0; x < kBlock && block.x + x < f.camera.width; ++x) {
      const int64_t at = (int64_t)(block.y + y) * f.camera.width + block.x + x;
      const int i = 4 * y + x;
      const float rest = 1 - a[i];
      out.alpha[at] = a[i];
      out.depth[at] = a[i] > 0 ? z[i] / a[i] : 0;
      if (out.rgb) {
        float* rgb = out.rgb + 3 * at;
        rgb[0] = r[i] + rest * out.background[0];
        rgb[1] = g[i] + rest * out.background[1];
        rgb[2] = b[i] + rest * out.background[2];
      }
    }
  }
}

template <int kN>
static void features_of_group(const Frame& f, const Group& g, const float* panel, int stride, int x, int y,
                              const Images& out, int64_t c0, int channels) {
  V acc[4][kN];
  gather_rows<kN>(g, panel, stride, acc);
  float* to = out.features + ((int64_t)y * f.camera.width + x) * out.dim + c0;
  const bool past_cache = out.dim >= 64 && (((uintptr_t)to | (uintptr_t)(out.dim * 4)) & 63) == 0;
  for (int p = 0; p < 4 && x + p < f.camera.width; ++p, to += out.dim) {
    for (int q = 0; q < kN; ++q) {
      if (past_cache) stream(to + 16 * q, acc[p][q]);
      else store_first(to + 16 * q, acc[p][q], channels - 16 * q);
    }
  }
}

static void features_of_panel(const Frame& f, const Tile& t, const Groups& groups, const float* panel,
                              const Images& out, int64_t c0, int channels) {
  const int n = vectors(channels), stride = 16 * n;
  for (int b = 0; b < 16; ++b) {
    const int x = t.x + (b & 3) * kBlock, y = t.y + (b >> 2) * kBlock;
    if (x >= f.camera.width) continue;
    for (int row = 0; row < kBlock && y + row < f.camera.height; ++row) {
      const Group g = group_of(groups, t, b, row);
      for (int q = 0; q < n; q += kWide) {
        const int64_t c = c0 + 16 * q;
        const int left = channels - 16 * q;
        switch (n - q < kWide ? n - q : kWide) {
#if defined(FS_ISA_avx512)
          case 4: features_of_group<4>(f, g, panel + 16 * q, stride, x, y + row, out, c, left); break;
          case 3: features_of_group<3>(f, g, panel + 16 * q, stride, x, y + row, out, c, left); break;
          case 2: features_of_group<2>(f, g, panel + 16 * q, stride, x, y + row, out, c, left); break;
#endif
          default: features_of_group<1>(f, g, panel + 16 * q, stride, x, y + row, out, c, left); break;
        }
      }
    }
  }
}

template <int kC>
FS_INLINE void few_channels(const uint32_t* list, int count, const float* kept, const float* panel, float* lanes) {
  V acc[kC];
  for (int c = 0; c < kC; ++c) acc[c] = set(0.f);
  for (int i = 0; i < count; ++i) {
    const V w = load(kept + 16 * i);
    const float* row = panel + 16 * list[i];
    for (int c = 0; c < kC; ++c) acc[c] = fma(w, set(row[c]), acc[c]);
  }
  for (int c = 0; c < kC; ++c) store(lanes + 16 * c, acc[c]);
}

static void write_few(const Frame& f, const Block& block, const uint32_t* list, int count, const float* kept,
                      const float* panel, const Images& out) {
  float lanes[kFew * 16];
  const int dim = (int)out.dim;
  for (int c = 0; c < dim; c += 4) {
    switch (dim - c < 4 ? dim - c : 4) {
      case 1: few_channels<1>(list, count, kept, panel + c, lanes + 16 * c); break;
      case 2: few_channels<2>(list, count, kept, panel + c, lanes + 16 * c); break;
      case 3: few_channels<3>(list, count, kept, panel + c, lanes + 16 * c); break;
      default: few_channels<4>(list, count, kept, panel + c, lanes + 16 * c); break;
    }
  }
  for (int y = 0; y < kBlock && block.y + y < f.camera.height; ++y) {
    for (int x = 0; x < kBlock && block.x + x < f.camera.width; ++x) {
      float* to = out.features + ((int64_t)(block.y + y) * f.camera.width + block.x + x) * dim;
      for (int c = 0; c < dim; ++c) to[c] = lanes[16 * c + 4 * y + x];
    }
  }
}

static void report_unhealthy(const Tile& t, int count, const Images& out) {
  for (int k = 0; k < count; ++k) {
    const float* row = out.feature_rows + (int64_t)t.splats[k].id * out.dim;
    for (int64_t c = 0; c < out.dim; ++c) {
      if (!(row[c] * 0.f == 0.f)) out.unhealthy[t.splats[k].id] = 1;
    }
  }
}

static void blend_few(const Frame& f, Tile& t, const Images& out, Scratch& scratch) {
  float* panel = take<float>(scratch, 16 * (int64_t)t.count);
  float* kept = take<float>(scratch, 16 * (int64_t)t.begin[16]);
  if (!pack_rows(t, t.count, out.feature_rows, out.dim, 0, (int)out.dim, panel)) report_unhealthy(t, t.count, out);
  for (int b = 0; b < 16; ++b) {
    const Block block = open_block(f, t, b);
    if (!block.visible) continue;
    Color c;
    const int used = blend_block<false, true>(f, t, b, block, c, nullptr, kept);
    write_color(f, block, c, out);
    write_few(f, block, t.list + t.begin[b], used, kept, panel, out);
  }
}

static void blend_many(const Frame& f, Tile& t, const Images& out, Scratch& scratch) {
  Groups groups = take_groups(scratch, t.begin[16]);
  float* panel = take<float>(scratch, kPanel * (int64_t)t.count);
  int count = 0;  // splats that any pixel used
  for (int b = 0; b < 16; ++b) {
    const Block block = open_block(f, t, b);
    if (!block.visible) continue;
    Color c;
    GroupWriter writer = write_groups(groups, t, b);
    const int used = blend_block<true, false>(f, t, b, block, c, &writer, nullptr);
    for (int g = 0; g < 4; ++g) groups.count[b][g] = writer.count[g];
    if (used) {
      const int last = (int)t.list[t.begin[b] + used - 1] + 1;
      count = last > count ? last : count;
    }
    write_color(f, block, c, out);
  }
  for (int64_t c = 0; c < out.dim; c += kPanel) {
    const int channels = (int)(out.dim - c < kPanel ? out.dim - c : kPanel);
    if (!pack_rows(t, count, out.feature_rows, out.dim, c, channels, panel)) report_unhealthy(t, count, out);
    features_of_panel(f, t, groups, panel, out, c, channels);
  }
}

void blend_tile(const Frame& f, int64_t index, const Images& out, Scratch& scratch) {
  Tile t;
  const bool features = out.features && out.dim > 0, few = features && out.dim <= kFew;
  const int64_t per_splat = !features ? 0 : few ? 64 : 4 * kPanel;
  const int64_t per_listed = !features ? 0 : few ? 64 : group_bytes_per_listed();
  open_tile(f, index, scratch, per_splat, per_listed, 1024, t);
  if (few) {
    blend_few(f, t, out, scratch);
  } else if (features) {
    blend_many(f, t, out, scratch);
  } else {
    for (int b = 0; b < 16; ++b) {
      const Block block = open_block(f, t, b);
      if (!block.visible) continue;
      Color c;
      blend_block<false, false>(f, t, b, block, c, nullptr, nullptr);
      write_color(f, block, c, out);
    }
  }
}

}  // namespace FS_ISA
