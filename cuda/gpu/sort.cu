// A stable counting sort of pairs by tile, one digit a pass, least significant first. A pass is two kernels with an inclusive
// sum of the counts between them, done by the caller. What stands in `keys` beyond the number of pairs does not matter.
#include "device.cuh"

constexpr int kMostDigits = 256, kThreads = 256, kWarps = kThreads / 32;
constexpr int kRounds = 16, kChunk = kThreads * kRounds;  // pairs of a block: _cuda_sort.py knows the product

struct SortArgs {
  const void* keys;      // [capacity] uint16 or uint32
  void* keys_out;        // [capacity] in the order of the digit
  const uint32_t* values;  // [capacity]; null stands for 0, 1, 2, ...
  uint32_t* values_out;  // [capacity]
  int32_t* counts;       // [digits, blocks] how often a block has a digit; for place_digits their inclusive sums
  const int64_t* total;  // [1] number of pairs
  int64_t capacity;
  int32_t shift, digits, blocks, small_keys;
};

FS_DEVICE uint32_t sort_key(const SortArgs& a, int64_t at) {
  return a.small_keys ? static_cast<const uint16_t*>(a.keys)[at] : static_cast<const uint32_t*>(a.keys)[at];
}

FS_DEVICE int digit_of(const SortArgs& a, uint32_t key) { return static_cast<int>(key >> a.shift) & (a.digits - 1); }

// The n-th pair that a lane of a warp looks at: a warp has pairs that follow each other, 32 at a time.
FS_DEVICE int64_t pair_of(int round) {
  return static_cast<int64_t>(blockIdx.x) * kChunk + fs_warp() * (32 * kRounds) + round * 32 + fs_lane();
}

FS_KERNEL(256, count_digits, const SortArgs a) {
  FS_SHARED(int, bins, kMostDigits);
  bins[threadIdx.x] = 0;
  fs_sync();
  const int64_t total = min(*a.total, a.capacity);
  for (int round = 0; round < kRounds; ++round) {
    const int64_t at = pair_of(round);
    if (at < total) fs_atomic_add(bins + digit_of(a, sort_key(a, at)), 1);
  }
  fs_sync();
  if (static_cast<int>(threadIdx.x) < a.digits) a.counts[threadIdx.x * a.blocks + blockIdx.x] = bins[threadIdx.x];
}

FS_KERNEL(256, place_digits, const SortArgs a) {
  FS_SHARED(int, bins, kMostDigits * kWarps);  // of each warp: counts, then where its next pair with a digit goes
  for (int i = threadIdx.x; i < kMostDigits * kWarps; i += kThreads) bins[i] = 0;
  fs_sync();
  int* mine = bins + kMostDigits * fs_warp();
  const int64_t total = min(*a.total, a.capacity);
  for (int round = 0; round < kRounds; ++round) {
    const int64_t at = pair_of(round);
    if (at < total) fs_atomic_add(mine + digit_of(a, sort_key(a, at)), 1);
  }
  fs_sync();
  if (static_cast<int>(threadIdx.x) < a.digits) {
    int next = a.counts[threadIdx.x * a.blocks + blockIdx.x];
    for (int w = kWarps - 1; w >= 0; --w) {
      next -= bins[kMostDigits * w + threadIdx.x];
      bins[kMostDigits * w + threadIdx.x] = next;
    }
  }
  fs_sync();
  for (int round = 0; round < kRounds; ++round) {
    const int64_t at = pair_of(round);
    const bool there = at < total;
    const uint32_t key = there ? sort_key(a, at) : 0;
    const int digit = there ? digit_of(a, key) : -1;
    const uint32_t same = fs_match_any(static_cast<uint32_t>(digit));
    const int before = fs_popc(same & ((1u << fs_lane()) - 1));
    const int start = there ? mine[digit] : 0;
    fs_syncwarp();
    if (there && before == 0) mine[digit] = start + fs_popc(same);
    fs_syncwarp();
    if (!there) continue;
    const int64_t to = static_cast<int64_t>(start) + before;
    if (a.small_keys) static_cast<uint16_t*>(a.keys_out)[to] = static_cast<uint16_t>(key);
    else static_cast<uint32_t*>(a.keys_out)[to] = key;
    a.values_out[to] = a.values ? a.values[at] : static_cast<uint32_t>(at);
  }
}
