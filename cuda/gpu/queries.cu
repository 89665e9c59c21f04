// The blending weights themselves: what each Gaussian contributes, the greatest of each pixel, and all of them as a sparse
// matrix. One pixel a lane, every warp by itself; like blend.cu, pixels stop on their own.
#include "walk.cuh"

struct QueryArgs {
  Lists lists;
  int64_t n, k;
  int64_t* sums;       // contributions [C, N]: in fixed point, kUnit to one
  int32_t* maxima;     // [C, N] bits of floats
  int64_t* pixels;     // [C, N]
  int64_t* ids;        // topk [C, H, W, k], or the columns of the sparse matrix
  float* weights;      // likewise
  int64_t* counts;     // [H, W] entries of each row of the sparse matrix
  const int64_t* ends; // [H, W] their inclusive sums
  int32_t width, height, tiles, tiles_x, camera;
  float alpha_max, transmittance_min;
};

constexpr double kUnit = 1099511627776.;  // 2^40

// One warp's pixels.
struct Pixels {
  Place place;
  int64_t at;      // of this lane, over all cameras
  bool inside;
};

// visit(weight, id, counts) for every entry of the warp, by all lanes; weight is 0 where the pair does not count.
template <class Visit>
FS_DEVICE Pixels for_weights(const QueryArgs& a, int tile, Ring& ring, Pixels p, Visit visit) {
  const int warp = fs_warp(), lane = fs_lane();
  const uint32_t first = a.lists.offsets[tile];
  const float px = patch_x(warp) + (lane & 7) - 7.5f, py = patch_y(warp) + (lane >> 3) - 7.5f;
  float T = 1;
  bool live = p.inside && T > a.transmittance_min;
  auto take = [&](int head, int members) {
    for (int m = 0; m < members; ++m) {
      const float4 shape = ring.shape[(head + m) % kRing], more = ring.more[(head + m) % kRing];
      const float al = fminf(alpha_at(shape, more.x, more.y, more.z, px, py), a.alpha_max);
      const float next = fmaf(-al, T, T);
      if (al > 0 && !(next > a.transmittance_min)) live = false;
      const bool counts = live && al > 0;
      const float w = counts ? al * T : 0.f;
      if (counts) T = next;
      visit(w, ring.id[(head + m) % kRing], counts);
    }
  };
  for_groups(a.lists, first, static_cast<int>(a.lists.offsets[tile + 1] - first), warp, p.place.x + kTile / 2,
             p.place.y + kTile / 2, ring, [&](int) { return fs_any(live); }, take);
  return p;
}

FS_DEVICE Pixels pixels_of(const QueryArgs& a, int tile) {
  Pixels p;
  p.place = place_of(tile, a.tiles, a.tiles_x);
  const int x = p.place.x + patch_x(fs_warp()) + (fs_lane() & 7), y = p.place.y + patch_y(fs_warp()) + (fs_lane() >> 3);
  p.inside = x < a.width && y < a.height;
  p.at = (static_cast<int64_t>(p.place.camera) * a.height + y) * a.width + x;
  return p;
}

FS_KERNEL(256, sum_contributions, const QueryArgs a) {
  FS_SHARED(Ring, rings, kPatches);
  const int lane = fs_lane();
  const Pixels p = pixels_of(a, blockIdx.x);
  const int64_t before = p.place.camera * a.n;
  for_weights(a, blockIdx.x, rings[fs_warp()], p, [&](float w, uint32_t id, bool counts) {
    const uint32_t pixels = fs_ballot(counts);
    if (!pixels) return;
    int most = static_cast<int>(fs_float_as_uint(w));
    float sum = w;
    for (int d = 16; d; d >>= 1) sum += fs_shfl_xor(sum, d), most = max(most, fs_shfl_xor(most, d));
    if (lane == 0) {
      const int64_t slot = before + id;
      fs_atomic_add(a.sums + slot, static_cast<int64_t>(sum * kUnit));
      fs_atomic_max(a.maxima + slot, most);
      fs_atomic_add(a.pixels + slot, static_cast<int64_t>(fs_popc(pixels)));
    }
  });
}

FS_KERNEL(256, find_greatest, const QueryArgs a) {
  FS_SHARED(Ring, rings, kPatches);
  const Pixels p = pixels_of(a, blockIdx.x);
  int64_t* ids = a.ids + (p.inside ? p.at : 0) * a.k;
  float* most = a.weights + (p.inside ? p.at : 0) * a.k;
  int64_t found = 0;
  for_weights(a, blockIdx.x, rings[fs_warp()], p, [&](float w, uint32_t id, bool counts) {
    if (!counts || (found == a.k && w <= most[a.k - 1])) return;
    int64_t at = found < a.k ? found++ : a.k - 1;
    for (; at > 0 && most[at - 1] < w; --at) most[at] = most[at - 1], ids[at] = ids[at - 1];
    most[at] = w, ids[at] = id;
  });
  if (!p.inside) return;
  for (int64_t at = found; at < a.k; ++at) most[at] = 0, ids[at] = -1;
}

// The two kernels of the sparse matrix work on one camera.
FS_KERNEL(256, count_weights, const QueryArgs a) {
  FS_SHARED(Ring, rings, kPatches);
  const int tile = a.camera * a.tiles + blockIdx.x;
  const Pixels p = pixels_of(a, tile);
  int64_t n = 0;
  for_weights(a, tile, rings[fs_warp()], p, [&](float, uint32_t, bool counts) { n += counts; });
  if (p.inside) a.counts[p.at - static_cast<int64_t>(a.camera) * a.width * a.height] = n;
}

FS_KERNEL(256, list_weights, const QueryArgs a) {
  FS_SHARED(Ring, rings, kPatches);
  const int tile = a.camera * a.tiles + blockIdx.x;
  const Pixels p = pixels_of(a, tile);
  const int64_t row = p.at - static_cast<int64_t>(a.camera) * a.width * a.height;
  int64_t at = p.inside && row > 0 ? a.ends[row - 1] : 0;
  for_weights(a, tile, rings[fs_warp()], p, [&](float w, uint32_t id, bool counts) {
    if (!counts) return;
    a.ids[at] = id, a.weights[at] = w;
    ++at;
  });
}
