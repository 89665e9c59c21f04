// The transpose of blending. Per pixel, back to front, with c the gradient of the loss to a weight and R the c blended
// behind: v_alpha = T (c - R), R <- R + alpha (c - R). One pixel a lane, every warp by itself. What a splat receives from a
// warp's 32 pixels is one matrix product, 8 splats at a time: [fields x pixels] times [pixels x splats], where the fields are
// {1, x, y, x^2, xy, y^2} for the gradients of exponents, and the images' gradients for the weights.
#include "backward.cuh"

// Warps of a multiprocessor that the wide kernel's registers are cut for; sm_120 would spill at 12.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
constexpr int kWideWarps = 8;
#else
constexpr int kWideWarps = 12;
#endif

FS_KERNEL_OCCUPANCY(32 * WARPS, (WIDE ? (AHEAD ? 2 : kWideWarps / WARPS) : CHANNELS > 4 || !MATRIX ? 3 : 5), blend_backward, const BackwardArgs a) {
  FS_DYNAMIC_SHARED(Warp, warps);
  Warp& s = warps[fs_warp()];
  const int lane = fs_lane();
  const int64_t mine = static_cast<int64_t>(blockIdx.x) * WARPS + fs_warp();
  const int tile = static_cast<int>(mine / kPatches), patch = static_cast<int>(mine % kPatches);
  const Place place = place_of(tile, a.tiles, a.tiles_x);
  const int lx = patch_x(patch) + (lane & 7), ly = patch_y(patch) + (lane >> 3);
  const bool inside = place.x + lx < a.width && place.y + ly < a.height;
  const int64_t pixel = (static_cast<int64_t>(place.camera) * a.height + place.y + ly) * a.width + place.x + lx;
  const float px = lx - 7.5f, py = ly - 7.5f;
  const uint32_t first = a.lists.offsets[tile];
  const int last = inside ? a.last[pixel] : 0;
  const int farthest = warp_max(last);
  if (farthest == 0) return;
  Seen seen;
  read_gradients(a, place.camera, pixel, inside, seen);
#if MATRIX
  uint32_t moments[4][2];
  make_fields(s, patch, seen, moments);
#endif
  float T = inside ? transmittance_of(a.left[pixel]) : 1.f, behind = 0;

  // Up to 8 splats from ring place head on, far to near; `row` is the first one's in s.dots.
  auto take = [&](int head, int members, int row) {
#if CHANNELS > 0
    for (int i = lane; i < members * CHANNELS; i += 32) {
      const int k = i / CHANNELS, c = i - k * CHANNELS;
      const int64_t id = s.id[(head + k) % kSlots];
      s.features[i] = fs_ldg(a.rows + id * CHANNELS + c);
    }
    fs_syncwarp();
#endif
#pragma unroll
    for (int quad = 0; quad < 8; quad += 4) {  // four at a time, so that they do not wait for each other
      float al[4], raw[4], c[4];
#pragma unroll
      for (int m = 0; m < 4; ++m) {
        const int k = min(quad + m, members - 1), at = (head + k) % kSlots;
        const float4 shape = s.shape[at], more = s.more[at];
        raw[m] = alpha_at(shape, more.x, more.y, more.z, px, py);
        al[m] = quad + m < members && place_in_list(more) < last ? fminf(raw[m], a.alpha_max) : 0.f;
        c[m] = 0;
#if GEOMETRY
#if COLORS
        const float4 color = s.color[at];
        c[m] = fmaf(color.x, seen.r, fmaf(color.y, seen.g, fmaf(color.z, seen.b, fmaf(color.w, seen.z, seen.weight))));
#endif
#if CHANNELS > 0 && FEATURES_MOVE
        for (int i = 0; i < CHANNELS; ++i) c[m] = fmaf(s.features[k * CHANNELS + i], seen.features[i], c[m]);
#endif
#if WIDE && MATRIX
        c[m] += s.dots[(row + k) * kRow + lane];
#elif WIDE
        if (al[m] > 0) {
          const float* features = a.rows + static_cast<int64_t>(s.id[at]) * a.dim;
          const float* image = a.v_features + pixel * a.dim;
          for (int64_t i = 0; i < a.dim; ++i) c[m] = fmaf(fs_ldg(features + i), fs_ldg(image + i), c[m]);
        }
#endif
#endif
      }
      float inverse[4];
#pragma unroll
      for (int m = 0; m < 4; ++m) inverse[m] = fs_rcp(1 - al[m]);
#pragma unroll
      for (int m = 0; m < 4; ++m) {
        T *= inverse[m];
        const float w = al[m] * T, d = c[m] - behind;
        behind = fmaf(al[m], d, behind);
        const float vs = GEOMETRY && raw[m] < a.alpha_max ? -w * d : 0.f;
#if ABSOLUTE
        {  // d sigma / d centre = -2 ln 2 (l11 u, l21 u + l22 v)
          const int at = (head + min(quad + m, members - 1)) % kSlots;
          const float4 shape = s.shape[at];
          const float u = fmaf(shape.y, py, fmaf(shape.x, px, shape.z)), v = fmaf(shape.w, py, s.more[at].x);
          const float gx = warp_sum(fabsf(vs * u)), gy = warp_sum(fabsf(vs * fmaf(shape.w, v, shape.y * u)));
          if (lane < 2) s.out[(quad + m) * kOut + kFields + lane] = lane ? 1.3862944f * gy : 1.3862944f * shape.x * gx;
        }
#endif
#if MATRIX
        s.pairs[0][(quad + m) * kRow + lane] = vs;
#if WEIGHTS
        s.pairs[1][(quad + m) * kRow + lane] = w;
#endif
#else
        const float values[10] = {vs, vs * px, vs * py, vs * px * px, vs * px * py, vs * py * py,
                                  w * seen.r, w * seen.g, w * seen.b, w * seen.z};
        float* out = s.out + (quad + m) * kOut;
        for (int i = 0; i < 10; ++i) {
          const float sum = warp_sum(values[i]);
          if (lane == 0) out[i < 6 ? i : i + 2] = sum;
        }
        for (int i = 0; i < CHANNELS; ++i) {
          const float sum = warp_sum(w * seen.features[i]);
          if (lane == 0) out[12 + i] = sum;
        }
#endif
      }
    }
    fs_syncwarp();
#if MATRIX
    multiply_fields(s, moments);
    fs_syncwarp();
#endif
    add_records(a, s, head, members);
    fs_syncwarp();
  };

  const int cx = place.x + kTile / 2, cy = place.y + kTile / 2;
  int head = 0, tail = 0;
  uint32_t rank = 0, mask = 0;
  auto look = [&](int base) {  // at the list
    const int index = base + 31 - lane;
    mask = 0;
    if (base < 0 || index >= farthest) return;
    const int64_t at = first + static_cast<uint32_t>(index);
    rank = fs_ldg(a.lists.list + at), mask = fs_ldg(a.lists.masks + at);
  };
  auto fetch = [&] {
    if (mask >> patch & 1) {
      const float4* from = reinterpret_cast<const float4*>(a.lists.splats + rank);
      for (int i = 0; i < 3; ++i) fs_cp_async16(s.coming[i] + lane, from + (i == 2 ? 3 : i));
    }
    fs_cp_commit();
  };
  const int start_base = (farthest - 1) / 32 * 32;
#if WIDE  // few registers to spare, and much to do between two fetches
  uint32_t &coming_rank = rank, &coming_mask = mask;
#else
  look(start_base);
  fetch();
  uint32_t coming_rank = rank, coming_mask = mask;
  look(start_base - 32);
#endif
  for (int base = start_base;; base -= 32) {
    const bool more_to_come = base >= 0;
    if (more_to_come) {
#if WIDE
      look(base);
      fetch();
#endif
      fs_cp_wait<0>();
      const bool hit = coming_mask >> patch & 1;
      const uint32_t bits = fs_ballot(hit);
      if (hit) {
        const int k = (tail + fs_popc(bits & ((1u << lane) - 1))) % kSlots, index = base + 31 - lane;
        const float4 center = s.coming[0][lane], factor = s.coming[1][lane], rest = s.coming[2][lane];
        float v0;
        s.shape[k] = seen_from(center, factor, cx, cy, v0);
        s.more[k] = make_float4(v0, factor.w, rest.x, fs_uint_as_float(static_cast<uint32_t>(index)));
        s.center[k] = make_float2((center.x - cx) + center.z, (center.y - cy) + center.w);
        s.id[k] = fs_float_as_uint(rest.w);
#if COLORS
        s.color[k] = fs_ldg(reinterpret_cast<const float4*>(a.lists.splats + coming_rank) + 2);
#endif
#if ORDERED
        const int64_t pair = a.written[first + static_cast<uint32_t>(index)];
        s.record[k] = static_cast<uint32_t>((pair ? a.hit_ends[pair - 1] : 0) + fs_popc(coming_mask & ((1u << patch) - 1)));
#else
        s.record[k] = coming_rank;
#endif
      }
      tail += fs_popc(bits);
#if !WIDE
      fetch();
      coming_rank = rank, coming_mask = mask;
      look(base - 64);
#endif
    }
    fs_syncwarp();
    const int least = more_to_come ? GROUP : 1;
    for (; tail - head >= least; head += GROUP) {
      const int members = min(GROUP, tail - head);
#if WIDE && MATRIX
#if GROUP > 16
      if (members > 16) dot_features<GROUP / 16>(a, place, patch, s, head, members);
      else
#endif
      dot_features<1>(a, place, patch, s, head, members);
      fs_syncwarp();
#endif
      for (int start = 0; start < members; start += 8) take(head + start, min(8, members - start), start);
    }
    if (!more_to_come) return;
  }
}
