#include "ssim.h"

#include "simd.h"

namespace FS_ISA {

static const int kTaps = 11, kReach = 5;
static const int64_t kChunk = 512;  // floats of a row whose intermediate sums stay in the first-level cache
static const int64_t kSpan = kChunk + 2 * kReach * fs::kMostChannels + 32;
static const float kC1 = 0.01f * 0.01f, kC2 = 0.03f * 0.03f;
static const float kOnes[32] = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};  // then zeros
// exp(-(i - 5)^2 / 4.5), normalised.
static const float kWindow[kTaps] = {0.00102838008f, 0.00759875814f, 0.0360007721f, 0.10936069f,
                                     0.213005538f,   0.266011725f,   0.213005538f,  0.10936069f,
                                     0.0360007721f,  0.00759875814f, 0.00102838008f};

// Lanes [at, at + 16) of a row of n floats, zeros outside of it.
FS_INLINE V load_within(const float* row, int64_t at, int64_t n) {
  if (at >= 0 && at + 16 <= n) return load(row + at);
  float lanes[16];
  for (int64_t i = 0; i < 16; ++i) lanes[i] = at + i >= 0 && at + i < n ? row[at + i] : 0.f;
  return load(lanes);
}

FS_INLINE void store_within(float* row, int64_t at, int64_t n, V value) {
  if (at + 16 <= n) return store(row + at, value);
  float lanes[16];
  store(lanes, value);
  for (int64_t i = 0; at + i < n; ++i) row[at + i] = lanes[i];
}

FS_INLINE V divide(V a, V b) {
  float x[16], y[16];
  store(x, a), store(y, b);
  for (int i = 0; i < 16; ++i) x[i] /= y[i];
  return load(x);
}

// The horizontal taps about buffer[j].
FS_INLINE V across(const float* buffer, int64_t channels) {
  V total = set(kWindow[0]) * load(buffer - kReach * channels);
  for (int k = 1; k < kTaps; ++k) total = fma(set(kWindow[k]), load(buffer + (k - kReach) * channels), total);
  return total;
}

struct Rows {
  int64_t first, count;
  const float* window;
};

// The image rows under the window about y, and their taps.
static Rows rows_under(int64_t y, int64_t height) {
  const int64_t first = y < kReach ? 0 : y - kReach, last = y + kReach < height ? y + kReach : height - 1;
  return {first, last - first + 1, kWindow + (first - (y - kReach))};
}

void ssim_strip(const fs::Photometric& p, int64_t strip) {
  float sums[5][kSpan];
  const int64_t n = p.row, c = p.channels, halo = kReach * c, plane = p.height * n;
  const int64_t end = (strip + 1) * fs::kStripRows < p.height ? (strip + 1) * fs::kStripRows : p.height;
  const float scale = (float)(-p.dssim * p.scale);
  for (int64_t y = strip * fs::kStripRows; y < end; ++y) {
    const Rows rows = rows_under(y, p.height);
    double similarity = 0, difference = 0;
    for (int64_t start = 0; start < n; start += kChunk) {
      const int64_t stop = start + kChunk < n ? start + kChunk : n;
      // One vector more than the taps need: the last one of the loop below may reach past the row's end.
      for (int64_t at = start - halo; at < stop + halo + 16; at += 16) {
        V m = set(0.f), v = m, xx = m, yy = m, xy = m;
        for (int64_t k = 0; k < rows.count; ++k) {
          const V g = set(rows.window[k]);
          const V a = load_within(p.render + (rows.first + k) * n, at, n);
          const V b = load_within(p.truth + (rows.first + k) * n, at, n);
          const V ga = g * a, gb = g * b;
          m = m + ga, v = v + gb;
          xx = fma(ga, a, xx), yy = fma(gb, b, yy), xy = fma(ga, b, xy);
        }
        const int64_t j = at - (start - halo);
        store(sums[0] + j, m), store(sums[1] + j, v), store(sums[2] + j, xx), store(sums[3] + j, yy);
        store(sums[4] + j, xy);
      }
      V total = set(0.f), apart = total;
      for (int64_t at = start; at < stop; at += 16) {
        const int64_t j = at - start + halo;
        const V m = across(sums[0] + j, c), v = across(sums[1] + j, c), xx = across(sums[2] + j, c);
        const V yy = across(sums[3] + j, c), xy = across(sums[4] + j, c);
        const V product = m * v, squares = fma(m, m, v * v), two = set(2.f);
        const V a1 = fma(two, product, set(kC1)), a2 = fma(two, xy - product, set(kC2));
        const V b1 = squares + set(kC1), b2 = xx + yy - squares + set(kC2);
        const V inverse = divide(set(1.f), b1 * b2), s = a1 * a2 * inverse;
        V weight = load(kOnes + (at + 16 <= stop ? 0 : at + 16 - stop));
        if (p.weight) weight = weight * load_within(p.weight + y * n, at, n);
        total = fma(weight, s, total);
        const V gap = load_within(p.render + y * n, at, n) - load_within(p.truth + y * n, at, n);
        apart = fma(weight, abs(gap), apart);
        if (!p.maps) continue;
        weight = weight * set(scale);
        const V dxy = two * a1 * inverse, dxx = set(0.f) - s * b1 * inverse;
        const V dm = two * (v * a2 * inverse - m * s * b2 * inverse) - v * dxy - two * m * dxx;
        store_within(p.maps + y * n, at, n, weight * dm);
        store_within(p.maps + plane + y * n, at, n, weight * dxx);
        store_within(p.maps + 2 * plane + y * n, at, n, weight * dxy);
      }
      similarity += sum(total), difference += sum(apart);
    }
    p.sums[y] = similarity, p.sums[p.height + y] = difference;
  }
}

