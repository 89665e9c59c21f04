// Blending, front to back: colour, alpha, depth and up to 16 feature channels a block, one pixel a thread. Also leaves for
// the kernels that follow where each pixel stopped and its transmittance there.
#include "splat.cuh"

#ifndef RGB
#define RGB 1  // colour, alpha, depth and stops; 0 takes the stops as given and blends features alone
#endif
#ifndef CHANNELS
#define CHANNELS 0  // feature channels of a block; blockIdx.y chooses which
#endif

struct BlendArgs {
  const uint32_t* offsets;   // [all tiles + 1]
  const uint32_t* list;      // [pairs] ranks of splats
  uint8_t* masks;            // [pairs] RGB: which patches each reaches is left here
  const Splat* splats;
  const float* rows;         // features [N, dim]
  const float* backgrounds;  // [C, 3] or null
  float *rgb, *features, *alpha, *depth;  // rgb may be null
  int32_t* last;             // [C, H, W] how many of its tile's entries a pixel used; with RGB may be null
  float* left;               // [C, H, W] transmittance behind them and alpha: see pack_left; or null
  const int32_t* only_if;    // nothing to do while this is 0; or null
  int64_t dim;
  int32_t width, height, tiles, tiles_x;
  float alpha_max, transmittance_min;
};

constexpr int kBatch = 256, kShape = 48 / 16;

FS_KERNEL_OCCUPANCY(256, (CHANNELS > 4 ? 2 : CHANNELS > 0 ? 3 : 4), blend, const BlendArgs a) {
  if (a.only_if && !*a.only_if) return;
  FS_SHARED(float4, entries, kBatch * kShape);  // shape; v0, log2_opacity, floor, mask; colour and depth
#if CHANNELS > 0
  FS_SHARED(float, features, kBatch * CHANNELS);
  FS_SHARED(uint32_t, ids, kBatch);
  const int64_t channel = static_cast<int64_t>(blockIdx.y) * CHANNELS;
  const int channels = static_cast<int>(min(static_cast<int64_t>(CHANNELS), a.dim - channel));
  float sums[CHANNELS];
  for (int c = 0; c < CHANNELS; ++c) sums[c] = 0;
#endif
  const int tile = blockIdx.x, warp = fs_warp(), lane = fs_lane();
  const Place place = place_of(tile, a.tiles, a.tiles_x);
  const int lx = patch_x(warp) + (lane & 7), ly = patch_y(warp) + (lane >> 3);
  const int x = place.x + lx, y = place.y + ly;
  const bool inside = x < a.width && y < a.height;
  const int64_t pixel = (static_cast<int64_t>(place.camera) * a.height + y) * a.width + x;
  const float px = lx - 7.5f, py = ly - 7.5f;
  const uint32_t first = a.offsets[tile];
  const int count = static_cast<int>(a.offsets[tile + 1] - first);

  float T = 1;
  bool live = inside;
#if RGB
  float red = 0, green = 0, blue = 0, depth = 0, alpha = 0;
  int last = 0;
  live = live && T > a.transmittance_min;
#else
  const int last = inside ? a.last[pixel] : 0;
  live = last > 0;
#endif
  for (int base = 0; base < count; base += kBatch) {
    if (!fs_sync_or(live)) break;
    const int n = min(kBatch, count - base);
    if (static_cast<int>(threadIdx.x) < n) {
      const int k = threadIdx.x, cx = place.x + kTile / 2, cy = place.y + kTile / 2;
      const int64_t at = first + static_cast<uint32_t>(base + k);
      const Splat s = load_splat(a.splats + fs_ldg(a.list + at));
      const uint32_t mask = patches_reached(s, cx, cy);
      float v0;
      entries[k * kShape] = seen_from(make_float4(s.x, s.y, s.x_rest, s.y_rest),
                                      make_float4(s.l11, s.l21, s.l22, s.log2_opacity), cx, cy, v0);
      entries[k * kShape + 1] = make_float4(v0, s.log2_opacity, s.floor, fs_uint_as_float(mask));
      entries[k * kShape + 2] = make_float4(s.r, s.g, s.b, s.z);
#if RGB
      a.masks[at] = static_cast<uint8_t>(mask);
#endif
#if CHANNELS > 0
      ids[k] = s.id;
#endif
    }
#if CHANNELS > 0
    fs_sync();
    for (int i = threadIdx.x; i < n * CHANNELS; i += kBatch) {
      const int k = i / CHANNELS, c = i - k * CHANNELS;
      features[i] = c < channels ? fs_ldg(a.rows + static_cast<int64_t>(ids[k]) * a.dim + channel + c) : 0.f;
    }
#endif
    fs_sync();
    for (int part = 0; part < n; part += 32) {
      const int mine = part + lane;
      const bool hit = mine < n && (fs_float_as_uint(entries[mine * kShape + 1].w) >> warp & 1);
      uint32_t hits = fs_ballot(hit);
      if (!fs_any(live)) break;
      while (hits) {
        const int k = part + fs_ffs(hits) - 1;
        hits &= hits - 1;
        const float4 shape = entries[k * kShape], more = entries[k * kShape + 1];
        const float al = fminf(alpha_at(shape, more.x, more.y, more.z, px, py), a.alpha_max);
        if (!live || !(al > 0)) continue;
        const float next = fmaf(-al, T, T);
#if RGB
        if (!(next > a.transmittance_min)) {
          live = false;
          continue;
        }
#else
        if (base + k >= last) {
          live = false;
          continue;
        }
#endif
        const float w = al * T;
        T = next;
#if RGB
        const float4 color = entries[k * kShape + 2];
        red = fmaf(color.x, w, red), green = fmaf(color.y, w, green), blue = fmaf(color.z, w, blue);
        depth = fmaf(color.w, w, depth), alpha += w;
        last = base + k + 1;
#endif
#if CHANNELS > 0
        for (int c = 0; c < CHANNELS; ++c) sums[c] = fmaf(features[k * CHANNELS + c], w, sums[c]);
#endif
      }
    }
  }
  if (!inside) return;
#if RGB
  if (blockIdx.y == 0) {
    const float rest = 1 - alpha;
    a.alpha[pixel] = alpha, a.depth[pixel] = alpha > 0 ? depth / alpha : 0;
    if (a.last) a.last[pixel] = last;
    if (a.left) a.left[pixel] = pack_left(T, alpha);
    if (a.rgb) {
      const float* background = a.backgrounds ? a.backgrounds + 3 * place.camera : nullptr;
      a.rgb[3 * pixel] = background ? fmaf(rest, background[0], red) : red;
      a.rgb[3 * pixel + 1] = background ? fmaf(rest, background[1], green) : green;
      a.rgb[3 * pixel + 2] = background ? fmaf(rest, background[2], blue) : blue;
    }
  }
#endif
#if CHANNELS > 0
  float* out = a.features + pixel * a.dim + channel;
  for (int c = 0; c < CHANNELS; ++c) {
    if (c < channels) out[c] = sums[c];
  }
#endif
}
