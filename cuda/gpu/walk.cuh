// How a warp walks the list of its tile by itself: it picks out the entries that reach its patch and takes them in groups.
#pragma once
#include "splat.cuh"

constexpr int kGroup = 16, kRing = 64;

// Entries picked out and not yet taken, in shared memory.
struct Ring {
  float4 shape[kRing];   // l11, l21, u0, l22
  float4 more[kRing];    // v0, log2_opacity, floor, bits of the place in the tile's list
  uint32_t slot[kRing];
};

// take(head, members): a group of up to 16 entries, near to far, in the ring from place head % 64 on. A warp takes groups
// until the list, from `first` on, ends after `count` entries or going() is false; all lanes call going, and take may use warp collectives.
// Ahead: the next entries are loaded while groups are worked on, for 9 registers.
template <bool kAhead = true, class Going, class Take>
FS_DEVICE void for_groups(const Entry* entries, const uint32_t* slots, uint32_t first, int count, int warp, Ring& ring,
                          Going going, Take take) {
  const int lane = fs_lane();
  const float4* from = reinterpret_cast<const float4*>(entries);
  int head = 0, tail = 0;
  float4 shape = make_float4(0, 0, 0, 0), more = shape;
  uint32_t slot = 0;
  auto load = [&](int base) {
    const int mine = base + lane;
    if (mine >= count) return;
    const int64_t at = first + static_cast<uint32_t>(mine);
    shape = fs_ldg(from + 3 * at), more = fs_ldg(from + 3 * at + 1), slot = fs_ldg(slots + at);
  };
  if (kAhead) load(0);
  for (int base = 0;; base += 32) {
    const bool more_to_come = base < count && going(base);
    if (more_to_come) {
      if (!kAhead) load(base);
      const bool hit = base + lane < count && (fs_float_as_uint(more.w) >> warp & 1);
      const uint32_t bits = fs_ballot(hit);
      if (hit) {
        const int at = (tail + fs_popc(bits & ((1u << lane) - 1))) % kRing;
        ring.shape[at] = shape, ring.slot[at] = slot;
        more.w = fs_uint_as_float(static_cast<uint32_t>(base + lane));
        ring.more[at] = more;
      }
      tail += fs_popc(bits);
      if (kAhead) load(base + 32);
    }
    fs_syncwarp();
    const int least = more_to_come ? kGroup : 1;
    for (; tail - head >= least; head += kGroup) take(head, min(kGroup, tail - head));
    if (!more_to_come) return;
    fs_syncwarp();
  }
}

// The place in the tile's list of an entry in the ring.
FS_DEVICE int place_in_list(float4 more) { return static_cast<int>(fs_float_as_uint(more.w)); }

FS_DEVICE int warp_max(int v) {
  for (int d = 16; d; d >>= 1) v = max(v, fs_shfl_xor(v, d));
  return v;
}
