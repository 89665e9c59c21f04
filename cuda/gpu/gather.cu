// From the records of (splat, tile) pairs to the gradients of Gaussians. Every Gaussian adds up its own records, in the
// order in which it wrote its pairs: no atomics, the same bits every time. The derivatives are those of project.cu.
#include "harmonics.cuh"
#include "view.cuh"

struct GatherArgs {
  const float *means, *quats, *scales, *opacities, *colors, *viewmats, *Ks;
  const Splat* splats;
  const int32_t* counts;   // [C, N] pairs of each slot
  const int64_t* starts;   // and the first of them
  const void* tile_keys;   // [pairs] tiles, int16 or int32
  const float* records;    // [pairs, record]: see backward.cu
  float *v_means, *v_quats, *v_scales, *v_opacities;  // overwritten; each may be null
  float* v_colors;         // added to
  float *v_means2d, *v_means2d_abs;  // [C, N, 2] overwritten
  double* v_views;         // [blocks, C, 12] sums of each block, rows of (R | t)
  int64_t n, camera_colors;
  double eps2d;
  int32_t cameras, width, height, tiles, tiles_x, small_keys, color_kind, sh_degree, sh_rows, antialiased, record;
  int32_t moves;           // whether geometry is differentiated at all
};

// A splat's records added up. With vs the gradient of the exponent sigma and d = centre - pixel:
// sums of vs {1, dx, dy, dx^2, dx dy, dy^2}; gradients to colour and depth; absolute gradients of the centre.
struct Sums {
  double v[12];
};

FS_DEVICE void add_record(const GatherArgs& a, int camera, int64_t pair, double x, double y, Sums& s) {
  const int key = a.small_keys ? static_cast<const int16_t*>(a.tile_keys)[pair] : static_cast<const int32_t*>(a.tile_keys)[pair];
  const Place tile = place_of(key, a.tiles, a.tiles_x);
  const float4* from = reinterpret_cast<const float4*>(a.records + pair * a.record);
  const float4 r0 = fs_ldg(from), r1 = fs_ldg(from + 1), r2 = fs_ldg(from + 2);
  x -= tile.x + kTile / 2, y -= tile.y + kTile / 2;
  const double one = r0.x, rx = r0.y, ry = r0.z;
  s.v[0] += one;
  s.v[1] += x * one - rx, s.v[2] += y * one - ry;
  s.v[3] += x * (x * one - 2 * rx) + r0.w;
  s.v[4] += y * (x * one - rx) - x * ry + r1.x;
  s.v[5] += y * (y * one - 2 * ry) + r1.y;
  s.v[6] += r1.z, s.v[7] += r1.w, s.v[8] += r2.x, s.v[9] += r2.y, s.v[10] += r2.z, s.v[11] += r2.w;
}

constexpr int kAlone = 32;  // longer lists of records are added up by the whole warp

FS_DEVICE void add_up(const GatherArgs& a, int camera, int64_t slot, int count, Sums& s) {
  for (int i = 0; i < 12; ++i) s.v[i] = 0;
  int64_t start = 0;
  double x = 0, y = 0;
  if (count) {
    const Splat* splat = a.splats + slot;
    start = a.starts[slot];
    x = static_cast<double>(splat->x) + splat->x_rest, y = static_cast<double>(splat->y) + splat->y_rest;
  }
  if (count <= kAlone) {
    for (int k = 0; k < count; ++k) add_record(a, camera, start + k, x, y, s);
  }
  uint32_t many = fs_ballot(count > kAlone);
  while (many) {
    const int owner = fs_ffs(many) - 1;
    many &= many - 1;
    const int n = fs_shfl(count, owner);
    const int64_t from = fs_shfl(start, owner);
    const double cx = fs_shfl(x, owner), cy = fs_shfl(y, owner);
    Sums part;
    for (int i = 0; i < 12; ++i) part.v[i] = 0;
    for (int k = fs_lane(); k < n; k += 32) add_record(a, camera, from + k, cx, cy, part);
    for (int i = 0; i < 12; ++i) {
      for (int d = 16; d; d >>= 1) part.v[i] += fs_shfl_xor(part.v[i], d);
      if (fs_lane() == owner) s.v[i] = part.v[i];
    }
  }
}

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
  const double v_opacity = -g.v[0] / (opacity * compensation);
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
    for (int k = 0; k < 3; ++k) to[k] += static_cast<float>(g.v[6 + k]);
    return;
  }
  float d[3], raw[3];
  const double inv = direction_of(c, a.means + 3 * id, d);
  const float* sh = a.colors + 3 * static_cast<int64_t>(a.sh_rows) * id;
  evaluate_harmonics(sh, a.sh_degree, d[0], d[1], d[2], raw);
  float v[3];
  for (int k = 0; k < 3; ++k) v[k] = raw[k] >= 0 ? static_cast<float>(g.v[6 + k]) : 0.f;
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

