// The transpose of blending for devices without matrix units: one pixel a lane, sums by shuffles.
#include "lift.cuh"

FS_KERNEL(256, lift_pixels, const LiftArgs a) {
  FS_SHARED(Ring, rings, kPatches);
  const int tile = blockIdx.x, warp = fs_warp(), lane = fs_lane();
  const Place place = place_of(tile, a.tiles, a.tiles_x);
  const uint32_t first = a.lists.offsets[tile];
  const int count = static_cast<int>(a.lists.offsets[tile + 1] - first);
  const int64_t channel = static_cast<int64_t>(blockIdx.y) * kChannels;
  const int lx = patch_x(warp) + (lane & 7), ly = patch_y(warp) + (lane >> 3);
  const bool inside = place.x + lx < a.width && place.y + ly < a.height;
  const int64_t corner = (static_cast<int64_t>(place.camera) * a.height + place.y + patch_y(warp)) * a.width + place.x + patch_x(warp);
  const float px = lx - 7.5f, py = ly - 7.5f;
  float T = 1;
#if STOPS
  const int last = inside ? a.last[corner + static_cast<int64_t>(lane >> 3) * a.width + (lane & 7)] : 0;
  const int farthest = warp_max(last);
  if (farthest == 0) return;
  auto going = [&](int base) { return base < farthest; };
#else
  bool live = inside && T > a.transmittance_min;
  auto going = [&](int) { return fs_any(live); };
#endif

  // The weight of the next entry at this lane's pixel.
  auto weigh = [&](int at) {
    const float4 shape = rings[warp].shape[at], more = rings[warp].more[at];
    const float al = fminf(alpha_at(shape, more.x, more.y, more.z, px, py), a.alpha_max);
    const float next = fmaf(-al, T, T);
#if STOPS
    const bool counts = place_in_list(more) < last;
#else
    if (al > 0 && !(next > a.transmittance_min)) live = false;
    const bool counts = live;
#endif
    if (!counts) return 0.f;
    const float w = al * T;
    T = next;
    return POWER == 2 ? w * w : w;
  };

  const int64_t pixel = corner + static_cast<int64_t>(lane >> 3) * a.width + (lane & 7);
  float maps[kChannels];
  for (int c = 0; c < kChannels; ++c) maps[c] = inside && channel + c < a.dim ? a.maps[pixel * a.dim + channel + c] : 0.f;
  auto take = [&](int head, int members) {
    for (int m = 0; m < members; ++m) {
      const float w = weigh((head + m) % kRing);
      const int64_t id = rings[warp].id[(head + m) % kRing];
      for (int c = -WEIGHTS; c < kChannels; ++c) {
        if (c < 0 ? blockIdx.y != 0 : channel + c >= a.dim) continue;
        float sum = c < 0 ? w : w * maps[c < 0 ? 0 : c];
        for (int d = 16; d; d >>= 1) sum += fs_shfl_xor(sum, d);
        if (lane == 0) add_to(a, c < 0 ? a.weights : a.sums, c < 0 ? id : id * a.dim + channel + c, sum);
      }
    }
  };
  for_groups(a.lists, first, count, warp, place.x + kTile / 2, place.y + kTile / 2, rings[warp], going, take);
}
