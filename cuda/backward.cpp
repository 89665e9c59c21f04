// Per block, the weights are found again front to back; then, back to front, with c the gradient of a pixel's loss to a
// weight and R the c blended behind: v_alpha = T (c - R), R <- R + alpha (c - R). No division, no cancellation.
// Features enter c by one matrix product (rows times gradient images) and leave by another (weights times images).
#include "backward.h"

#include "lanes.h"
#include "panel.h"

namespace FS_ISA {

#if defined(FS_ISA_avx512)
constexpr int kRowsAtOnce = 8;
#else
constexpr int kRowsAtOnce = 4;
#endif

// Finds the block's weights again: kept[i] = alpha (0 where it does not count) and T before it, 16 pixels each.
FS_INLINE void keep(float* kept, int i, V a, V T, M going) {
  store(kept + 32 * i, zero_unless(going, a));
  store(kept + 32 * i + 16, zero_unless(going, T));  // pixels outside of the image hold -infinity
}

static int weigh_block(const Frame& f, const Tile& t, int b, const Block& block, float* kept) {
  return walk_block(f, t, b, block, [&](int i, uint32_t, V a, V T, V, M going) { keep(kept, i, a, T, going); });
}

static int weigh_and_group(const Frame& f, const Tile& t, int b, const Block& block, float* kept, GroupWriter& groups) {
  return walk_block(f, t, b, block, [&](int i, uint32_t k, V a, V T, V w, M going) {
    keep(kept, i, a, T, going);
    append(groups, k, w);
  });
}

// Without gradients to geometry or colour: groups and tallies of the weights to the asked power; each may be null.
template <bool kGroups, bool kTally>
FS_INLINE int tally_block(const Frame& f, const Tile& t, int b, const Block& block, GroupWriter* groups, int power,
                          Tally* tallies) {
  return walk_block(f, t, b, block, [&](int, uint32_t k, V, V, V weight, M) {
    const V w = power == 2 ? weight * weight : weight;
    if (kGroups) append(*groups, k, w);
    if (kTally) {
      Tally& tally = tallies[k];
      tally.sum += sum(w);
      tally.pixels += (uint32_t)popcount16(bits(w > set(0.f)));
      const float most = greatest(w);
      tally.greatest = most > tally.greatest ? most : tally.greatest;
    }
  });
}

// The gradients of a block's pixels: to colour, to sum(w z), and to sum(w) (which the background sees too).
struct Seen {
  float r[16], g[16], b[16], z[16], weight[16];
};

static void read_gradients(const Frame& f, const Block& block, const Transposed& io, Seen& s, double* background) {
  memset(&s, 0, sizeof s);
  for (int y = 0; y < kBlock && block.y + y < f.camera.height; ++y) {
    for (int x = 0; x < kBlock && block.x + x < f.camera.width; ++x) {
      const int64_t at = (int64_t)(block.y + y) * f.camera.width + block.x + x;
      const int i = 4 * y + x;
      if (io.v_rgb) {
        const float* v = io.v_rgb + 3 * at;
        s.r[i] = v[0], s.g[i] = v[1], s.b[i] = v[2];
        s.weight[i] = -(v[0] * io.background[0] + v[1] * io.background[1] + v[2] * io.background[2]);
        if (background) {
          for (int c = 0; c < 3; ++c) background[c] += (double)(1 - io.alpha[at]) * v[c];
        }
      }
      if (io.v_alpha) s.weight[i] += io.v_alpha[at];
      if (io.v_depth && io.alpha[at] > 0) {
        const float inv = 1 / io.alpha[at];  // depth = sum(w z) / sum(w)
        s.z[i] = io.v_depth[at] * inv;
        s.weight[i] -= io.v_depth[at] * io.depth[at] * inv;
      }
    }
  }
}

// Back to front over the `used` first of the block's list. from_features: [used][16] what features add to c, or null.
template <bool kAbsolute>
static void unblend_block(const Frame& f, const Tile& t, int b, const Block& block, int used, const float* kept,
                          const float* from_features, const Seen& s, Record* records, float* absolute) {
  const uint32_t* list = t.list + t.begin[b];
  V rows[16];
  float px[16], py[16];
  store(px, block.px), store(py, block.py);
  for (int m = 0; m < 16; ++m) {
    const int p = kPairPixel[m];
    const float row[16] = {1, s.r[p], px[p], s.g[p], py[p], s.b[p], px[p] * px[p], s.z[p], px[p] * py[p], 0,
                           py[p] * py[p], 0, 0, 0, 0, 0};
    rows[m] = load(row);
  }
  const V vr = load(s.r), vg = load(s.g), vb = load(s.b), vz = load(s.z), vw = load(s.weight), most = set(f.alpha_max);
  V behind = set(0.f);
  for (int i = used - 1; i >= 0; --i) {
    const uint32_t k = list[i];
    const Packed& p = t.splats[k];
    const V a = load(kept + 32 * i), T = load(kept + 32 * i + 16);
    V c = fma(set(p.r), vr, fma(set(p.g), vg, fma(set(p.b), vb, fma(set(p.z), vz, vw))));
    if (from_features) c = c + load(from_features + 16 * i);
    const V d = c - behind, w = a * T;
    behind = fma(a, d, behind);
    const V vs = zero_unless(most > a, set(0.f) - w * d);
    float pairs[32];
    weave(vs, w, pairs);
    V acc0 = load(records[k].value), acc1 = set(0.f), acc2 = set(0.f), acc3 = set(0.f);
    for (int m = 0; m < 16; m += 4) {
      acc0 = fma(pair(pairs + 2 * m), rows[m], acc0);
      acc1 = fma(pair(pairs + 2 * m + 2), rows[m + 1], acc1);
      acc2 = fma(pair(pairs + 2 * m + 4), rows[m + 2], acc2);
      acc3 = fma(pair(pairs + 2 * m + 6), rows[m + 3], acc3);
    }
    store(records[k].value, (acc0 + acc1) + (acc2 + acc3));
    if (kAbsolute) {  // d sigma / d centre = -2 ln 2 (l11 u, l21 u + l22 v)
      const V u = fma(set(p.l21), block.py, fma(set(p.l11), block.px, set(p.u0)));
      const V v = fma(set(p.l22), block.py, set(p.v0));
      absolute[2 * k] += 1.3862944f * p.l11 * sum(abs(vs * u));
      absolute[2 * k + 1] += 1.3862944f * sum(abs(vs * fma(set(p.l22), v, set(p.l21) * u)));
    }
  }
}

// out[channel][16 pixels] of a block from the image [H, W, dim], zero outside of it; room for 16 * vectors(channels).
static void transpose_image(const Frame& f, const Block& block, const float* image, int64_t dim, int64_t c0,
                            int channels, float* out) {
  static const float zeros[kPanel] = {};
  const float* rows[16];
  for (int p = 0; p < 16; ++p) {
    const int x = block.x + (p & 3), y = block.y + (p >> 2);
    const bool inside = x < f.camera.width && y < f.camera.height;
    rows[p] = inside ? image + ((int64_t)y * f.camera.width + x) * dim + c0 : zeros;
  }
  rows_to_lanes(rows, channels, out);
}

// sums[i][16 pixels] += <panel row of the i-th listed splat, image column>, for kN of the list.
template <int kN>
FS_INLINE void dot_rows(const uint32_t* list, const float* panel, int stride, int channels, const float* columns,
                        float* sums) {
  V acc[kN];
  const float* row[kN];
  for (int i = 0; i < kN; ++i) acc[i] = load(sums + 16 * i), row[i] = panel + (int64_t)list[i] * stride;
  for (int c = 0; c < channels; ++c) {
    const V v = load(columns + 16 * c);
    for (int i = 0; i < kN; ++i) acc[i] = fma(set(row[i][c]), v, acc[i]);
  }
  for (int i = 0; i < kN; ++i) store(sums + 16 * i, acc[i]);
}

static void dot_block(const uint32_t* list, int used, const float* panel, int stride, int channels,
                      const float* columns, float* sums) {
  int i = 0;
  for (; i + kRowsAtOnce <= used; i += kRowsAtOnce)
    dot_rows<kRowsAtOnce>(list + i, panel, stride, channels, columns, sums + 16 * i);
  for (; i + 2 <= used; i += 2) dot_rows<2>(list + i, panel, stride, channels, columns, sums + 16 * i);
  for (; i < used; ++i) dot_rows<1>(list + i, panel, stride, channels, columns, sums + 16 * i);
}

// panel rows += weights * image, for four pixels and kN vectors of channels.
template <int kN>
FS_INLINE void spread_rows(const Group& g, const V image[4][kN], float* panel, int stride) {
  for (int i = 0; i < g.count; ++i) {
    float* row = panel + (int64_t)g.splats[i] * stride;
    const float* w = g.weights + 4 * i;
    const V w0 = set(w[0]), w1 = set(w[1]), w2 = set(w[2]), w3 = set(w[3]);
    for (int q = 0; q < kN; ++q) {
      V acc = fma(w0, image[0][q], load(row + 16 * q));
      acc = fma(w1, image[1][q], acc);
      acc = fma(w2, image[2][q], acc);
      store(row + 16 * q, fma(w3, image[3][q], acc));
    }
  }
}

template <int kN>
static void spread_group(const Frame& f, const Group& g, int x, int y, const float* image, int64_t dim, int64_t c0,
                         int channels, float* panel, int stride) {
  V v[4][kN];
  const float* from = image + ((int64_t)y * f.camera.width + x) * dim + c0;
  for (int p = 0; p < 4; ++p) {
    for (int q = 0; q < kN; ++q)
      v[p][q] = x + p < f.camera.width ? load_first(from + p * dim + 16 * q, channels - 16 * q) : set(0.f);
  }
  spread_rows<kN>(g, v, panel, stride);
}

// Asks for the channels of group `index` (4 b + row) of a tile, if it lies in the image.
FS_INLINE void fetch_group(const Frame& f, const Tile& t, int index, const float* image, int64_t dim, int64_t c0,
                           int channels) {
  const int b = index >> 2, x = t.x + (b & 3) * kBlock, y = t.y + (b >> 2) * kBlock + (index & 3);
  if (index >= 64 || x >= f.camera.width || y >= f.camera.height) return;
  for (int p = 0; p < 4 && x + p < f.camera.width; ++p) {
    const float* from = image + ((int64_t)y * f.camera.width + x + p) * dim + c0;
    for (int c = 0; c < channels; c += 16) prefetch(from + c);
  }
}

static void spread_panel(const Frame& f, const Tile& t, const Groups& groups, const float* image, int64_t dim,
                         int64_t c0, int channels, float* panel) {
  const int n = vectors(channels), stride = 16 * n;
  for (int b = 0; b < 16; ++b) {
    const int x = t.x + (b & 3) * kBlock, y = t.y + (b >> 2) * kBlock;
    if (x >= f.camera.width) continue;
    for (int row = 0; row < kBlock && y + row < f.camera.height; ++row) {
      const Group g = group_of(groups, t, b, row);
      fetch_group(f, t, 4 * b + row + 1, image, dim, c0, channels);
      if (!g.count) continue;
      for (int q = 0; q < n; q += kWide) {
        const int64_t c = c0 + 16 * q;
        const int left = channels - 16 * q;
        switch (n - q < kWide ? n - q : kWide) {
#if defined(FS_ISA_avx512)
          case 4: spread_group<4>(f, g, x, y + row, image, dim, c, left, panel + 16 * q, stride); break;
          case 3: spread_group<3>(f, g, x, y + row, image, dim, c, left, panel + 16 * q, stride); break;
          case 2: spread_group<2>(f, g, x, y + row, image, dim, c, left, panel + 16 * q, stride); break;
#endif
          default: spread_group<1>(f, g, x, y + row, image, dim, c, left, panel + 16 * q, stride); break;
        }
      }
    }
  }
}

// Colour, alpha and depth alone: block by block.
static void transpose_colors(const Frame& f, const Tile& t, const Transposed& io, double* background, float* kept) {
  for (int b = 0; b < 16; ++b) {
    const Block block = open_block(f, t, b);
    if (!block.visible) continue;
    Seen seen;
    read_gradients(f, block, io, seen, background);
    if (!io.records) continue;
    const int used = weigh_block(f, t, b, block, kept);
    if (io.absolute)
      unblend_block<true>(f, t, b, block, used, kept, nullptr, seen, io.records + t.first, io.absolute + 2 * t.first);
    else
      unblend_block<false>(f, t, b, block, used, kept, nullptr, seen, io.records + t.first, nullptr);
  }
}

// What features add to the gradient of each weight: sums[listed][16].
static void dot_panels(const Frame& f, const Tile& t, const Transposed& io, const int* used, int count, float* panel,
                       float* columns, float* sums) {
  memset(sums, 0, (size_t)t.begin[16] * 64);
  for (int64_t c = 0; c < io.dim; c += kPanel) {
    const int channels = (int)(io.dim - c < kPanel ? io.dim - c : kPanel);
    pack_rows(t, count, io.feature_rows, io.dim, c, channels, panel);
    for (int b = 0; b < 16; ++b) {
      if (!used[b]) continue;
      const Block block = open_block(f, t, b);
      transpose_image(f, block, io.v_features, io.dim, c, channels, columns);
      dot_block(t.list + t.begin[b], used[b], panel, 16 * vectors(channels), channels, columns,
                sums + 16 * (int64_t)t.begin[b]);
    }
  }
}

static void transpose_features(const Frame& f, const Tile& t, int64_t index, const Transposed& io, double* background,
                               Scratch& scratch) {
  const int64_t listed = t.begin[16];
  const bool spread = io.feature_sums != nullptr, dot = io.records && io.feature_rows && io.v_features;
  float* kept = io.records ? take<float>(scratch, 32 * listed) : nullptr;
  Groups groups = {};
  if (spread) groups = take_groups(scratch, listed);
  int used[16], count = 0;
  for (int b = 0; b < 16; ++b) {
    const Block block = open_block(f, t, b);
    used[b] = 0;
    if (!block.visible) continue;
    float* keep = kept ? kept + 32 * (int64_t)t.begin[b] : nullptr;
    GroupWriter writer = {};
    if (spread) writer = write_groups(groups, t, b);
    Tally* tallies = io.tallies ? io.tallies + t.first : nullptr;
    if (spread && kept) used[b] = weigh_and_group(f, t, b, block, keep, writer);
    else if (kept) used[b] = weigh_block(f, t, b, block, keep);
    else if (spread && tallies) used[b] = tally_block<true, true>(f, t, b, block, &writer, io.power, tallies);
    else if (spread) used[b] = tally_block<true, false>(f, t, b, block, &writer, io.power, nullptr);
    else used[b] = tally_block<false, true>(f, t, b, block, nullptr, io.power, tallies);
    if (spread) memcpy(groups.count[b], writer.count, sizeof writer.count);
    if (used[b]) {
      const int last = (int)t.list[t.begin[b] + used[b] - 1] + 1;
      count = last > count ? last : count;
    }
  }
  if (spread) {
    float* sums = io.feature_sums + (t.first - io.first_place) * 16 * ((io.dim + 15) / 16);
    io.used[index] = (uint32_t)count;
    for (int64_t c = 0; c < io.dim; c += kPanel) {
      const int channels = (int)(io.dim - c < kPanel ? io.dim - c : kPanel);
      float* panel = sums + t.count * c;
      memset(panel, 0, (size_t)count * 64 * vectors(channels));
      spread_panel(f, t, groups, io.v_features, io.dim, c, channels, panel);
    }
  }
  if (!io.records) {
    if (background) {
      Seen seen;
      for (int b = 0; b < 16; ++b) {
        const Block block = open_block(f, t, b);
        if (block.visible) read_gradients(f, block, io, seen, background);
      }
    }
    return;
  }
  float* dots = nullptr;
  if (dot) {
    dots = take<float>(scratch, 16 * listed);
    float* columns = take<float>(scratch, 16 * kPanel);
    float* panel = take<float>(scratch, (int64_t)kPanel * t.count);
    dot_panels(f, t, io, used, count, panel, columns, dots);
  }
  for (int b = 0; b < 16; ++b) {
    const Block block = open_block(f, t, b);
    if (!block.visible) continue;
    Seen seen;
    read_gradients(f, block, io, seen, background);
    const float* keep = kept + 32 * (int64_t)t.begin[b];
    const float* add = dots ? dots + 16 * (int64_t)t.begin[b] : nullptr;
    if (io.absolute)
      unblend_block<true>(f, t, b, block, used[b], keep, add, seen, io.records + t.first, io.absolute + 2 * t.first);
    else
      unblend_block<false>(f, t, b, block, used[b], keep, add, seen, io.records + t.first, nullptr);
  }
}

void transpose_tile(const Frame& f, int64_t index, const Transposed& io, Scratch& scratch) {
  Tile t;
  const bool features = io.feature_sums || io.tallies || (io.records && io.feature_rows && io.v_features);
  const int64_t per_splat = features ? 4 * kPanel : 0;
  const int64_t per_listed = 128 + (features ? 64 + group_bytes_per_listed() : 0);
  open_tile(f, index, scratch, per_splat, per_listed, 2048 + 64 * kPanel, t);
  double* background = io.background_sums ? io.background_sums + 3 * index : nullptr;
  if (background) background[0] = background[1] = background[2] = 0;
  if (io.records) memset(io.records + t.first, 0, (size_t)t.count * sizeof(Record));
  if (io.absolute) memset(io.absolute + 2 * t.first, 0, (size_t)t.count * 8);
  if (io.tallies) memset(io.tallies + t.first, 0, (size_t)t.count * sizeof(Tally));
  if (features) transpose_features(f, t, index, io, background, scratch);
  else transpose_colors(f, t, io, background, take<float>(scratch, 32 * (int64_t)t.begin[16]));
}

void add_features(const Frame& f, const Visit* visits, int64_t count, const uint32_t* places,
                  const uint32_t* entry_tiles, const Transposed& io, float* out) {
  const int64_t padded = 16 * ((io.dim + 15) / 16);
  for (int64_t i = 0; i < count; ++i) {
    const Visit& v = visits[i];
    float* to = out + (int64_t)v.id * io.dim;
    for (uint32_t e = v.begin; e < v.end; ++e) {
      const uint32_t tile = entry_tiles[e], first = f.offsets[tile], k = places[e] - first;
      if (k >= io.used[tile]) continue;
      const int64_t in_tile = f.offsets[tile + 1] - first;
      const float* sums = io.feature_sums + ((int64_t)first - io.first_place) * padded;
      for (int64_t c = 0; c < io.dim; c += kPanel) {
        const int channels = (int)(io.dim - c < kPanel ? io.dim - c : kPanel);
        const float* row = sums + in_tile * c + (int64_t)k * 16 * vectors(channels);
        int q = 0;
        for (; q + 16 <= channels; q += 16) store(to + c + q, load(to + c + q) + load(row + q));
        for (; q < channels; ++q) to[c + q] += row[q];
      }
    }
  }
}

}  // namespace FS_ISA