FS_KERNEL(128, gather_gradients, const GatherArgs a) {
  FS_SHARED(double, partial, 4 * 12);
  const int64_t id = fs_global_thread();
  const bool there = id < a.n;
  GeometryGradient out;
  for (int k = 0; k < 3; ++k) out.mean[k] = out.scale[k] = 0;
  for (int k = 0; k < 4; ++k) out.quat[k] = 0;
  out.opacity = 0;
  for (int camera = 0; camera < a.cameras; ++camera) {
    const int64_t slot = camera * a.n + id;
    const int count = there ? a.counts[slot] : 0;
    Sums sums;
    add_up(a, camera, slot, count, sums);
    double view[12] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0};
    out.center[0] = out.center[1] = 0;
    if (count) {
      const View c = view_of(a.viewmats, a.Ks, camera, a.width, a.height);
      if (a.moves) differentiate(a, c, id, sums, out, view);
      if (a.color_kind != kNoColor) differentiate_color(a, c, id, camera, sums, out, view);
    }
    if (there && a.v_means2d) {
      a.v_means2d[2 * slot] = static_cast<float>(out.center[0]), a.v_means2d[2 * slot + 1] = static_cast<float>(out.center[1]);
    }
    if (there && a.v_means2d_abs) {
      a.v_means2d_abs[2 * slot] = static_cast<float>(sums.v[10]), a.v_means2d_abs[2 * slot + 1] = static_cast<float>(sums.v[11]);
    }
    if (!a.v_views) continue;
    for (int i = 0; i < 12; ++i) {
      for (int d = 16; d; d >>= 1) view[i] += fs_shfl_xor(view[i], d);
      if (fs_lane() == 0) partial[12 * fs_warp() + i] = view[i];
    }
    fs_sync();
    if (threadIdx.x < 12) {
      const int i = threadIdx.x;
      a.v_views[(static_cast<int64_t>(blockIdx.x) * a.cameras + camera) * 12 + i] =
          (partial[i] + partial[12 + i]) + (partial[24 + i] + partial[36 + i]);
    }
    fs_sync();
  }
  if (!there) return;
  if (a.v_means) {
    for (int k = 0; k < 3; ++k) a.v_means[3 * id + k] = static_cast<float>(out.mean[k]);
  }
  if (a.v_quats) {
    for (int k = 0; k < 4; ++k) a.v_quats[4 * id + k] = static_cast<float>(out.quat[k]);
  }
  if (a.v_scales) {
    for (int k = 0; k < 3; ++k) a.v_scales[3 * id + k] = static_cast<float>(out.scale[k]);
  }
  if (a.v_opacities) a.v_opacities[id] = static_cast<float>(out.opacity);
}

struct GatherRowsArgs {
  const int32_t* counts;
  const int64_t* starts;
  const float* records;
  float* v_rows;  // [N, dim], channels [channel, channel + channels) are overwritten
  int64_t n, dim, channel;
  int32_t cameras, channels, record, offset;
};

// One thread for each Gaussian and channel.
FS_KERNEL(256, gather_rows, const GatherRowsArgs a) {
  const int64_t i = fs_global_thread();
  if (i >= a.n * a.channels) return;
  const int64_t id = i / a.channels;
  const int c = static_cast<int>(i - id * a.channels);
  float sum = 0;
  for (int camera = 0; camera < a.cameras; ++camera) {
    const int64_t slot = camera * a.n + id;
    const int count = a.counts[slot];
    if (count == 0) continue;
    const float* from = a.records + a.starts[slot] * a.record + a.offset + c;
    for (int k = 0; k < count; ++k) sum += from[static_cast<int64_t>(k) * a.record];
  }
  a.v_rows[id * a.dim + a.channel + c] = sum;
}
