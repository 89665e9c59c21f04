// A camera, and what it makes of a Gaussian's shape; in double precision.
#pragma once
#include "splat.cuh"

struct View {
  double R[9], t[3], center[3];  // world to camera; camera centre in the world
  double fx, fy, cx, cy;
  double lim_x0, lim_x1, lim_y0, lim_y1;  // x / z and y / z are clamped to these in the Jacobian
  bool finite;
};

FS_DEVICE View view_of(const float* viewmats, const float* Ks, int camera, int width, int height) {
  View c;
  const float *V = viewmats + 16 * camera, *K = Ks + 9 * camera;
  double zero = 0;
  for (int i = 0; i < 16; ++i) zero += V[i] * 0.;
  for (int i = 0; i < 9; ++i) zero += K[i] * 0.;
  c.finite = zero == 0;
  for (int i = 0; i < 3; ++i) {
    for (int j = 0; j < 3; ++j) c.R[3 * i + j] = V[4 * i + j];
    c.t[i] = V[4 * i + 3];
  }
  for (int j = 0; j < 3; ++j) c.center[j] = -(c.R[j] * c.t[0] + c.R[3 + j] * c.t[1] + c.R[6 + j] * c.t[2]);
  c.fx = K[0], c.fy = K[4], c.cx = K[2], c.cy = K[5];
  const double mx = 0.15 * width / c.fx, my = 0.15 * height / c.fy;
  c.lim_x0 = -(c.cx / c.fx + mx), c.lim_x1 = (width - c.cx) / c.fx + mx;
  c.lim_y0 = -(c.cy / c.fy + my), c.lim_y1 = (height - c.cy) / c.fy + my;
  return c;
}

// Unit direction from the camera to a point; returns one over the distance.
FS_DEVICE double direction_of(const View& c, const float* mean, float d[3]) {
  const double x = mean[0] - c.center[0], y = mean[1] - c.center[1], z = mean[2] - c.center[2];
  const double norm = sqrt(x * x + y * y + z * z), inv = norm > 0 ? 1 / norm : 0;
  d[0] = static_cast<float>(x * inv), d[1] = static_cast<float>(y * inv), d[2] = static_cast<float>(z * inv);
  return inv;
}

// Everything between a Gaussian and its 2D covariance [c00, c01; c01, c11] = rows P, Q times their transpose + eps2d.
struct Shape {
  double X, Y, Z, rx, ry, cx, cy, j00, j11, j02, j12;
  double a[3], b[3];       // rows of the Jacobian times the camera's rotation
  double w, x, y, z, inv_norm;  // the unit quaternion; one over its length before
  double p[3], q[3];       // a and b times the Gaussian's rotation; P = p s, Q = q s
  double c00, c01, c11, raw00, raw11, raw_det, det;
};

FS_DEVICE void rotation_of(const Shape& s, double r[9]) {
  const double w = s.w, x = s.x, y = s.y, z = s.z;
  r[0] = 1 - 2 * (y * y + z * z), r[1] = 2 * (x * y - w * z), r[2] = 2 * (x * z + w * y);
  r[3] = 2 * (x * y + w * z), r[4] = 1 - 2 * (x * x + z * z), r[5] = 2 * (y * z - w * x);
  r[6] = 2 * (x * z - w * y), r[7] = 2 * (y * z + w * x), r[8] = 1 - 2 * (x * x + y * y);
}

// False when an input is not finite, a scale not positive or the quaternion zero.
FS_DEVICE bool shape_of(const View& c, double m0, double m1, double m2, const float* quat, const float* scale,
                        double eps2d, Shape& s) {
  s.X = c.R[0] * m0 + c.R[1] * m1 + c.R[2] * m2 + c.t[0];
  s.Y = c.R[3] * m0 + c.R[4] * m1 + c.R[5] * m2 + c.t[1];
  s.Z = c.R[6] * m0 + c.R[7] * m1 + c.R[8] * m2 + c.t[2];
  const double qw = quat[0], qx = quat[1], qy = quat[2], qz = quat[3];
  const double norm2 = qw * qw + qx * qx + qy * qy + qz * qz;
  const double zero = (m0 + m1 + m2 + norm2 + scale[0] + scale[1] + scale[2]) * 0;
  const double iz = 1 / s.Z;
  s.rx = s.X * iz, s.ry = s.Y * iz;
  s.cx = s.rx < c.lim_x0 ? c.lim_x0 : s.rx, s.cy = s.ry < c.lim_y0 ? c.lim_y0 : s.ry;
  s.cx = s.cx > c.lim_x1 ? c.lim_x1 : s.cx, s.cy = s.cy > c.lim_y1 ? c.lim_y1 : s.cy;
  s.j00 = c.fx * iz, s.j11 = c.fy * iz, s.j02 = -s.j00 * s.cx, s.j12 = -s.j11 * s.cy;
  for (int k = 0; k < 3; ++k) {
    s.a[k] = s.j00 * c.R[k] + s.j02 * c.R[6 + k], s.b[k] = s.j11 * c.R[3 + k] + s.j12 * c.R[6 + k];
  }
  s.inv_norm = 1 / sqrt(norm2);
  s.w = qw * s.inv_norm, s.x = qx * s.inv_norm, s.y = qy * s.inv_norm, s.z = qz * s.inv_norm;
  double r[9], P[3], Q[3];
  rotation_of(s, r);
  for (int k = 0; k < 3; ++k) {
    s.p[k] = s.a[0] * r[k] + s.a[1] * r[3 + k] + s.a[2] * r[6 + k];
    s.q[k] = s.b[0] * r[k] + s.b[1] * r[3 + k] + s.b[2] * r[6 + k];
    P[k] = s.p[k] * scale[k], Q[k] = s.q[k] * scale[k];
  }
  s.raw00 = P[0] * P[0] + P[1] * P[1] + P[2] * P[2], s.raw11 = Q[0] * Q[0] + Q[1] * Q[1] + Q[2] * Q[2];
  s.c00 = s.raw00 + eps2d, s.c11 = s.raw11 + eps2d, s.c01 = P[0] * Q[0] + P[1] * Q[1] + P[2] * Q[2];
  // Lagrange's identity: the determinant without cancellation.
  const double e0 = P[1] * Q[2] - P[2] * Q[1], e1 = P[2] * Q[0] - P[0] * Q[2], e2 = P[0] * Q[1] - P[1] * Q[0];
  s.raw_det = e0 * e0 + e1 * e1 + e2 * e2;
  s.det = s.raw_det + eps2d * (s.raw00 + s.raw11 + eps2d);
  return zero == 0 && norm2 > 0 && scale[0] > 0 && scale[1] > 0 && scale[2] > 0;
}
