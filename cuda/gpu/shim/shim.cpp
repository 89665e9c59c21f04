// The emulator behind shim.h: whose turn it is, barriers, collectives, copies. Built once, without the kernels.
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "machine.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

namespace fs_shim {

const Index* here = nullptr;
uint3 block_index{};
dim3 block_size{}, grid_size{};
unsigned char* dynamic_shared = nullptr;
int64_t dynamic_shared_size = 0;
int64_t block_serial = 0;

namespace {

Machine m;

char* stack_of(const Thread& t) { return m.stacks + stack_bytes * (&t - m.threads.data()); }

const char* name_of(Op op) {
  static const char* const names[] = {"fs_syncwarp", "a shuffle", "a ballot (fs_ballot, fs_any, fs_all)",
                                      "fs_match_any", "mma_m16n8k16_f16_f32", "mma_m16n8k16_bf16_f32", "mma_m16n8k8_tf32", "ldmatrix",
                                      "fs_sync", "fs_sync_or", "fs_sync_and", "fs_sync_count"};
  return names[op];
}

std::string place(Op op, Site site) {
  const char* file = strrchr(site.file, '/');
  return std::string(name_of(op)) + " (" + (file ? file + 1 : site.file) + ":" + std::to_string(site.line) + ")";
}

void note(const std::string& text) {
  if (m.failed) return;
  m.failed = true;
  m.error = "block (" + std::to_string(block_index.x) + ", " + std::to_string(block_index.y) + ", " +
            std::to_string(block_index.z) + "): " + text;
}

uint64_t next_random() {
  m.random ^= m.random << 13;
  m.random ^= m.random >> 7;
  m.random ^= m.random << 17;
  return m.random;
}

void to_main(bool last) {
  Thread& t = *m.running;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(last ? nullptr : &t.fake_stack, m.main_bottom, m.main_size);
#endif
  (void)last;
  change(t.context, m.main);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(t.fake_stack, &m.main_bottom, &m.main_size);
#endif
}

void entry() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &m.main_bottom, &m.main_size);
#endif
  m.kernel(m.arguments);
  m.running->state = done;
  to_main(true);
  abort();
}

void run(Thread& t) {
  m.running = &t;
  here = &t.index;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&m.main_fake, stack_of(t), stack_bytes);
#endif
  change(m.main, t.context);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(m.main_fake, nullptr, nullptr);
#endif
}

// A permutation of 0..31 (or of the warps, by striding): where to start, and which odd step to take.
struct Order {
  int start = 0, step = 1;
};
Order draw() {
  if (m.order == 0) return {0, 1};
  if (m.order == 1) return {31, 31};
  const uint64_t r = next_random();
  return {static_cast<int>(r & 31), static_cast<int>((r >> 8) & 31) | 1};
}

void run_warp(Warp& warp, Thread* lanes) {
  while (warp.runnable != 0 && !m.failed) {
    const Order order = draw();
    for (int i = 0; i < 32 && !m.failed; ++i) {
      const int lane = (order.start + order.step * i) & 31;
      if ((warp.runnable >> lane & 1) == 0) continue;
      run(lanes[lane]);
      if (lanes[lane].state != ready) warp.runnable &= ~(1u << lane);
    }
  }
}

std::string lanes_text(uint32_t mask) {
  if (mask == ~0u) return "all lanes";
  std::string text = fs_popc(mask) == 1 ? "lane" : "lanes";
  for (int lane = 0; lane < 32; ++lane) {
    if ((mask >> lane & 1) == 0) continue;
    int last = lane;
    while (last < 31 && (mask >> (last + 1) & 1)) ++last;
    text += " " + std::to_string(lane) + (last > lane ? "-" + std::to_string(last) : "");
    lane = last;
  }
  return text;
}

// Who waits where, at most four groups: "warp 1: lanes 0-15 at a shuffle (k.cu:12); lanes 16-31 have returned".
std::string who_waits() {
  std::string text;
  int groups = 0;
  for (size_t w = 0; w < m.warps.size() && groups < 4; ++w) {
    uint32_t seen = 0;
    std::string line;
    for (int lane = 0; lane < 32; ++lane) {
      if (seen >> lane & 1) continue;
      const Thread& t = m.threads[32 * w + lane];
      uint32_t mask = 0;
      for (int other = lane; other < 32; ++other) {
        const Thread& o = m.threads[32 * w + other];
        const bool same = o.state == t.state && (t.state == done || (o.op == t.op && o.site.line == t.site.line &&
                                                                     strcmp(o.site.file, t.site.file) == 0));
        mask |= static_cast<uint32_t>(same) << other;
      }
      seen |= mask;
      line += (line.empty() ? "" : ", ") + lanes_text(mask) +
              (t.state == done ? " returned" : " at " + place(t.op, t.site));
      ++groups;
    }
    text += (text.empty() ? "" : "; ") + std::string("warp ") + std::to_string(w) + ": " + line;
  }
  return text;
}

