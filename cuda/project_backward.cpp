// Derivatives of project.cpp, in double precision, 16 splats at a time in loops that the compiler vectorises.
#include "project_backward.h"

#include "sh.h"
#include "simd.h"

namespace FS_ISA {

constexpr int kLanes = 16;
typedef double Lane[kLanes];

// A splat's records added up. With vs the gradient of the exponent sigma and d = centre - pixel:
// sums of vs {1, dx, dy, dx^2, dx dy, dy^2}; gradients to the colour and to the depth.
struct Sums {
  Lane v0, vx, vy, vxx, vxy, vyy, depth;
  Lane color[3];
};

struct Lanes {
  Lane m0, m1, m2, qw, qx, qy, qz, s0, s1, s2, opacity;
};

struct Results {
  Lane m0, m1, m2, qw, qx, qy, qz, s0, s1, s2, opacity, x2d, y2d;
  Lane view[12];
};

static void add_up(const Frame& f, const Entries& entries, int64_t slot, int i, Sums& sums) {
  const Splat& s = f.splats[slot];
  double t[10] = {};
  for (uint32_t e = entries.starts[slot]; e < entries.starts[slot] + entries.counts[slot]; ++e) {
    const float* r = entries.records[entries.places[e]].value;
    const uint32_t tile = entries.tiles[e];
    const int tx = (int)(tile % (uint32_t)f.camera.tiles_x), ty = (int)(tile / (uint32_t)f.camera.tiles_x);
    const double x = (double)s.x + s.x_rest - (tx * kTile + kTile / 2);
    const double y = (double)s.y + s.y_rest - (ty * kTile + kTile / 2);
    const double r0 = r[0], rx = r[2], ry = r[4];
    t[0] += r0;
    t[1] += x * r0 - rx, t[2] += y * r0 - ry;
    t[3] += x * (x * r0 - 2 * rx) + r[6];
    t[4] += y * (x * r0 - rx) - x * ry + r[8];
    t[5] += y * (y * r0 - 2 * ry) + r[10];
    t[6] += r[1], t[7] += r[3], t[8] += r[5], t[9] += r[7];
  }
  sums.v0[i] = t[0], sums.vx[i] = t[1], sums.vy[i] = t[2], sums.vxx[i] = t[3], sums.vxy[i] = t[4], sums.vyy[i] = t[5];
  sums.color[0][i] = t[6], sums.color[1][i] = t[7], sums.color[2][i] = t[8], sums.depth[i] = t[9];
}

// Records lie all over memory: asks for those of the slots [begin, end), and for the places of the ones after them.
FS_INLINE void fetch(const Frame& f, const Entries& entries, int64_t begin, int64_t end, int64_t last) {
  for (int64_t slot = begin; slot < end && slot < last; ++slot) {
    for (uint32_t e = entries.starts[slot]; e < entries.starts[slot] + entries.counts[slot]; ++e)
      prefetch(entries.records + entries.places[e]);
    if (slot + kLanes < last) {
      prefetch(entries.places + entries.starts[slot + kLanes]);
      prefetch(entries.tiles + entries.starts[slot + kLanes]);
    }
    prefetch(f.splats + slot);
  }
}

static void differentiate(const Camera& c, const Settings& s, const Lanes& in, const Sums& g, Results& out) {
  const double aa = s.antialiased ? 1. : 0.;
  for (int i = 0; i < kLanes; ++i) {
    // Forward again.
    const double X = c.R[0] * in.m0[i] + c.R[1] * in.m1[i] + c.R[2] * in.m2[i] + c.t[0];
    const double Y = c.R[3] * in.m0[i] + c.R[4] * in.m1[i] + c.R[5] * in.m2[i] + c.t[1];
    const double Z = c.R[6] * in.m0[i] + c.R[7] * in.m1[i] + c.R[8] * in.m2[i] + c.t[2];
    const double norm2 = in.qw[i] * in.qw[i] + in.qx[i] * in.qx[i] + in.qy[i] * in.qy[i] + in.qz[i] * in.qz[i];
    const double iz = 1 / Z, rx = X * iz, ry = Y * iz;
    double cx = rx < c.lim_x0 ? c.lim_x0 : rx, cy = ry < c.lim_y0 ? c.lim_y0 : ry;
    cx = cx > c.lim_x1 ? c.lim_x1 : cx, cy = cy > c.lim_y1 ? c.lim_y1 : cy;
    const double j00 = c.fx * iz, j11 = c.fy * iz, j02 = -j00 * cx, j12 = -j11 * cy;
    const double a0 = j00 * c.R[0] + j02 * c.R[6], a1 = j00 * c.R[1] + j02 * c.R[7], a2 = j00 * c.R[2] + j02 * c.R[8];
    const double b0 = j11 * c.R[3] + j12 * c.R[6], b1 = j11 * c.R[4] + j12 * c.R[7], b2 = j11 * c.R[5] + j12 * c.R[8];
    const double inv_norm = 1 / sqrt(norm2);
    const double w = in.qw[i] * inv_norm, x = in.qx[i] * inv_norm, y = in.qy[i] * inv_norm, z = in.qz[i] * inv_norm;
    const double r00 = 1 - 2 * (y * y + z * z), r01 = 2 * (x * y - w * z), r02 = 2 * (x * z + w * y);
    const double r10 = 2 * (x * y + w * z), r11 = 1 - 2 * (x * x + z * z), r12 = 2 * (y * z - w * x);
    const double r20 = 2 * (x * z - w * y), r21 = 2 * (y * z + w * x), r22 = 1 - 2 * (x * x + y * y);
    const double p0 = a0 * r00 + a1 * r10 + a2 * r20, q0 = b0 * r00 + b1 * r10 + b2 * r20;
    const double p1 = a0 * r01 + a1 * r11 + a2 * r21, q1 = b0 * r01 + b1 * r11 + b2 * r21;
    const double p2 = a0 * r02 + a1 * r12 + a2 * r22, q2 = b0 * r02 + b1 * r12 + b2 * r22;
    const double s0 = in.s0[i], s1 = in.s1[i], s2 = in.s2[i];
    const double P0 = p0 * s0, P1 = p1 * s1, P2 = p2 * s2, Q0 = q0 * s0, Q1 = q1 * s1, Q2 = q2 * s2;
    const double raw00 = P0 * P0 + P1 * P1 + P2 * P2, raw11 = Q0 * Q0 + Q1 * Q1 + Q2 * Q2;
    const double c00 = raw00 + s.eps2d, c11 = raw11 + s.eps2d, c01 = P0 * Q0 + P1 * Q1 + P2 * Q2;
    const double e0 = P1 * Q2 - P2 * Q1, e1 = P2 * Q0 - P0 * Q2, e2 = P0 * Q1 - P1 * Q0;
    const double raw_det = e0 * e0 + e1 * e1 + e2 * e2;
    const double det = raw_det + s.eps2d * (raw00 + raw11 + s.eps2d);
    const double compensation = aa * sqrt(raw_det / det) + (1 - aa);
    const double id = 1 / det, A = c11 * id, B = -c01 * id, C = c00 * id;

    // The projected centre, the inverse covariance, the opacity.
    const double vx2d = A * g.vx[i] + B * g.vy[i], vy2d = B * g.vx[i] + C * g.vy[i];
    const double vA = 0.5 * g.vxx[i], vB = 0.5 * g.vxy[i], vC = 0.5 * g.vyy[i];  // symmetric: vB stands twice
    const double v_opacity = -g.v0[i] / (in.opacity[i] * compensation);
    out.x2d[i] = vx2d, out.y2d[i] = vy2d;
    out.opacity[i] = v_opacity * compensation;

    // d inverse = -inverse d covariance inverse.
    const double t00 = A * vA + B * vB, t01 = A * vB + B * vC, t10 = B * vA + C * vB, t11 = B * vB + C * vC;
    double v00 = -(t00 * A + t01 * B), v01 = -2 * (t00 * B + t01 * C), v11 = -(t10 * B + t11 * C);
    // compensation^2 = raw_det / det, in terms of the covariance's entries.
    const double v_comp = aa * v_opacity * in.opacity[i] * compensation * 0.5;
    const double v_raw = v_comp / (raw_det > 1e-300 ? raw_det : 1e-300), v_det = -v_comp * id;
    v00 += v_raw * raw11 + v_det * c11, v11 += v_raw * raw00 + v_det * c00, v01 -= 2 * c01 * (v_raw + v_det);

    const double vP0 = 2 * v00 * P0 + v01 * Q0, vP1 = 2 * v00 * P1 + v01 * Q1, vP2 = 2 * v00 * P2 + v01 * Q2;
    const double vQ0 = 2 * v11 * Q0 + v01 * P0, vQ1 = 2 * v11 * Q1 + v01 * P1, vQ2 = 2 * v11 * Q2 + v01 * P2;
    out.s0[i] = vP0 * p0 + vQ0 * q0, out.s1[i] = vP1 * p1 + vQ1 * q1, out.s2[i] = vP2 * p2 + vQ2 * q2;
    const double vp0 = vP0 * s0, vp1 = vP1 * s1, vp2 = vP2 * s2, vq0 = vQ0 * s0, vq1 = vQ1 * s1, vq2 = vQ2 * s2;
    const double va0 = vp0 * r00 + vp1 * r01 + vp2 * r02, vb0 = vq0 * r00 + vq1 * r01 + vq2 * r02;
    const double va1 = vp0 * r10 + vp1 * r11 + vp2 * r12, vb1 = vq0 * r10 + vq1 * r11 + vq2 * r12;
    const double va2 = vp0 * r20 + vp1 * r21 + vp2 * r22, vb2 = vq0 * r20 + vq1 * r21 + vq2 * r22;

    // The rotation and its quaternion.
    const double w00 = a0 * vp0 + b0 * vq0, w01 = a0 * vp1 + b0 * vq1, w02 = a0 * vp2 + b0 * vq2;
    const double w10 = a1 * vp0 + b1 * vq0, w11 = a1 * vp1 + b1 * vq1, w12 = a1 * vp2 + b1 * vq2;
    const double w20 = a2 * vp0 + b2 * vq0, w21 = a2 * vp1 + b2 * vq1, w22 = a2 * vp2 + b2 * vq2;
    const double vw = 2 * (x * (w21 - w12) + y * (w02 - w20) + z * (w10 - w01));
    const double vx = 2 * (y * (w01 + w10) + z * (w02 + w20) + w * (w21 - w12) - 2 * x * (w11 + w22));
    const double vy = 2 * (x * (w01 + w10) + z * (w12 + w21) + w * (w02 - w20) - 2 * y * (w00 + w22));
    const double vz = 2 * (x * (w02 + w20) + y * (w12 + w21) + w * (w10 - w01) - 2 * z * (w00 + w11));
    const double along = w * vw + x * vx + y * vy + z * vz;
    out.qw[i] = (vw - w * along) * inv_norm, out.qx[i] = (vx - x * along) * inv_norm;
    out.qy[i] = (vy - y * along) * inv_norm, out.qz[i] = (vz - z * along) * inv_norm;

    // The Jacobian and the point in the camera.
    const double vj00 = va0 * c.R[0] + va1 * c.R[1] + va2 * c.R[2], vj02 = va0 * c.R[6] + va1 * c.R[7] + va2 * c.R[8];
    const double vj11 = vb0 * c.R[3] + vb1 * c.R[4] + vb2 * c.R[5], vj12 = vb0 * c.R[6] + vb1 * c.R[7] + vb2 * c.R[8];
    const double free_x = (rx >= c.lim_x0) & (rx <= c.lim_x1) ? 1. : 0.;
    const double free_y = (ry >= c.lim_y0) & (ry <= c.lim_y1) ? 1. : 0.;
    const double vrx = c.fx * vx2d - free_x * j00 * vj02, vry = c.fy * vy2d - free_y * j11 * vj12;
    const double viz = c.fx * (vj00 - cx * vj02) + c.fy * (vj11 - cy * vj12) + vrx * X + vry * Y;
    const double vX = vrx * iz, vY = vry * iz, vZ = g.depth[i] - iz * iz * viz;
    out.m0[i] = c.R[0] * vX + c.R[3] * vY + c.R[6] * vZ;
    out.m1[i] = c.R[1] * vX + c.R[4] * vY + c.R[7] * vZ;
    out.m2[i] = c.R[2] * vX + c.R[5] * vY + c.R[8] * vZ;
    out.view[0][i] = vX * in.m0[i] + j00 * va0, out.view[1][i] = vX * in.m1[i] + j00 * va1;
    out.view[2][i] = vX * in.m2[i] + j00 * va2, out.view[3][i] = vX;
    out.view[4][i] = vY * in.m0[i] + j11 * vb0, out.view[5][i] = vY * in.m1[i] + j11 * vb1;
    out.view[6][i] = vY * in.m2[i] + j11 * vb2, out.view[7][i] = vY;
    out.view[8][i] = vZ * in.m0[i] + j02 * va0 + j12 * vb0, out.view[9][i] = vZ * in.m1[i] + j02 * va1 + j12 * vb1;
    out.view[10][i] = vZ * in.m2[i] + j02 * va2 + j12 * vb2, out.view[11][i] = vZ;
  }
}

// Spherical harmonics: gradients to the coefficients and, through the direction, to the means (point[axis][lane]).
static void unshade(const Gaussians& g, const Camera& c, const uint32_t* ids, int n, const Lane v[3], float* v_sh,
                    float point[3][kLanes]) {
  Shading s;
  shade_lanes(g, c, ids, s);
  const int count = sh_count(g.sh_degree);
  V vc[3];
  for (int j = 0; j < 3; ++j) {
    float f[kLanes];
    for (int i = 0; i < kLanes; ++i) f[i] = (float)v[j][i];
    vc[j] = zero_unless(load(s.raw[j]) >= set(0.f), load(f));
  }
  float w[25][16];
  for (int k = 0; k < count; ++k)
    store(w[k], fma(load(s.sh[3 * k]), vc[0], fma(load(s.sh[3 * k + 1]), vc[1], load(s.sh[3 * k + 2]) * vc[2])));
  if (v_sh) {
    float* rows[kLanes];
    for (int i = 0; i < kLanes; ++i) rows[i] = v_sh + 3 * (int64_t)g.sh_rows * ids[i];
    for (int k = 0; k < count; ++k) {
      for (int j = 0; j < 3; ++j) store(s.sh[3 * k + j], load(s.bases[k]) * vc[j]);
    }
    add_lanes_to_rows(s.sh[0], 3 * count, rows, n);
  }
  if (!point) return;
  float d[3][16];
  switch (g.sh_degree) {
    case 0: sh_gradient_of_lanes<0>(s, w, d); break;
    case 1: sh_gradient_of_lanes<1>(s, w, d); break;
    case 2: sh_gradient_of_lanes<2>(s, w, d); break;
    case 3: sh_gradient_of_lanes<3>(s, w, d); break;
    default: sh_gradient_of_lanes<4>(s, w, d); break;
  }
  const V x = load(s.x), y = load(s.y), z = load(s.z), inv = load(s.inv);
  const V along = fma(x, load(d[0]), fma(y, load(d[1]), z * load(d[2])));
  store(point[0], fnma(x, along, load(d[0])) * inv);
  store(point[1], fnma(y, along, load(d[1])) * inv);
  store(point[2], fnma(z, along, load(d[2])) * inv);
}

// Adds what the camera centre, -R^T t, receives to the gradient of (R | t).
static void add_center(const Camera& c, const double* v, double* view) {
  for (int i = 0; i < 3; ++i) {
    for (int j = 0; j < 3; ++j) {
      view[4 * i + j] -= c.t[i] * v[j];
      view[4 * i + 3] -= c.R[3 * i + j] * v[j];
    }
  }
}

void project_backward(const Gaussians& g, const Frame& f, const Settings& s, const Entries& entries, int64_t begin,
                      int64_t end, bool colored, const GaussianGradients& out) {
  Lanes in;
  Sums sums;
  Results r;
  const bool moves = out.means || out.quats || out.scales || out.opacities || out.viewmat || out.means2d;
  double view[12] = {}, center[3] = {};
  for (int64_t base = begin; base < end; base += kLanes) {
    const int n = (int)(end - base < kLanes ? end - base : kLanes);
    fetch(f, entries, base + kLanes, base + 2 * kLanes, end);
    for (int i = 0; i < n; ++i) add_up(f, entries, base + i, i, sums);
    if (moves) {
      for (int i = 0; i < kLanes; ++i) {
        const int64_t id = f.splats[base + (i < n ? i : 0)].id;
        const float *m = g.means + 3 * id, *q = g.quats + 4 * id, *sc = g.scales + 3 * id;
        in.m0[i] = m[0], in.m1[i] = m[1], in.m2[i] = m[2];
        in.qw[i] = q[0], in.qx[i] = q[1], in.qy[i] = q[2], in.qz[i] = q[3];
        in.s0[i] = sc[0], in.s1[i] = sc[1], in.s2[i] = sc[2];
        in.opacity[i] = g.opacities[id];
      }
      for (int i = n; i < kLanes; ++i) {
        sums.color[0][i] = sums.color[1][i] = sums.color[2][i] = 0;
        sums.v0[i] = sums.vx[i] = sums.vy[i] = sums.vxx[i] = sums.vxy[i] = sums.vyy[i] = sums.depth[i] = 0;
      }
      differentiate(f.camera, s, in, sums, r);
    }
    uint32_t ids[kLanes];
    for (int i = 0; i < kLanes; ++i) ids[i] = f.splats[base + (i < n ? i : 0)].id;
    float points[3][kLanes] = {};
    const bool turns = g.sh_degree > 0 && (out.means || out.viewmat);
    if (g.color_kind == kHarmonics && colored && (out.colors || turns))
      unshade(g, f.camera, ids, n, sums.color, out.colors, turns ? points : nullptr);
    for (int i = 0; i < n; ++i) {
      const int64_t slot = base + i;
      const uint32_t id = ids[i];
      const double point[3] = {points[0][i], points[1][i], points[2][i]};
      if (g.color_kind == kPlainColor && out.colors) {
        for (int k = 0; k < 3; ++k) out.colors[3 * (int64_t)id + k] += (float)sums.color[k][i];
      }
      if (!moves) continue;
      if (out.means) {
        float* m = out.means + 3 * (int64_t)id;
        m[0] += (float)(r.m0[i] + point[0]), m[1] += (float)(r.m1[i] + point[1]), m[2] += (float)(r.m2[i] + point[2]);
      }
      if (out.quats) {
        float* q = out.quats + 4 * (int64_t)id;
        q[0] += (float)r.qw[i], q[1] += (float)r.qx[i], q[2] += (float)r.qy[i], q[3] += (float)r.qz[i];
      }
      if (out.scales) {
        float* sc = out.scales + 3 * (int64_t)id;
        sc[0] += (float)r.s0[i], sc[1] += (float)r.s1[i], sc[2] += (float)r.s2[i];
      }
      if (out.opacities) out.opacities[id] += (float)r.opacity[i];
      if (out.means2d) {
        out.means2d[2 * (int64_t)id] = (float)r.x2d[i], out.means2d[2 * (int64_t)id + 1] = (float)r.y2d[i];
      }
      if (out.means2d_abs) {
        float ax = 0, ay = 0;
        for (uint32_t e = entries.starts[slot]; e < entries.starts[slot] + entries.counts[slot]; ++e) {
          ax += entries.absolute[2 * (int64_t)entries.places[e]];
          ay += entries.absolute[2 * (int64_t)entries.places[e] + 1];
        }
        out.means2d_abs[2 * (int64_t)id] = ax, out.means2d_abs[2 * (int64_t)id + 1] = ay;
      }
      if (out.viewmat) {
        for (int k = 0; k < 12; ++k) view[k] += r.view[k][i];
        for (int k = 0; k < 3; ++k) center[k] -= point[k];
      }
    }
  }
  if (out.viewmat) {
    add_center(f.camera, center, view);
    for (int k = 0; k < 12; ++k) out.viewmat[k] += view[k];
  }
}

}  // namespace FS_ISA
