// How a warp walks the list of its tile by itself: it picks out the splats that reach its patch and takes them in groups.
#pragma once
#include "splat.cuh"

constexpr int kGroup = 16, kRing = 64;

// What the kernels know of the tiles' lists.
struct Lists {
  const uint32_t* offsets;  // [all tiles + 1]
  const uint32_t* list;     // [pairs] ranks of splats
  const uint8_t* masks;     // [pairs] bit w: the patch of warp w is reached
  const Splat* splats;
};

// Weights computed once for kernels that use them many times: see weigh.cu.
struct Stored {
  const int32_t* farthest;  // [all tiles, 8] so many entries of its tile a patch uses
  const int64_t* ends;      // [all tiles, 8] where the rows of a patch end, those of the patches after one another
  const uint32_t* ids;      // [pairs] Gaussian of each place
  const uint16_t* rows;     // [rows, 64] the weights of 32 pixels as bfloat16 in two parts, one row after the other
};

// Splats picked out and not yet taken, in shared memory.
struct Ring {
  float4 shape[kRing];   // l11, l21, u0, l22
  float4 more[kRing];    // v0, log2_opacity, floor, bits of the place in the tile's list
  uint32_t id[kRing];
  float4 center[32], factor[32], rest[32];  // of the splats on their way from memory, by lane
};

// take(head, members): a group of up to 16 splats, near to far, in the ring from place head % 64 on. A warp takes groups
// until the first `count` of its tile's list are through or going() is false; all lanes call going, and take may use warp
// collectives. Splats are fetched while groups are worked on.
template <class Going, class Take>
FS_DEVICE void for_groups(const Lists& lists, uint32_t first, int count, int patch, int cx, int cy, Ring& ring, Going going,
                          Take take) {
  const int lane = fs_lane();
  int head = 0, tail = 0;
  uint32_t rank = 0;
  bool hit = false;
  auto look = [&](int base) {  // at the list
    const int mine = base + lane;
    hit = mine < count;
    if (!hit) return;
    const int64_t at = first + static_cast<uint32_t>(mine);
    rank = fs_ldg(lists.list + at), hit = fs_ldg(lists.masks + at) >> patch & 1;
  };
  auto fetch = [&] {
    if (hit) {
      const float4* from = reinterpret_cast<const float4*>(lists.splats + rank);
      fs_cp_async16(ring.center + lane, from), fs_cp_async16(ring.factor + lane, from + 1);
      fs_cp_async16(ring.rest + lane, from + 3);
    }
    fs_cp_commit();
  };
  look(0);
  fetch();
  bool arriving = hit;
  look(32);
  for (int base = 0;; base += 32) {
    const bool more_to_come = base < count && going(base);
    if (more_to_come) {
      fs_cp_wait<0>();
      const uint32_t bits = fs_ballot(arriving);
      if (arriving) {
        const int at = (tail + fs_popc(bits & ((1u << lane) - 1))) % kRing;
        const float4 factor = ring.factor[lane], rest = ring.rest[lane];
        float v0;
        ring.shape[at] = seen_from(ring.center[lane], factor, cx, cy, v0);
        ring.more[at] = make_float4(v0, factor.w, rest.x, fs_uint_as_float(static_cast<uint32_t>(base + lane)));
        ring.id[at] = fs_float_as_uint(rest.w);
      }
      tail += fs_popc(bits);
      fetch();
      arriving = hit;
      look(base + 64);
    }
    fs_syncwarp();
    const int least = more_to_come ? kGroup : 1;
    for (; tail - head >= least; head += kGroup) take(head, min(kGroup, tail - head));
    if (!more_to_come) return;
    fs_syncwarp();
  }
}

// The place in the tile's list of a splat in the ring.
FS_DEVICE int place_in_list(float4 more) { return static_cast<int>(fs_float_as_uint(more.w)); }

FS_DEVICE int warp_max(int v) {
  for (int d = 16; d; d >>= 1) v = max(v, fs_shfl_xor(v, d));
  return v;
}
