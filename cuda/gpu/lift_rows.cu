// W^T V with weights that weigh.cu has left: the same product as lift.cu for many groups of channels, a block for a tile and
// one of them. The blocks of a tile follow each other, so that its weights come from the second level of cache.
#include "lift_product.cuh"

#ifndef BATCH
#define BATCH 32  // entries at a time: 16 or 32
#endif

constexpr int kStride = 72;  // bfloat16 from row to row: ldmatrix reads eight of them from different banks

struct SharedRows {
  float sums[kPatches][BATCH * kChannels];  // of each warp, for the splats it takes, one after the other
  uint16_t rows[kPatches][BATCH * kStride];
  uint32_t id[BATCH];
  uint32_t taken[kPatches];  // bits: which entries of the batch
  float weights[kPatches][BATCH];
};

FS_KERNEL_OCCUPANCY(256, (TILES > 4 ? 1 : 2), lift_rows, const LiftArgs a) {
  FS_DYNAMIC_SHARED(SharedRows, shared);
  SharedRows& s = *shared;
  const int groups = static_cast<int>((a.dim + kChannels - 1) / kChannels);
  const int tile = static_cast<int>(blockIdx.x) / groups, group = static_cast<int>(blockIdx.x) % groups;
  const int warp = fs_warp(), lane = fs_lane(), patch = tile * kPatches + warp;
  const uint32_t first = a.lists.offsets[tile];
  const int count = static_cast<int>(a.lists.offsets[tile + 1] - first);
  if (count == 0 || a.stored.ends[a.all_patches - 1] > a.room) return;
  const int farthest = a.stored.farthest[patch], channel = group * kChannels;
  const uint16_t* next_rows = a.stored.rows + (patch ? a.stored.ends[patch - 1] : 0) * 64;
  Maps maps;
  load_maps(a, place_of(tile, a.tiles, a.tiles_x), warp, channel, maps);
  uint16_t* mine = s.rows[warp];

  // One batch ahead: its rows are on their way to shared memory; two ahead: what the list says is in registers.
  uint32_t mask = 0, id = 0;
  auto look = [&](int base) {
    mask = lane < BATCH && base + lane < farthest ? fs_ldg(a.lists.masks + first + base + lane) : 0;
    id = static_cast<int>(threadIdx.x) < BATCH && base + lane < count ? fs_ldg(a.stored.ids + first + base + lane) : 0;
  };
  uint32_t taken = 0, arriving_id = 0;
  auto fetch = [&] {
    taken = fs_ballot(mask >> warp & 1), arriving_id = id;
    const int chunks = 8 * fs_popc(taken);
    for (int i = lane; i < chunks; i += 32) fs_cp_async16(mine + (i >> 3) * kStride + (i & 7) * 8, next_rows + i * 8);
    next_rows += 8 * chunks;
    fs_cp_commit();
  };
  look(0);
  fetch();
  look(BATCH);
  for (int base = 0; base < count; base += BATCH) {
    // Also keeps the sums from being overwritten before they are added.
    if (!fs_sync_or(base < farthest)) return;
    const int n = min(BATCH, count - base), rows = fs_popc(taken);
    if (lane == 0) s.taken[warp] = taken;
    if (static_cast<int>(threadIdx.x) < n) s.id[threadIdx.x] = arriving_id;
    for (int row = rows; row & 7; ++row) mine[row * kStride + lane] = mine[row * kStride + 32 + lane] = 0;
    fs_cp_wait<0>();
    fs_syncwarp();
    multiply_rows(maps, mine, mine + 32, kStride, rows, s.sums[warp], group == 0 ? s.weights[warp] : nullptr);
    fs_syncwarp();
    fetch();
    look(base + 2 * BATCH);
    fs_sync();
    add_batch(a, s.sums, s.weights, s.taken, s.id, n, channel, group == 0);
  }
}
