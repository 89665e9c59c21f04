// From what splats received (backward.cu) to the gradients of Gaussians: the derivatives of project.cu.
#include "harmonics.cuh"
#include "view.cuh"

struct GatherArgs {
  const float *means, *quats, *scales, *opacities, *colors, *viewmats, *Ks;
  const int64_t* firsts;   // [C + 1] the first splat of each camera
  const Splat* splats;
  const float* sums;       // [splats, record]: see backward.cu
  float *v_means, *v_quats, *v_scales, *v_opacities, *v_colors;  // added to; each may be null
  float *v_means2d, *v_means2d_abs;  // [C, N, 2] set for the drawn
  double* v_views;         // [blocks, 12] of this camera: sums of each block, rows of (R | t); null, or cleared before
  int64_t n, camera_colors;
  double eps2d;
  int32_t camera, width, height, color_kind, sh_degree, sh_rows, antialiased, record;
  int32_t moves;           // whether geometry is differentiated at all
};

// A splat's sums. With vs the gradient of the exponent sigma and d = centre - pixel:
// vs {1, dx, dy, dx^2, dx dy, dy^2}; gradients to colour and depth; absolute gradients of the centre.
struct Sums {
  float v[12];
};

struct GeometryGradient {
  double mean[3], quat[4], scale[3], opacity, center[2];
};

// Adds to `out` (but sets out.center) and to the camera's rows `view`.
FS_DEVICE void differentiate(const GatherArgs& a, const View& c, int64_t id, const Sums& g, GeometryGradient& out,
                             double view[12]) {
  const float *m = a.means + 3 * id, *scale = a.scales + 3 * id;
  Shape s;
  shape_of(c, m[0], m[1], m[2], a.quats + 4 * id, scale, a.eps2d, s);
  const double opacity = a.opacities[id], compensation = a.antialiased ? sqrt(s.raw_det / s.det) : 1.;
  const double inv_det = 1 / s.det, A = s.c11 * inv_det, B = -s.c01 * inv_det, C = s.c00 * inv_det;

  // The projected centre, the inverse covariance, the opacity.
  const double vx2d = A * g.v[1] + B * g.v[2], vy2d = B * g.v[1] + C * g.v[2];
  const double vA = 0.5 * g.v[3], vB = 0.5 * g.v[4], vC = 0.5 * g.v[5];  // symmetric: vB stands twice
  const double v_opacity = -static_cast<double>(g.v[0]) / (opacity * compensation);
  out.center[0] = vx2d, out.center[1] = vy2d;
  out.opacity += v_opacity * compensation;

  // d inverse = -inverse d covariance inverse.
  const double t00 = A * vA + B * vB, t01 = A * vB + B * vC, t10 = B * vA + C * vB, t11 = B * vB + C * vC;
  double v00 = -(t00 * A + t01 * B), v01 = -2 * (t00 * B + t01 * C), v11 = -(t10 * B + t11 * C);
  if (a.antialiased) {  // compensation^2 = raw_det / det, in terms of the covariance's entries
    const double v_comp = v_opacity * opacity * compensation * 0.5;
    const double v_raw = v_comp / fmax(s.raw_det, 1e-300), v_det = -v_comp * inv_det;
    v00 += v_raw * s.raw11 + v_det * s.c11, v11 += v_raw * s.raw00 + v_det * s.c00;
    v01 -= 2 * s.c01 * (v_raw + v_det);
  }
  double r[9], vp[3], vq[3], va[3], vb[3];
  rotation_of(s, r);
  for (int k = 0; k < 3; ++k) {
    const double P = s.p[k] * scale[k], Q = s.q[k] * scale[k];
    const double vP = 2 * v00 * P + v01 * Q, vQ = 2 * v11 * Q + v01 * P;
    out.scale[k] += vP * s.p[k] + vQ * s.q[k];
    vp[k] = vP * scale[k], vq[k] = vQ * scale[k];
  }
  for (int k = 0; k < 3; ++k) {
    va[k] = vp[0] * r[3 * k] + vp[1] * r[3 * k + 1] + vp[2] * r[3 * k + 2];
    vb[k] = vq[0] * r[3 * k] + vq[1] * r[3 * k + 1] + vq[2] * r[3 * k + 2];
  }
  // The rotation and its quaternion.
  double v[9];
  for (int i = 0; i < 3; ++i) {
    for (int k = 0; k < 3; ++k) v[3 * i + k] = s.a[i] * vp[k] + s.b[i] * vq[k];
  }
  const double w = s.w, x = s.x, y = s.y, z = s.z;
  const double vw = 2 * (x * (v[7] - v[5]) + y * (v[2] - v[6]) + z * (v[3] - v[1]));
  const double vx = 2 * (y * (v[1] + v[3]) + z * (v[2] + v[6]) + w * (v[7] - v[5]) - 2 * x * (v[4] + v[8]));
  const double vy = 2 * (x * (v[1] + v[3]) + z * (v[5] + v[7]) + w * (v[2] - v[6]) - 2 * y * (v[0] + v[8]));
  const double vz = 2 * (x * (v[2] + v[6]) + y * (v[5] + v[7]) + w * (v[3] - v[1]) - 2 * z * (v[0] + v[4]));
  const double along = w * vw + x * vx + y * vy + z * vz;
  out.quat[0] += (vw - w * along) * s.inv_norm, out.quat[1] += (vx - x * along) * s.inv_norm;
  out.quat[2] += (vy - y * along) * s.inv_norm, out.quat[3] += (vz - z * along) * s.inv_norm;

  // The Jacobian and the point in the camera.
  const double vj00 = va[0] * c.R[0] + va[1] * c.R[1] + va[2] * c.R[2];
  const double vj02 = va[0] * c.R[6] + va[1] * c.R[7] + va[2] * c.R[8];
  const double vj11 = vb[0] * c.R[3] + vb[1] * c.R[4] + vb[2] * c.R[5];
  const double vj12 = vb[0] * c.R[6] + vb[1] * c.R[7] + vb[2] * c.R[8];
  const double free_x = s.rx >= c.lim_x0 && s.rx <= c.lim_x1 ? 1. : 0.;
  const double free_y = s.ry >= c.lim_y0 && s.ry <= c.lim_y1 ? 1. : 0.;
  const double iz = 1 / s.Z;
  const double vrx = c.fx * vx2d - free_x * s.j00 * vj02, vry = c.fy * vy2d - free_y * s.j11 * vj12;
  const double viz = c.fx * (vj00 - s.cx * vj02) + c.fy * (vj11 - s.cy * vj12) + vrx * s.X + vry * s.Y;
  const double vX = vrx * iz, vY = vry * iz, vZ = g.v[9] - iz * iz * viz;
  for (int k = 0; k < 3; ++k) {
    out.mean[k] += c.R[k] * vX + c.R[3 + k] * vY + c.R[6 + k] * vZ;
    view[k] += vX * m[k] + s.j00 * va[k];
    view[4 + k] += vY * m[k] + s.j11 * vb[k];
    view[8 + k] += vZ * m[k] + s.j02 * va[k] + s.j12 * vb[k];
  }
  view[3] += vX, view[7] += vY, view[11] += vZ;
}

