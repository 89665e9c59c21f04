// Projection by the local affine approximation (Zwicker et al., EWA splatting, 2001), in double precision: the inputs
// are float32, so rounding stays below what float32 outputs can show even for long thin splats. Formulas: cuda/project.cpp.
#include "harmonics.cuh"
#include "view.cuh"

struct ProjectArgs {
  const float *means, *quats, *scales, *opacities, *colors, *viewmats, *Ks;
  const uint8_t* excluded;  // [N] Gaussians to leave out, or null
  float* means2d;           // [C, N, 2] and so on: for the caller; all of them or none
  int32_t* radii;
  float *depths, *conics;
  int32_t* keys;            // [C, N] bits of the depth, kNever where not drawn; for make_splats sorted within each camera
  const int64_t* order;     // [C, N] ids in that order
  int64_t* found;           // [0] pairs (by tiles.cu), [1] splats, [2] whether a camera is not finite
  int64_t* firsts;          // [C + 1] the first splat of each camera
  Splat* splats;            // [capacity]
  int64_t* spans;           // [capacity] tiles that each reaches
  int64_t n, camera_colors, capacity;
  double near, far, eps2d, extent, alpha_min;
  int32_t cameras, width, height, color_kind, sh_degree, sh_rows, antialiased;
};

FS_DEVICE int32_t to_radius(double r) {
  const double up = ceil(r);
  return up < 1 ? 1 : up < 1073741824. ? static_cast<int32_t>(up) : 1073741824;
}

// The tile that pixel position p falls in, plus `add` (1 = exclusive end), kept inside 0..tiles.
FS_DEVICE uint32_t tile_edge(double p, int tiles, int add) {
  const double t = p * (1. / kTile);
  if (!(t >= 0)) return 0;
  return t >= tiles ? tiles : static_cast<uint32_t>(t) + add;
}

// False when a colour or coefficient is not finite. All stored coefficients count, also those above sh_degree.
FS_DEVICE bool color_of(const ProjectArgs& a, const View& view, int64_t id, int camera, float rgb[3]) {
  rgb[0] = rgb[1] = rgb[2] = 0;
  if (a.color_kind == kNoColor) return true;
  const int values = a.color_kind == kPlainColor ? 3 : 3 * a.sh_rows;
  const float* color = a.colors + a.camera_colors * camera + id * values;
  float zero = 0;
  for (int i = 0; i < values; ++i) zero = fmaf(fs_ldg(color + i), 0.f, zero);
  if (!(zero == 0)) return false;
  if (a.color_kind == kPlainColor) {
    for (int k = 0; k < 3; ++k) rgb[k] = fs_ldg(color + k);
    return true;
  }
  float d[3];
  direction_of(view, a.means + 3 * id, d);
  evaluate_harmonics(color, a.sh_degree, d[0], d[1], d[2], rgb);
  for (int k = 0; k < 3; ++k) rgb[k] = fmaxf(rgb[k], 0.f);
  return true;
}

FS_DEVICE bool project_one(const ProjectArgs& a, const View& c, int64_t id, Splat& o, int32_t radii[2], float conic[3]) {
  const float *m = a.means + 3 * id, *q = a.quats + 4 * id, *sc = a.scales + 3 * id;
  const double m0 = m[0], m1 = m[1], m2 = m[2], opacity_in = a.opacities[id];
  Shape s;
  const bool shaped = shape_of(c, m0, m1, m2, q, sc, a.eps2d, s);
  const double compensation = a.antialiased ? sqrt(s.raw_det / s.det) : 1.;
  const double opacity = opacity_in * compensation;
  const double A = s.c11 / s.det, B = -s.c01 / s.det, C = s.c00 / s.det;
  const double zero = opacity_in * 0;
  // Comparisons that a NaN fails.
  if (!(shaped && zero == 0 && s.Z >= a.near && s.Z <= a.far && s.Z > 0 && opacity_in >= a.alpha_min &&
        opacity >= a.alpha_min && opacity > 0 && s.det > 0 && A > 1e-30 && C > 1e-30 && A + C < 1e30 &&
        s.c00 + s.c11 < 1e30))
    return false;
  const double kLog2e = 1.4426950408889634, kLn2 = 0.6931471805599453;
  const double log2_opacity = log2(opacity), log2_alpha_min = a.alpha_min > 0 ? log2(a.alpha_min) : -1e30;
  const double extent2 = a.extent * a.extent;
  const double by_alpha = 2 * kLn2 * (log2_opacity - log2_alpha_min);
  const double t = fmax(fmin(by_alpha, extent2), 0.), by_extent = log2_opacity - 0.5 * kLog2e * extent2;
  const double rx = sqrt(t * s.c00), ry = sqrt(t * s.c11);
  const double x = c.fx * s.rx + c.cx, y = c.fy * s.ry + c.cy;
  radii[0] = to_radius(rx), radii[1] = to_radius(ry);
  if (!(x + radii[0] > 0 && x - radii[0] < a.width && y + radii[1] > 0 && y - radii[1] < a.height)) return false;
  // A little room for the rounding of what follows: culling must never change a pixel. Pixel centres lie at +0.5.
  const double wide = rx * 1.0001 + 0.01, high = ry * 1.0001 + 0.01;
  const int across = (a.width + kTile - 1) / kTile, down = (a.height + kTile - 1) / kTile;
  o.tiles_x = tile_edge(x - wide - 0.5, across, 0) | tile_edge(x + wide - 0.5, across, 1) << 16;
  o.tiles_y = tile_edge(y - high - 0.5, down, 0) | tile_edge(y + high - 0.5, down, 1) << 16;
  o.x = static_cast<float>(x), o.y = static_cast<float>(y);
  o.x_rest = static_cast<float>(x - o.x), o.y_rest = static_cast<float>(y - o.y);
  const double scale = 0.8493218002880191, l11 = sqrt(A);  // sqrt(log2(e) / 2)
  o.l11 = static_cast<float>(l11 * scale), o.l21 = static_cast<float>(B / l11 * scale);
  o.l22 = static_cast<float>(scale / sqrt(s.c11));
  o.log2_opacity = static_cast<float>(log2_opacity);
  o.floor = static_cast<float>(fmax(by_extent, log2_alpha_min));
  o.z = static_cast<float>(s.Z);
  conic[0] = static_cast<float>(A), conic[1] = static_cast<float>(B), conic[2] = static_cast<float>(C);
  return true;
}