// Nothing can run: either every thread that is left stands at one barrier, which opens, or the kernel hangs.
bool open_barrier() {
  const Thread* first = nullptr;
  bool divergent = false;
  int any = 0, all = 1, count = 0;
  for (const Thread& t : m.threads) {
    if (t.state == done) continue;
    if (first == nullptr) first = &t;
    divergent |= t.state != in_block || t.op != first->op || t.site.line != first->site.line ||
                 strcmp(t.site.file, first->site.file) != 0;
    any |= t.predicate != 0;
    all &= t.predicate != 0;
    count += t.predicate != 0;
  }
  if (first == nullptr) return false;
  if (divergent) {
    note("divergence: not all threads come to the same barrier or collective: " + who_waits());
    return false;
  }
  m.barrier_result = first->op == op_sync_or ? any : first->op == op_sync_and ? all : count;
  for (Thread& t : m.threads) {
    if (t.state == done) continue;
    t.state = ready;
    m.warps[t.index.warp].runnable |= 1u << t.index.lane;
  }
  return true;
}

void poison(void* bytes, int64_t size) { memset(bytes, 0xff, static_cast<size_t>(size)); }

void run_block() {
  ++block_serial;
  if (dynamic_shared_size > 0) poison(dynamic_shared, dynamic_shared_size);
  for (Warp& warp : m.warps) warp.runnable = ~0u, warp.arrived = 0;
  for (Thread& t : m.threads) {
    t.state = ready;
    t.copies.clear();
    prepare(t.context, stack_of(t), entry);
#if defined(__SANITIZE_ADDRESS__)
    t.fake_stack = nullptr;
#endif
  }
  const int warps = static_cast<int>(m.warps.size());
  do {
    const Order order = draw();
    for (int i = 0; i < warps && !m.failed; ++i) {
      const int w = m.order == 0 ? i : m.order == 1 ? warps - 1 - i : (order.start + i) % warps;
      run_warp(m.warps[w], &m.threads[32 * w]);
    }
  } while (!m.failed && open_barrier());
}

bool reserve_stacks(size_t count) {
  if (count <= m.stack_count) return true;
  if (m.stacks != nullptr) munmap(m.stacks, m.stack_count * stack_bytes);
  void* memory = mmap(nullptr, count * stack_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
                      -1, 0);
  m.stacks = memory == MAP_FAILED ? nullptr : static_cast<char*>(memory);
  m.stack_count = m.stacks == nullptr ? 0 : count;
  return m.stacks != nullptr;
}

}  // namespace

void poison_shared(void* bytes, int64_t size) { poison(bytes, size); }

void fail(Site site, const char* format, ...) {
  char text[512];
  va_list list;
  va_start(list, format);
  vsnprintf(text, sizeof(text), format, list);
  va_end(list);
  const char* file = strrchr(site.file, '/');
  const Index& i = m.running->index;
  note("thread " + std::to_string(32 * i.warp + i.lane) + ": " + text + " (" + (file ? file + 1 : site.file) + ":" +
       std::to_string(site.line) + ")");
  to_main(false);
  abort();  // a failed block is never resumed
}

Slot* exchange(Op op, const void* bytes, int size, Site site, Finish finish, int argument) {
  Thread& t = *m.running;
  Warp& warp = m.warps[t.index.warp];
  t.op = op, t.site = site;
  if (warp.arrived > 0) {
    for (int lane = 0; lane < 32; ++lane) {
      const Thread& other = m.threads[32 * t.index.warp + lane];
      if (other.state != in_warp) continue;
      if (other.op != op || other.site.line != site.line || strcmp(other.site.file, site.file) != 0) {
        t.state = in_warp;
        note("divergence: lanes of a warp at different collectives: lane " + std::to_string(t.index.lane) + " at " +
             place(op, site) + ", lane " + std::to_string(lane) + " at " + place(other.op, other.site));
        to_main(false);
        abort();
      }
      break;
    }
  }
  Slot* slots = warp.slots[warp.parity];
  if (size > 0) memcpy(slots[t.index.lane].bytes, bytes, static_cast<size_t>(size));
  if (++warp.arrived < 32) {
    t.state = in_warp;
    to_main(false);
    return slots;
  }
  if (finish != nullptr) finish(slots, argument);
  warp.arrived = 0;
  warp.parity ^= 1;
  warp.runnable = ~0u;
  for (int lane = 0; lane < 32; ++lane) m.threads[32 * t.index.warp + lane].state = ready;
  return slots;
}

int barrier(Op op, int predicate, Site site) {
  Thread& t = *m.running;
  t.op = op, t.site = site, t.predicate = predicate, t.state = in_block;
  to_main(false);
  return m.barrier_result;
}

