// Projection by the local affine approximation (Zwicker et al., EWA splatting, 2001), in double precision: the inputs
// are float32, so rounding stays below what float32 outputs can show even for long thin splats. The loops over lanes
// are written so that the compiler vectorises them: no branches, no calls.
#include "project.h"

#include "sh.h"
#include "simd.h"

namespace FS_ISA {

constexpr int kLanes = 16;
typedef double Lane[kLanes];
static const double kLog2e = 1.4426950408889634, kLn2 = 0.6931471805599453;

// log2 of a positive normal number, absolute error about 1e-9: exponent, then atanh series of the mantissa.
FS_INLINE double log2_approx(double x) {
  int64_t i;
  memcpy(&i, &x, 8);
  const int64_t biased = i - 0x3fe6a09e667f3bcd;  // so that the mantissa falls in sqrt(1/2)..sqrt(2)
  const int64_t e = biased >> 52;
  const int64_t j = i - e * ((int64_t)1 << 52);
  double m;
  memcpy(&m, &j, 8);
  const double s = (m - 1) / (m + 1), q = s * s;
  return (double)(int32_t)e + 2 * kLog2e * s * (1 + q * (1. / 3 + q * (1. / 5 + q * (1. / 7 + q * (1. / 9)))));
}

struct Inputs {
  Lane m0, m1, m2, qw, qx, qy, qz, s0, s1, s2, opacity;
};

struct Projected {
  Lane x, y, z, l11, l21, l22, log2_opacity, floor, rx, ry, A, B, C, good;
};

static void read(const Gaussians& g, int64_t base, int n, Inputs& in) {
  for (int i = 0; i < kLanes; ++i) {
    const int64_t k = base + (i < n ? i : 0);
    const float *m = g.means + 3 * k, *q = g.quats + 4 * k, *s = g.scales + 3 * k;
    in.m0[i] = m[0], in.m1[i] = m[1], in.m2[i] = m[2];
    in.qw[i] = q[0], in.qx[i] = q[1], in.qy[i] = q[2], in.qz[i] = q[3];
    in.s0[i] = s[0], in.s1[i] = s[1], in.s2[i] = s[2];
    in.opacity[i] = g.opacities[k];
  }
}

static void project_lanes(const Camera& c, const Settings& s, double log2_alpha_min, const Inputs& in, Projected& out) {
  const double aa = s.antialiased ? 1. : 0.;
  const double extent2 = s.extent * s.extent;
  for (int i = 0; i < kLanes; ++i) {
    const double X = c.R[0] * in.m0[i] + c.R[1] * in.m1[i] + c.R[2] * in.m2[i] + c.t[0];
    const double Y = c.R[3] * in.m0[i] + c.R[4] * in.m1[i] + c.R[5] * in.m2[i] + c.t[1];
    const double Z = c.R[6] * in.m0[i] + c.R[7] * in.m1[i] + c.R[8] * in.m2[i] + c.t[2];
    const double norm2 = in.qw[i] * in.qw[i] + in.qx[i] * in.qx[i] + in.qy[i] * in.qy[i] + in.qz[i] * in.qz[i];
    const double zero = (in.m0[i] + in.m1[i] + in.m2[i] + norm2 + in.s0[i] + in.s1[i] + in.s2[i] + in.opacity[i]) * 0;
    const double iz = 1 / Z, rx = X * iz, ry = Y * iz;
    double cx = rx < c.lim_x0 ? c.lim_x0 : rx, cy = ry < c.lim_y0 ? c.lim_y0 : ry;
    cx = cx > c.lim_x1 ? c.lim_x1 : cx, cy = cy > c.lim_y1 ? c.lim_y1 : cy;
    const double j00 = c.fx * iz, j11 = c.fy * iz, j02 = -j00 * cx, j12 = -j11 * cy;
    const double a0 = j00 * c.R[0] + j02 * c.R[6], a1 = j00 * c.R[1] + j02 * c.R[7], a2 = j00 * c.R[2] + j02 * c.R[8];
    const double b0 = j11 * c.R[3] + j12 * c.R[6], b1 = j11 * c.R[4] + j12 * c.R[7], b2 = j11 * c.R[5] + j12 * c.R[8];
    const double n2 = 2 / norm2;
    const double w = in.qw[i], x = in.qx[i], y = in.qy[i], z = in.qz[i];
    const double r00 = 1 - n2 * (y * y + z * z), r01 = n2 * (x * y - w * z), r02 = n2 * (x * z + w * y);
    const double r10 = n2 * (x * y + w * z), r11 = 1 - n2 * (x * x + z * z), r12 = n2 * (y * z - w * x);
    const double r20 = n2 * (x * z - w * y), r21 = n2 * (y * z + w * x), r22 = 1 - n2 * (x * x + y * y);
    const double p0 = (a0 * r00 + a1 * r10 + a2 * r20) * in.s0[i], q0 = (b0 * r00 + b1 * r10 + b2 * r20) * in.s0[i];
    const double p1 = (a0 * r01 + a1 * r11 + a2 * r21) * in.s1[i], q1 = (b0 * r01 + b1 * r11 + b2 * r21) * in.s1[i];
    const double p2 = (a0 * r02 + a1 * r12 + a2 * r22) * in.s2[i], q2 = (b0 * r02 + b1 * r12 + b2 * r22) * in.s2[i];
    const double raw00 = p0 * p0 + p1 * p1 + p2 * p2, raw11 = q0 * q0 + q1 * q1 + q2 * q2;
    const double c00 = raw00 + s.eps2d, c11 = raw11 + s.eps2d, c01 = p0 * q0 + p1 * q1 + p2 * q2;
    // Lagrange's identity: the determinant without cancellation.
    const double e0 = p1 * q2 - p2 * q1, e1 = p2 * q0 - p0 * q2, e2 = p0 * q1 - p1 * q0;
    const double raw_det = e0 * e0 + e1 * e1 + e2 * e2;
    const double det = raw_det + s.eps2d * (raw00 + raw11 + s.eps2d);
    const double compensation = aa * sqrt(raw_det / det) + (1 - aa);
    const double opacity = in.opacity[i] * compensation;
    const double id = 1 / det, A = c11 * id, B = -c01 * id, C = c00 * id;
    const double scale = 0.8493218002880191;  // sqrt(log2(e) / 2)
    const double l11 = sqrt(A);
    const double lo = log2_approx(opacity > 1e-300 ? opacity : 1e-300);
    const double by_alpha = 2 * kLn2 * (lo - log2_alpha_min);
    const double t_signed = by_alpha < extent2 ? by_alpha : extent2, t = t_signed > 0 ? t_signed : 0;
    const double by_extent = lo - 0.5 * kLog2e * extent2;
    out.x[i] = c.fx * rx + c.cx, out.y[i] = c.fy * ry + c.cy, out.z[i] = Z;
    out.l11[i] = l11 * scale, out.l21[i] = B / l11 * scale, out.l22[i] = scale / sqrt(c11);
    out.log2_opacity[i] = lo;
    out.floor[i] = by_extent > log2_alpha_min ? by_extent : log2_alpha_min;
    out.rx[i] = sqrt(t * c00), out.ry[i] = sqrt(t * c11);
    out.A[i] = A, out.B[i] = B, out.C[i] = C;
    const bool good = (zero == 0) & (Z >= s.near) & (Z <= s.far) & (norm2 > 0) & (in.s0[i] > 0) & (in.s1[i] > 0) &
                      (in.s2[i] > 0) & (in.opacity[i] >= s.alpha_min) & (opacity >= s.alpha_min) &
                      (opacity > 0) & (Z > 0) & (det > 0) & (A > 1e-30) & (C > 1e-30) & (A + C < 1e30) &
                      (c00 + c11 < 1e30);
    out.good[i] = good ? 1. : 0.;
  }
}

// True when the `count` numbers at p are finite.
FS_INLINE bool all_finite(const float* p, int count) {
  V zero = set(0.f);
  for (int c = 0; c < count; c += 16) zero = fma(load_first(p + c, count - c), set(0.f), zero);
  return bits(zero >= set(0.f)) == 0xffff;
}

// The tile that pixel position p falls in, plus `add` (1 = exclusive end), kept inside 0..tiles.
FS_INLINE int tile_edge(double p, int tiles, int add) {
  const double t = p * (1. / kTile);
  if (!(t >= 0)) return 0;
  return t >= tiles ? tiles : (int)t + add;
}

FS_INLINE int32_t to_radius(double r) {
  const double up = ceil(r);
  return up < 1 ? 1 : up < 1073741824. ? (int32_t)up : 1073741824;
}

static void clear_meta(const Meta& meta, int64_t k) {
  meta.means2d[2 * k] = meta.means2d[2 * k + 1] = meta.depths[k] = 0;
  meta.radii[2 * k] = meta.radii[2 * k + 1] = 0;
  meta.conics[3 * k] = meta.conics[3 * k + 1] = meta.conics[3 * k + 2] = 0;
}

// Colours the splats; those whose numbers are not all finite are dropped. Returns how many remain.
static int64_t shade(const Gaussians& g, const Camera& c, const Meta& meta, Splat* splats, int64_t count) {
  if (g.color_kind == kNoColor) return count;
  const int values = g.color_kind == kPlainColor ? 3 : 3 * g.sh_rows;
  int64_t healthy = 0;
  for (int64_t i = 0; i < count; ++i) {
    const uint32_t id = splats[i].id;
    const float* color = g.colors + (int64_t)values * id;
    if (all_finite(color, values)) {
      Splat& s = splats[healthy++] = splats[i];
      if (g.color_kind == kPlainColor) memcpy(s.rgb, color, 12);
    } else {
      clear_meta(meta, id);
    }
  }
  if (g.color_kind == kPlainColor) return healthy;
  for (int64_t base = 0; base < healthy; base += kLanes) {
    const int n = (int)(healthy - base < kLanes ? healthy - base : kLanes);
    uint32_t ids[kLanes];
    for (int i = 0; i < kLanes; ++i) ids[i] = splats[base + (i < n ? i : 0)].id;
    Shading s;
    shade_lanes(g, c, ids, s);
    for (int i = 0; i < n; ++i) {
      for (int k = 0; k < 3; ++k) splats[base + i].rgb[k] = s.raw[k][i] > 0 ? s.raw[k][i] : 0;
    }
  }
  return healthy;
}

int64_t project(const Gaussians& g, const Camera& camera, const Settings& s, const Meta& meta, int64_t begin,
                int64_t end, const uint8_t* excluded, Splat* out) {
  const double log2_alpha_min = s.alpha_min > 0 ? log2_approx(s.alpha_min) : -1e30;
  Inputs in;
  Projected p;
  int64_t visible = 0;
  for (int64_t base = begin; base < end; base += kLanes) {
    const int n = (int)(end - base < kLanes ? end - base : kLanes);
    read(g, base, n, in);
    project_lanes(camera, s, log2_alpha_min, in, p);
    for (int i = 0; i < n; ++i) {
      const int64_t k = base + i;
      Splat o;
      const int32_t wide = to_radius(p.rx[i]), high = to_radius(p.ry[i]);
      const bool meets = p.good[i] != 0 && p.x[i] + wide > 0 && p.x[i] - wide < camera.width && p.y[i] + high > 0 &&
                         p.y[i] - high < camera.height;
      if (!meets || (excluded && excluded[k])) {
        clear_meta(meta, k);
        continue;
      }
      // A little room for the rounding of what follows: culling must never change a pixel. Pixel centres lie at +0.5.
      const double rx = p.rx[i] * 1.0001 + 0.01, ry = p.ry[i] * 1.0001 + 0.01;
      o.tile_x0 = (uint16_t)tile_edge(p.x[i] - rx - 0.5, camera.tiles_x, 0);
      o.tile_x1 = (uint16_t)tile_edge(p.x[i] + rx - 0.5, camera.tiles_x, 1);
      o.tile_y0 = (uint16_t)tile_edge(p.y[i] - ry - 0.5, camera.tiles_y, 0);
      o.tile_y1 = (uint16_t)tile_edge(p.y[i] + ry - 0.5, camera.tiles_y, 1);
      o.x = (float)p.x[i], o.y = (float)p.y[i];
      o.x_rest = (float)(p.x[i] - o.x), o.y_rest = (float)(p.y[i] - o.y);
      o.l11 = (float)p.l11[i], o.l21 = (float)p.l21[i], o.l22 = (float)p.l22[i];
      o.log2_opacity = (float)p.log2_opacity[i];
      o.floor = (float)p.floor[i];
      o.z = (float)p.z[i];
      o.id = (uint32_t)k;
      o.rgb[0] = o.rgb[1] = o.rgb[2] = 0;
      out[visible++] = o;
      meta.means2d[2 * k] = o.x, meta.means2d[2 * k + 1] = o.y;
      meta.radii[2 * k] = wide, meta.radii[2 * k + 1] = high;
      meta.depths[k] = o.z;
      meta.conics[3 * k] = (float)p.A[i], meta.conics[3 * k + 1] = (float)p.B[i];
      meta.conics[3 * k + 2] = (float)p.C[i];
    }
  }
  return shade(g, camera, meta, out, visible);
}

}  // namespace FS_ISA