// One thread a Gaussian; blockIdx.y is the camera. Which are drawn, how deep they lie, and what the caller is told of them.
FS_KERNEL(128, project, const ProjectArgs a) {
  const int64_t id = fs_global_thread();
  const int camera = blockIdx.y;
  if (id >= a.n) return;
  const View view = view_of(a.viewmats, a.Ks, camera, a.width, a.height);
  const int64_t slot = camera * a.n + id;
  Splat o;
  int32_t radii[2] = {0, 0};
  float conic[3] = {0, 0, 0};
  const bool drawn = view.finite && !(a.excluded && a.excluded[id]) && project_one(a, view, id, o, radii, conic);
  a.keys[slot] = drawn ? static_cast<int32_t>(fs_float_as_uint(o.z)) : kNever;
  if (!a.means2d) return;
  a.means2d[2 * slot] = drawn ? o.x : 0, a.means2d[2 * slot + 1] = drawn ? o.y : 0;
  a.radii[2 * slot] = drawn ? radii[0] : 0, a.radii[2 * slot + 1] = drawn ? radii[1] : 0;
  a.depths[slot] = drawn ? o.z : 0;
  for (int k = 0; k < 3; ++k) a.conics[3 * slot + k] = drawn ? conic[k] : 0;
}

// One thread: where each camera's splats begin, and whether all cameras are finite. Those not drawn were sorted to the end.
FS_KERNEL(32, count_splats, const ProjectArgs a) {
  if (threadIdx.x != 0) return;
  int64_t first = 0;
  bool finite = true;
  for (int camera = 0; camera < a.cameras; ++camera) {
    a.firsts[camera] = first;
    const int32_t* keys = a.keys + camera * a.n;
    int64_t low = 0, high = a.n;
    while (low < high) {
      const int64_t middle = (low + high) >> 1;
      if (keys[middle] == kNever) high = middle;
      else low = middle + 1;
    }
    first += low;
    finite = finite && view_of(a.viewmats, a.Ks, camera, a.width, a.height).finite;
  }
  a.firsts[a.cameras] = a.found[1] = first;
  a.found[2] = finite ? 0 : 1;
}

// One thread for each splat. One with a colour that is not finite stays without tiles, and the caller is told 0.
FS_KERNEL(128, make_splats, const ProjectArgs a) {
  const int64_t rank = fs_global_thread();
  if (rank >= a.capacity) return;
  if (rank >= a.firsts[a.cameras]) {
    a.spans[rank] = 0;
    return;
  }
  int camera = 0;
  while (rank >= a.firsts[camera + 1]) ++camera;
  const int64_t id = a.order[camera * a.n + rank - a.firsts[camera]];
  const View view = view_of(a.viewmats, a.Ks, camera, a.width, a.height);
  Splat o;
  int32_t radii[2];
  float conic[3], rgb[3];
  project_one(a, view, id, o, radii, conic);
  const bool healthy = color_of(a, view, id, camera, rgb);
  o.r = rgb[0], o.g = rgb[1], o.b = rgb[2], o.id = static_cast<uint32_t>(id);
  if (!healthy) o.floor = FS_INF;
  a.spans[rank] = healthy ? for_tiles(o, 0, [](int, int) {}) : 0;
  const float4* from = reinterpret_cast<const float4*>(&o);
  float4* to = reinterpret_cast<float4*>(a.splats + rank);
  for (int i = 0; i < 4; ++i) to[i] = from[i];
  if (healthy || !a.means2d) return;
  const int64_t slot = camera * a.n + id;
  for (int k = 0; k < 2; ++k) a.means2d[2 * slot + k] = 0, a.radii[2 * slot + k] = 0;
  for (int k = 0; k < 3; ++k) a.conics[3 * slot + k] = 0;
  a.depths[slot] = 0;
}