// The colours' gradients and, through the view direction, those of the mean and of the camera.
FS_DEVICE void differentiate_color(const GatherArgs& a, const View& c, int64_t id, int camera, const Sums& g,
                                   GeometryGradient& out, double view[12]) {
  if (a.color_kind == kPlainColor) {
    if (!a.v_colors) return;
    float* to = a.v_colors + a.camera_colors * camera + 3 * id;
    for (int k = 0; k < 3; ++k) to[k] += g.v[6 + k];
    return;
  }
  float d[3], raw[3];
  const double inv = direction_of(c, a.means + 3 * id, d);
  const float* sh = a.colors + 3 * static_cast<int64_t>(a.sh_rows) * id;
  evaluate_harmonics(sh, a.sh_degree, d[0], d[1], d[2], raw);
  float v[3];
  for (int k = 0; k < 3; ++k) v[k] = raw[k] >= 0 ? g.v[6 + k] : 0.f;
  if (a.v_colors) {
    float* to = a.v_colors + 3 * static_cast<int64_t>(a.sh_rows) * id;
    for_harmonics(a.sh_degree, d[0], d[1], d[2], [&](int k, float basis) {
      to[3 * k] += basis * v[0], to[3 * k + 1] += basis * v[1], to[3 * k + 2] += basis * v[2];
    });
  }
  if (!a.moves || a.sh_degree == 0) return;
  float turn[3];
  harmonics_gradient(a.sh_degree, d[0], d[1], d[2], [&](int k) {
    return fmaf(fs_ldg(sh + 3 * k), v[0], fmaf(fs_ldg(sh + 3 * k + 1), v[1], fs_ldg(sh + 3 * k + 2) * v[2]));
  }, turn);
  const double along = static_cast<double>(d[0]) * turn[0] + static_cast<double>(d[1]) * turn[1] + static_cast<double>(d[2]) * turn[2];
  for (int j = 0; j < 3; ++j) {
    const double point = (turn[j] - d[j] * along) * inv;
    out.mean[j] += point;
    for (int i = 0; i < 3; ++i) {  // the camera's centre, -R^T t, moves the other way
      view[4 * i + j] += c.t[i] * point;
      view[4 * i + 3] += c.R[3 * i + j] * point;
    }
  }
}

FS_DEVICE void add_to(float* to, double v) { *to += static_cast<float>(v); }

