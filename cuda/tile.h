// Inside one tile: its splats packed for the pixel loops, and each block's list of them.
#pragma once
#include "simd.h"
#include "splat.h"

namespace FS_ISA {

template <class T>
FS_INLINE T* take(Scratch& s, int64_t count) {
  T* p = (T*)(s.base + s.used);
  s.used += (count * (int64_t)sizeof(T) + 127) & ~(int64_t)63;  // at least 64 bytes of slack: stores of 16 may overrun
  return p;
}

// 64 bytes. Pixel coordinates are relative to the tile's centre: u = u0 + l11 x + l21 y, v = v0 + l22 y.
struct Packed {
  float l11, l21, u0, l22, v0, log2_opacity, floor, z;
  float r, g, b;
  uint32_t id;
  float pad[4];
};

struct Tile {
  int x, y;               // of its first pixel
  int count;              // splats
  int64_t first;          // its place in Frame.ids
  const Packed* splats;   // [count]
  const uint32_t* list;   // splats of block b, near to far: list[begin[b]..begin[b + 1])
  int begin[17];
};

static inline int64_t tile_bytes(int64_t count, int64_t listed) { return count * 64 + listed * 4 + 1024; }

static void pack_splats(const Frame& f, Tile& t, Packed* out) {
  const double cx = t.x + kTile / 2, cy = t.y + kTile / 2;
  const uint32_t* ids = f.ids + t.first;
  for (int k = 0; k < t.count; ++k) {
    if (k + 16 < t.count) prefetch(&f.splats[ids[k + 16]]);
    const Splat& s = f.splats[ids[k]];
    Packed& p = out[k];
    const double dx = cx - s.x - s.x_rest, dy = cy - s.y - s.y_rest;
    p.l11 = s.l11, p.l21 = s.l21, p.l22 = s.l22;
    p.u0 = (float)(s.l11 * dx + s.l21 * dy), p.v0 = (float)(s.l22 * dy);
    p.log2_opacity = s.log2_opacity, p.floor = s.floor, p.z = s.z;
    p.r = s.rgb[0], p.g = s.rgb[1], p.b = s.rgb[2];
    p.id = s.id;
  }
}

// Writes each block's list after the other; returns the end.
static void list_blocks(const uint16_t* masks, Tile& t, uint32_t* list) {
  int n = 0;
  for (int b = 0; b < 16; ++b) {
    t.begin[b] = n;
#if defined(FS_ISA_avx512)
    const __m512i bit = _mm512_set1_epi32(1 << b), sixteen = _mm512_set1_epi32(16);
    __m512i k = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    for (int i = 0; i < t.count; i += 16, k = _mm512_add_epi32(k, sixteen)) {
      const int left = t.count - i;
      const __mmask16 valid = (__mmask16)(left >= 16 ? 0xffff : (1 << left) - 1);
      const __m512i m = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(valid, masks + i));
      const __mmask16 hit = _mm512_test_epi32_mask(m, bit);
      _mm512_storeu_si512(list + n, _mm512_maskz_compress_epi32(hit, k));
      n += popcount16(hit);
    }
#else
    for (int i = 0; i < t.count; ++i) {
      list[n] = (uint32_t)i;
      n += masks[i] >> b & 1;
    }
#endif
  }
  t.begin[16] = n;
}

// Starts on tile `index`: packs its splats and lists its blocks in scratch, with `extra` bytes left for the caller
// plus `per_listed` for each listed splat.
static void open_tile(const Frame& f, int64_t index, Scratch& scratch, int64_t per_splat, int64_t per_listed,
                      int64_t extra, Tile& t) {
  t.x = (int)(index % f.camera.tiles_x) * kTile, t.y = (int)(index / f.camera.tiles_x) * kTile;
  t.first = f.offsets[index];
  t.count = (int)(f.offsets[index + 1] - f.offsets[index]);
  int64_t listed = 0;
  for (int k = 0; k < t.count; ++k) listed += popcount16(f.masks[t.first + k]);
  const int64_t need = tile_bytes(t.count, listed) + t.count * per_splat + listed * per_listed + extra;
  if (need > scratch.capacity) scratch.grow(&scratch, need);
  scratch.used = 0;
  Packed* packed = take<Packed>(scratch, t.count);
  uint32_t* list = take<uint32_t>(scratch, listed);
  pack_splats(f, t, packed);
  list_blocks(f.masks + t.first, t, list);
  t.splats = packed, t.list = list;
}

static const float kPixelX[16] = {0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3};
static const float kPixelY[16] = {0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3};

// A 4x4 block of pixels. Lane i is the pixel in row i / 4 and column i % 4.
struct Block {
  int x, y;       // of its first pixel
  V px, py;       // pixel centres relative to the tile's centre
  V transmitted;  // 1, or -infinity for pixels outside of the image, which no comparison lets through
  bool visible;   // any pixel inside of the image
};

FS_INLINE Block open_block(const Frame& f, const Tile& t, int b) {
  Block o;
  const int column = (b & 3) * kBlock, row = (b >> 2) * kBlock;
  o.x = t.x + column, o.y = t.y + row;
  o.visible = o.x < f.camera.width && o.y < f.camera.height;
  const V x = load(kPixelX), y = load(kPixelY);
  o.px = x + set((float)column - 7.5f), o.py = y + set((float)row - 7.5f);
  const M inside = (set((float)(f.camera.width - o.x)) > x) & (set((float)(f.camera.height - o.y)) > y);
  o.transmitted = select(inside, set(1.f), set(-INFINITY));
  return o;
}

// alpha before the clamp by alpha_max, 0 where the pair does not count.
FS_INLINE V alpha_of(const Packed& p, V px, V py) {
  const V u = fma(set(p.l21), py, fma(set(p.l11), px, set(p.u0)));
  const V v = fma(set(p.l22), py, set(p.v0));
  const V e = fnma(v, v, fnma(u, u, set(p.log2_opacity)));
  return zero_unless(e >= set(p.floor), exp2(e));
}

// Walks the list of block b front to back: visit(i, splat, alpha, T, w, going) for its i-th splat, with alpha clamped
// and 0 where the pair does not count, T the transmittance before it, and w = alpha T where the pixel is still
// `going`, else 0. Stops once no pixel is; returns how many splats were visited.
template <class Visit>
FS_INLINE int walk_block(const Frame& f, const Tile& t, int b, const Block& block, Visit visit) {
  const uint32_t* list = t.list + t.begin[b];
  const int count = t.begin[b + 1] - t.begin[b];
  const V most = set(f.alpha_max), least = set(f.transmittance_min), px = block.px, py = block.py;
  V T = block.transmitted;
  for (int i = 0; i < count; ++i) {
    const Packed& p = t.splats[list[i]];
    const V a = min(alpha_of(p, px, py), most);
    const V next = fnma(a, T, T);
    const M going = next > least;  // T never rises, so a pixel that stopped stays so
    visit(i, list[i], a, T, zero_unless(going, a * T), going);
    T = next;
    if (!bits(going)) return i + 1;
  }
  return count;
}

}  // namespace FS_ISA