void ssim_grad_strip(const fs::Photometric& p, int64_t strip) {
  float sums[3][kSpan];
  const int64_t n = p.row, c = p.channels, halo = kReach * c, plane = p.height * n;
  const int64_t end = (strip + 1) * fs::kStripRows < p.height ? (strip + 1) * fs::kStripRows : p.height;
  const V step = set((float)((1 - p.dssim) * p.scale)), zero = set(0.f);
  for (int64_t y = strip * fs::kStripRows; y < end; ++y) {
    const Rows rows = rows_under(y, p.height);
    for (int64_t start = 0; start < n; start += kChunk) {
      const int64_t stop = start + kChunk < n ? start + kChunk : n;
      for (int64_t at = start - halo; at < stop + halo + 16; at += 16) {
        V r = zero, q = zero, s = zero;
        for (int64_t k = 0; k < rows.count; ++k) {
          const V g = set(rows.window[k]);
          const float* from = p.maps + (rows.first + k) * n;
          r = fma(g, load_within(from, at, n), r);
          q = fma(g, load_within(from + plane, at, n), q);
          s = fma(g, load_within(from + 2 * plane, at, n), s);
        }
        const int64_t j = at - (start - halo);
        store(sums[0] + j, r), store(sums[1] + j, q), store(sums[2] + j, s);
      }
      for (int64_t at = start; at < stop; at += 16) {
        const int64_t j = at - start + halo;
        const V x = load_within(p.render + y * n, at, n), t = load_within(p.truth + y * n, at, n);
        V grad = across(sums[0] + j, c);
        grad = fma(x + x, across(sums[1] + j, c), grad);
        grad = fma(t, across(sums[2] + j, c), grad);
        V sign = zero_unless(x > t, step) - zero_unless(t > x, step);
        if (p.weight) sign = sign * load_within(p.weight + y * n, at, n);
        // A chunk is a whole number of vectors, so only the end of the row cuts one.
        store_within(p.grad + y * n, at, n, grad + sign);
      }
    }
  }
}

}  // namespace FS_ISA

#ifdef FS_ENTRY
#include "parallel.h"

// render, truth, weight or null: [height, width, channels]. maps [3, height, width, channels] and grad, both null for
// the loss alone. sums [2, height] scratch. loss [1]. Returns 0, or 1 for more channels than kMostChannels.
extern "C" FS_API int fs_photometric(const float* render, const float* truth, const float* weight, int64_t height,
                                     int64_t width, int64_t channels, double dssim, double count, float* maps,
                                     double* sums, float* grad, double* loss) {
  if (channels < 1 || channels > fs::kMostChannels) return 1;
  const fs::Photometric p = {render, truth, weight, height, width * channels, channels, dssim, 1 / count,
                             maps,   sums,  grad};
  const int64_t strips = (height + fs::kStripRows - 1) / fs::kStripRows;
  auto forward = [&](int64_t strip, int) { FS_PICK(ssim_strip)(p, strip); };
  fs::parallel(strips, forward);
  if (grad) {
    auto backward = [&](int64_t strip, int) { FS_PICK(ssim_grad_strip)(p, strip); };
    fs::parallel(strips, backward);
  }
  double similarity = 0, difference = 0;
  for (int64_t y = 0; y < height; ++y) similarity += sums[y], difference += sums[height + y];
  double weights = weight ? 0 : (double)(height * width * channels);
  if (weight)
    for (int64_t i = 0; i < height * width * channels; ++i) weights += weight[i];
  *loss = ((1 - dssim) * difference + dssim * (weights - similarity)) / count;
  return 0;
}
#endif