// One thread for each Gaussian drawn in one camera. Cameras come one after the other, so that nothing is added twice at once.
FS_KERNEL(128, gather_gradients, const GatherArgs a) {
  FS_SHARED(double, partial, 4 * 12);
  const int64_t begin = a.firsts[a.camera], end = a.firsts[a.camera + 1], rank = begin + fs_global_thread();
  if (begin + static_cast<int64_t>(blockIdx.x) * 128 >= end) return;
  double view[12] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0};
  if (rank < end && a.splats[rank].floor < FS_INF) {  // a sick one was left out
    const int64_t id = a.splats[rank].id, slot = a.camera * a.n + id;
    Sums sums;
    const float4* from = reinterpret_cast<const float4*>(a.sums + rank * a.record);
    float4* to = reinterpret_cast<float4*>(&sums);
    for (int i = 0; i < 3; ++i) to[i] = fs_ldg(from + i);
    GeometryGradient out;
    for (int k = 0; k < 3; ++k) out.mean[k] = out.scale[k] = 0;
    for (int k = 0; k < 4; ++k) out.quat[k] = 0;
    out.opacity = out.center[0] = out.center[1] = 0;
    const View c = view_of(a.viewmats, a.Ks, a.camera, a.width, a.height);
    if (a.moves) differentiate(a, c, id, sums, out, view);
    if (a.color_kind != kNoColor) differentiate_color(a, c, id, a.camera, sums, out, view);
    if (a.v_means2d) {
      for (int k = 0; k < 2; ++k) a.v_means2d[2 * slot + k] = static_cast<float>(out.center[k]);
    }
    if (a.v_means2d_abs) {
      for (int k = 0; k < 2; ++k) a.v_means2d_abs[2 * slot + k] = sums.v[10 + k];
    }
    for (int k = 0; k < 3; ++k) {
      if (a.v_means) add_to(a.v_means + 3 * id + k, out.mean[k]);
      if (a.v_scales) add_to(a.v_scales + 3 * id + k, out.scale[k]);
    }
    for (int k = 0; k < 4; ++k) {
      if (a.v_quats) add_to(a.v_quats + 4 * id + k, out.quat[k]);
    }
    if (a.v_opacities) add_to(a.v_opacities + id, out.opacity);
  }
  if (!a.v_views) return;
  for (int i = 0; i < 12; ++i) {
    for (int d = 16; d; d >>= 1) view[i] += fs_shfl_xor(view[i], d);
    if (fs_lane() == 0) partial[12 * fs_warp() + i] = view[i];
  }
  fs_sync();
  if (threadIdx.x < 12) {
    const int i = threadIdx.x;
    a.v_views[static_cast<int64_t>(blockIdx.x) * 12 + i] = (partial[i] + partial[12 + i]) + (partial[24 + i] + partial[36 + i]);
  }
}

struct RowsArgs {
  const int64_t* firsts;
  const Splat* splats;
  const float* sums;  // [splats, record], channels from 12 on
  float* v_rows;      // [N, dim] added to
  int64_t dim;
  int32_t camera, record;
};

// With ORDERED sums: one thread for each channel of each splat of one camera.
FS_KERNEL(256, gather_rows, const RowsArgs a) {
  const int64_t begin = a.firsts[a.camera], i = fs_global_thread(), rank = begin + i / a.dim, c = i % a.dim;
  if (rank < a.firsts[a.camera + 1]) a.v_rows[a.splats[rank].id * a.dim + c] += a.sums[rank * a.record + 12 + c];
}

struct HitsArgs {
  const uint8_t* masks;     // [pairs]
  const uint32_t* written;  // [pairs] the pair (as written) of each place
  const int64_t* ends;      // [splats] where the pairs of each end, as written
  int64_t* hits;            // [pairs] count_hits: patches that each pair (as written) reaches; sum_hits: their inclusive sums
  const float* records;     // [hits, record]
  float* sums;              // [splats, record]
  int64_t pairs, splats;
  int32_t record;
};

FS_KERNEL(256, count_hits, const HitsArgs a) {
  const int64_t place = fs_global_thread();
  if (place < a.pairs) a.hits[a.written[place]] = fs_popc(a.masks[place]);
}

// One thread for each splat and four fields: the records of its patches in the order of its pairs.
FS_KERNEL(256, sum_hits, const HitsArgs a) {
  const int quads = a.record / 4;
  const int64_t i = fs_global_thread(), rank = i / quads;
  if (rank >= a.splats) return;
  const int64_t start = rank ? a.ends[rank - 1] : 0, end = a.ends[rank];
  float4 sum = make_float4(0, 0, 0, 0);
  if (end > start) {
    const float4* from = reinterpret_cast<const float4*>(a.records) + i % quads;
    for (int64_t h = start ? a.hits[start - 1] : 0; h < a.hits[end - 1]; ++h) {
      const float4 v = fs_ldg(from + h * quads);
      sum.x += v.x, sum.y += v.y, sum.z += v.z, sum.w += v.w;
    }
  }
  reinterpret_cast<float4*>(a.sums)[i] = sum;
}
