// Real spherical harmonics and their derivatives. Order and signs as in featuresplat/geometry.py: l ascending, m from -l
// to l, Condon-Shortley sign. Polynomials after Sloan (JCGT 2013).
#pragma once
#include "device.cuh"

enum ColorKind { kNoColor = 0, kPlainColor = 1, kHarmonics = 2 };

// visit(k, basis k at the unit direction (x, y, z)) for all k < (degree + 1)^2.
template <class Visit>
FS_DEVICE void for_harmonics(int degree, float x, float y, float z, Visit visit) {
  visit(0, 0.28209479177387814f);
  if (degree < 1) return;
  const float c = 0.4886025119029199f;
  visit(1, -c * y), visit(2, c * z), visit(3, -c * x);
  if (degree < 2) return;
  const float zz = z * z, c2 = x * x - y * y, s2 = 2 * x * y;
  visit(4, 0.5462742152960396f * s2);
  visit(5, -1.0925484305920792f * y * z);
  visit(6, 0.31539156525252005f * (3 * zz - 1));
  visit(7, -1.0925484305920792f * x * z);
  visit(8, 0.5462742152960396f * c2);
  if (degree < 3) return;
  const float c3 = x * c2 - y * s2, s3 = x * s2 + y * c2, p3 = 5 * zz - 1;
  visit(9, -0.5900435899266435f * s3);
  visit(10, 1.445305721320277f * z * s2);
  visit(11, -0.4570457994644658f * y * p3);
  visit(12, 0.3731763325901154f * z * (5 * zz - 3));
  visit(13, -0.4570457994644658f * x * p3);
  visit(14, 1.445305721320277f * z * c2);
  visit(15, -0.5900435899266435f * c3);
  if (degree < 4) return;
  const float c4 = x * c3 - y * s3, s4 = x * s3 + y * c3, p4 = 7 * zz - 1, q4 = z * (7 * zz - 3);
  visit(16, 0.6258357354491761f * s4);
  visit(17, -1.7701307697799304f * z * s3);
  visit(18, 0.47308734787878004f * s2 * p4);
  visit(19, -0.6690465435572892f * y * q4);
  visit(20, 0.10578554691520431f * (zz * (35 * zz - 30) + 3));
  visit(21, -0.6690465435572892f * x * q4);
  visit(22, 0.47308734787878004f * c2 * p4);
  visit(23, -1.7701307697799304f * z * c3);
  visit(24, 0.6258357354491761f * c4);
}

// Colour before the clamp at zero, from the coefficients sh[k][3].
FS_DEVICE void evaluate_harmonics(const float* sh, int degree, float x, float y, float z, float rgb[3]) {
  float r = 0.5f, g = 0.5f, b = 0.5f;
  for_harmonics(degree, x, y, z, [&](int k, float basis) {
    r = fmaf(basis, fs_ldg(sh + 3 * k), r), g = fmaf(basis, fs_ldg(sh + 3 * k + 1), g);
    b = fmaf(basis, fs_ldg(sh + 3 * k + 2), b);
  });
  rgb[0] = r, rgb[1] = g, rgb[2] = b;
}

// Gradient to the unit direction: sum_k w(k) * d basis(k) / d (x, y, z), the polynomials taken as free functions.
template <class Weight>
FS_DEVICE void harmonics_gradient(int degree, float x, float y, float z, Weight w, float out[3]) {
  float gx = 0, gy = 0, gz = 0;
  // Gradients to the intermediate values z^2, and to Re, Im of (x + iy)^m for m = 2..4; folded back below.
  float gzz = 0, gc2 = 0, gs2 = 0, gc3 = 0, gs3 = 0;
  if (degree >= 1) {
    const float c = 0.4886025119029199f;
    gx -= c * w(3), gy -= c * w(1), gz += c * w(2);
  }
  if (degree >= 2) {
    const float zz = z * z, c2 = x * x - y * y, s2 = 2 * x * y;
    gs2 += 0.5462742152960396f * w(4), gc2 += 0.5462742152960396f * w(8);
    const float w5 = w(5), w7 = w(7);
    gy -= 1.0925484305920792f * z * w5, gz -= 1.0925484305920792f * (y * w5 + x * w7);
    gx -= 1.0925484305920792f * z * w7;
    gzz += 3 * 0.31539156525252005f * w(6);
    if (degree >= 3) {
      const float c3 = x * c2 - y * s2, s3 = x * s2 + y * c2, p3 = 5 * zz - 1;
      const float w10 = w(10), w11 = w(11), w13 = w(13), w14 = w(14);
      gs3 -= 0.5900435899266435f * w(9), gc3 -= 0.5900435899266435f * w(15);
      gz += 1.445305721320277f * (s2 * w10 + c2 * w14);
      gs2 += 1.445305721320277f * z * w10, gc2 += 1.445305721320277f * z * w14;
      gy -= 0.4570457994644658f * p3 * w11, gx -= 0.4570457994644658f * p3 * w13;
      gzz -= 5 * 0.4570457994644658f * (y * w11 + x * w13);
      gz += 0.3731763325901154f * (15 * zz - 3) * w(12);
      if (degree >= 4) {
        const float p4 = 7 * zz - 1, q4 = z * (7 * zz - 3), dq4 = 21 * zz - 3;
        const float gs4 = 0.6258357354491761f * w(16), gc4 = 0.6258357354491761f * w(24);
        const float w17 = w(17), w18 = w(18), w19 = w(19), w21 = w(21), w22 = w(22), w23 = w(23);
        gz -= 1.7701307697799304f * (s3 * w17 + c3 * w23);
        gs3 -= 1.7701307697799304f * z * w17, gc3 -= 1.7701307697799304f * z * w23;
        gs2 += 0.47308734787878004f * p4 * w18, gc2 += 0.47308734787878004f * p4 * w22;
        gzz += 7 * 0.47308734787878004f * (s2 * w18 + c2 * w22);
        gy -= 0.6690465435572892f * q4 * w19, gx -= 0.6690465435572892f * q4 * w21;
        gz -= 0.6690465435572892f * dq4 * (y * w19 + x * w21);
        gzz += 0.10578554691520431f * (70 * zz - 30) * w(20);
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
  out[0] = gx, out[1] = gy, out[2] = gz;
}
