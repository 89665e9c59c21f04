// Real spherical harmonics and their derivatives, for sixteen directions at a time (the loops over lanes vectorise).
// Order and signs as in featuresplat/geometry.py: l ascending, m from -l to l, Condon-Shortley sign.
#pragma once
#include "lanes.h"
#include "splat.h"

namespace FS_ISA {

FS_INLINE int sh_count(int degree) { return (degree + 1) * (degree + 1); }

// Bases b[(degree+1)^2] at the unit direction (x, y, z). Polynomials after Sloan (JCGT 2013).
template <int degree>
FS_INLINE void sh_bases(float x, float y, float z, float* b) {
  b[0] = 0.28209479177387814f;
  if (degree < 1) return;
  const float c = 0.4886025119029199f;
  b[1] = -c * y, b[2] = c * z, b[3] = -c * x;
  if (degree < 2) return;
  const float zz = z * z, c2 = x * x - y * y, s2 = 2 * x * y;
  b[4] = 0.5462742152960396f * s2;
  b[5] = -1.0925484305920792f * y * z;
  b[6] = 0.31539156525252005f * (3 * zz - 1);
  b[7] = -1.0925484305920792f * x * z;
  b[8] = 0.5462742152960396f * c2;
  if (degree < 3) return;
  const float c3 = x * c2 - y * s2, s3 = x * s2 + y * c2, p3 = 5 * zz - 1;
  b[9] = -0.5900435899266435f * s3;
  b[10] = 1.445305721320277f * z * s2;
  b[11] = -0.4570457994644658f * y * p3;
  b[12] = 0.3731763325901154f * z * (5 * zz - 3);
  b[13] = -0.4570457994644658f * x * p3;
  b[14] = 1.445305721320277f * z * c2;
  b[15] = -0.5900435899266435f * c3;
  if (degree < 4) return;
  const float c4 = x * c3 - y * s3, s4 = x * s3 + y * c3, p4 = 7 * zz - 1, q4 = z * (7 * zz - 3);
  b[16] = 0.6258357354491761f * s4;
  b[17] = -1.7701307697799304f * z * s3;
  b[18] = 0.47308734787878004f * s2 * p4;
  b[19] = -0.6690465435572892f * y * q4;
  b[20] = 0.10578554691520431f * (zz * (35 * zz - 30) + 3);
  b[21] = -0.6690465435572892f * x * q4;
  b[22] = 0.47308734787878004f * c2 * p4;
  b[23] = -1.7701307697799304f * z * c3;
  b[24] = 0.6258357354491761f * c4;
}

// Gradient to the unit direction: g = sum_k w[k] * d b[k] / d (x, y, z), the polynomials taken as free functions.
template <int degree>
FS_INLINE void sh_direction_gradient(float x, float y, float z, const float* w, float g[3]) {
  float gx = 0, gy = 0, gz = 0;
  // Gradients to the intermediate values z^2, and to Re, Im of (x + iy)^m for m = 2..4; folded back below.
  float gzz = 0, gc2 = 0, gs2 = 0, gc3 = 0, gs3 = 0;
  if (degree >= 1) {
    const float c = 0.4886025119029199f;
    gx -= c * w[3], gy -= c * w[1], gz += c * w[2];
  }
  if (degree >= 2) {
    const float zz = z * z, c2 = x * x - y * y, s2 = 2 * x * y;
    gs2 += 0.5462742152960396f * w[4], gc2 += 0.5462742152960396f * w[8];
    gy -= 1.0925484305920792f * z * w[5], gz -= 1.0925484305920792f * (y * w[5] + x * w[7]);
    gx -= 1.0925484305920792f * z * w[7];
    gzz += 3 * 0.31539156525252005f * w[6];
    if (degree >= 3) {
      const float c3 = x * c2 - y * s2, s3 = x * s2 + y * c2, p3 = 5 * zz - 1;
      gs3 -= 0.5900435899266435f * w[9], gc3 -= 0.5900435899266435f * w[15];
      gz += 1.445305721320277f * (s2 * w[10] + c2 * w[14]);
      gs2 += 1.445305721320277f * z * w[10], gc2 += 1.445305721320277f * z * w[14];
      gy -= 0.4570457994644658f * p3 * w[11], gx -= 0.4570457994644658f * p3 * w[13];
      gzz -= 5 * 0.4570457994644658f * (y * w[11] + x * w[13]);
      gz += 0.3731763325901154f * (15 * zz - 3) * w[12];
      if (degree >= 4) {
        const float p4 = 7 * zz - 1, q4 = z * (7 * zz - 3), dq4 = 21 * zz - 3;
        const float gs4 = 0.6258357354491761f * w[16], gc4 = 0.6258357354491761f * w[24];
        gz -= 1.7701307697799304f * (s3 * w[17] + c3 * w[23]);
        gs3 -= 1.7701307697799304f * z * w[17], gc3 -= 1.7701307697799304f * z * w[23];
        gs2 += 0.47308734787878004f * p4 * w[18], gc2 += 0.47308734787878004f * p4 * w[22];
        gzz += 7 * 0.47308734787878004f * (s2 * w[18] + c2 * w[22]);
        gy -= 0.6690465435572892f * q4 * w[19], gx -= 0.6690465435572892f * q4 * w[21];
        gz -= 0.6690465435572892f * dq4 * (y * w[19] + x * w[21]);
        gzz += 0.10578554691520431f * (70 * zz - 30) * w[20];
        // c4 = x c3 - y s3, s4 = x s3 + y c3
        gx += gc4 * c3 + gs4 * s3, gy += gs4 * c3 - gc4 * s3;
        gc3 += gc4 * x + gs4 * y, gs3 += gs4 * x - gc4 * y;
      }
      gx += gc3 * c2 + gs3 * s2, gy += gs3 * c2 - gc3 * s2;
      gc2 += gc3 * x + gs3 * y, gs2 += gs3 * x - gc3 * y;
    }
    gx += 2 * (gc2 * x + gs2 * y), gy += 2 * (gs2 * x - gc2 * y);
    gz += 2 * gzz * z;
  }
  g[0] = gx, g[1] = gy, g[2] = gz;
}

// Sixteen Gaussians' colours: unit directions from the camera, and the coefficients sh[3 k + channel][lane].
struct Shading {
  float x[16], y[16], z[16], inv[16];  // directions, and one over their length before
  float bases[25][16];
  float raw[3][16];  // colour before the clamp at zero
  float sh[80][16];
};

template <int degree>
static void sh_bases_of_lanes(Shading& s) {
  for (int i = 0; i < 16; ++i) {
    float b[25];
    sh_bases<degree>(s.x[i], s.y[i], s.z[i], b);
    for (int k = 0; k < (degree + 1) * (degree + 1); ++k) s.bases[k][i] = b[k];
  }
}

template <int degree>
static void sh_gradient_of_lanes(const Shading& s, const float w[25][16], float g[3][16]) {
  for (int i = 0; i < 16; ++i) {
    float wi[25], gi[3];
    for (int k = 0; k < (degree + 1) * (degree + 1); ++k) wi[k] = w[k][i];
    sh_direction_gradient<degree>(s.x[i], s.y[i], s.z[i], wi, gi);
    for (int k = 0; k < 3; ++k) g[k][i] = gi[k];
  }
}

// Evaluates the colours of the Gaussians ids[16].
static void shade_lanes(const Gaussians& g, const Camera& c, const uint32_t* ids, Shading& s) {
  const float* rows[16];
  for (int i = 0; i < 16; ++i) {
    rows[i] = g.colors + 3 * (int64_t)g.sh_rows * ids[i];
    const float* m = g.means + 3 * (int64_t)ids[i];
    const double dx = m[0] - c.center[0], dy = m[1] - c.center[1], dz = m[2] - c.center[2];
    const double norm = sqrt(dx * dx + dy * dy + dz * dz), inv = norm > 0 ? 1 / norm : 0;
    s.x[i] = (float)(dx * inv), s.y[i] = (float)(dy * inv), s.z[i] = (float)(dz * inv), s.inv[i] = (float)inv;
  }
  const int count = sh_count(g.sh_degree);
  rows_to_lanes(rows, 3 * count, s.sh[0]);
  switch (g.sh_degree) {
    case 0: sh_bases_of_lanes<0>(s); break;
    case 1: sh_bases_of_lanes<1>(s); break;
    case 2: sh_bases_of_lanes<2>(s); break;
    case 3: sh_bases_of_lanes<3>(s); break;
    default: sh_bases_of_lanes<4>(s); break;
  }
  V raw[3] = {set(0.5f), set(0.5f), set(0.5f)};
  for (int k = 0; k < count; ++k) {
    const V b = load(s.bases[k]);
    for (int j = 0; j < 3; ++j) raw[j] = fma(b, load(s.sh[3 * k + j]), raw[j]);
  }
  for (int j = 0; j < 3; ++j) store(s.raw[j], raw[j]);
}

}  // namespace FS_ISA