void copy_async(void* dst, const void* src, int size, int read, Site site) {
  if (((reinterpret_cast<uintptr_t>(dst) | reinterpret_cast<uintptr_t>(src)) & (size - 1)) != 0) {
    fail(site, "fs_cp_async%d: an address that is not aligned to %d bytes", size, size);
  }
  if (read < 0 || read > size) fail(site, "fs_cp_async16_zfill: %d of %d bytes", read, size);
  Thread& t = *m.running;
  if (t.copies.empty()) t.copies.emplace_back();
  t.copies.back().push_back({dst, src, size, read});
  poison(dst, size);
}

void copy_commit() {
  Thread& t = *m.running;
  if (t.copies.empty()) t.copies.emplace_back();
  t.copies.emplace_back();
}

void copy_wait(int groups) {
  auto& copies = m.running->copies;
  const int committed = static_cast<int>(copies.size()) - 1;
  if (committed <= groups) return;
  for (int i = 0; i < committed - groups; ++i) {
    for (const Copy& c : copies[i]) {
      memcpy(c.dst, c.src, static_cast<size_t>(c.read));
      memset(static_cast<char*>(c.dst) + c.read, 0, static_cast<size_t>(c.size - c.read));
    }
  }
  copies.erase(copies.begin(), copies.begin() + (committed - groups));
}

}  // namespace fs_shim

// ---- what Python calls -----------------------------------------------------------------------------------------------------
extern "C" __attribute__((visibility("default"))) const char* fs_shim_error() { return fs_shim::m.error.c_str(); }

// Runs all blocks of a grid. `kernel` is fs_call_NAME; order 0 runs threads ascending, 1 descending, 2 shuffled by
// seed. Returns 0, or 1 with fs_shim_error().
extern "C" __attribute__((visibility("default"))) int fs_shim_launch(void (*kernel)(void**), void** arguments,
                                                                      const int64_t* grid, const int64_t* block,
                                                                      int64_t shared_bytes, int bound, int order,
                                                                      uint64_t seed) {
  using namespace fs_shim;
  const std::lock_guard<std::mutex> lock(m.mutex);
  m.failed = false;
  m.error.clear();
  block_index = {};
  const int64_t count = block[0] * block[1] * block[2];
  const auto refuse = [](const std::string& text) {
    m.error = text;
    return 1;
  };
  if (count < 1 || count > bound || block[2] > 64) {
    return refuse("a block of " + std::to_string(count) + " threads; the kernel's bound is " + std::to_string(bound));
  }
  if (count % 32 != 0) return refuse("a block of " + std::to_string(count) + " threads: not whole warps");
  if (grid[0] < 1 || grid[0] > 2147483647 || grid[1] < 1 || grid[1] > 65535 || grid[2] < 1 || grid[2] > 65535) {
    return refuse("a grid of " + std::to_string(grid[0]) + " x " + std::to_string(grid[1]) + " x " +
                  std::to_string(grid[2]) + " blocks");
  }
  if (shared_bytes < 0 || shared_bytes > 227 * 1024) {
    return refuse(std::to_string(shared_bytes) + " bytes of dynamic shared memory");
  }
  if (!reserve_stacks(static_cast<size_t>(count))) return refuse("no memory for the fibers' stacks");
  m.threads = std::vector<Thread>(static_cast<size_t>(count));
  m.warps = std::vector<Warp>(static_cast<size_t>(count / 32));
  for (int64_t i = 0; i < count; ++i) {
    Index& index = m.threads[i].index;
    index.thread = {static_cast<unsigned>(i % block[0]), static_cast<unsigned>(i / block[0] % block[1]),
                    static_cast<unsigned>(i / (block[0] * block[1]))};
    index.lane = static_cast<int>(i % 32), index.warp = static_cast<int>(i / 32);
  }
  block_size = {static_cast<unsigned>(block[0]), static_cast<unsigned>(block[1]), static_cast<unsigned>(block[2])};
  grid_size = {static_cast<unsigned>(grid[0]), static_cast<unsigned>(grid[1]), static_cast<unsigned>(grid[2])};
  // Exactly the bytes asked for, so that AddressSanitizer sees the first one too many.
  void* memory = nullptr;
  if (shared_bytes > 0 && posix_memalign(&memory, 128, static_cast<size_t>(shared_bytes)) != 0) {
    return refuse("no memory for shared memory");
  }
  dynamic_shared = static_cast<unsigned char*>(memory);
  dynamic_shared_size = shared_bytes;
  m.kernel = kernel, m.arguments = arguments, m.order = order;
  m.random = seed * 0x9e3779b97f4a7c15u + 0x2545f4914f6cdd1du;
  const int64_t blocks = grid[0] * grid[1] * grid[2];
  for (int64_t i = 0; i < blocks && !m.failed; ++i) {
    const int64_t b = order == 1 ? blocks - 1 - i : i;
    block_index = {static_cast<unsigned>(b % grid[0]), static_cast<unsigned>(b / grid[0] % grid[1]),
                   static_cast<unsigned>(b / (grid[0] * grid[1]))};
    run_block();
  }
  free(memory);
  dynamic_shared = nullptr;
  return m.failed ? 1 : 0;
}
