// The emulator behind shim.h: fibers, barriers, collectives, matrix fragments. Built once, without the kernels.
#include "shim.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

#include <mutex>
#include <string>
#include <vector>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif
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

// ---- fibers ------------------------------------------------------------------------------------------------------------
#if defined(__SANITIZE_ADDRESS__)
constexpr size_t stack_bytes = 512 * 1024;
#else
constexpr size_t stack_bytes = 128 * 1024;
#endif

#if defined(__x86_64__)
struct Context {
  void* sp = nullptr;
};
// Saves the registers that a call keeps on the stack, stores the stack pointer, and goes on where `to` left off.
extern "C" void fs_shim_switch(void** from, void* to);
asm(R"(
.text
.p2align 4
.hidden fs_shim_switch
.globl fs_shim_switch
.type fs_shim_switch, @function
fs_shim_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size fs_shim_switch, .-fs_shim_switch
)");
void prepare(Context& context, char* stack, void (*entry)()) {
  // As if `entry` had been called with a return address of 0: below that, where to go, and six registers.
  void** top = reinterpret_cast<void**>(stack + stack_bytes) - 1;
  *top = nullptr;
  *--top = reinterpret_cast<void*>(entry);
  for (int i = 0; i < 6; ++i) *--top = nullptr;
  context.sp = top;
}
void change(Context& from, Context& to) { fs_shim_switch(&from.sp, to.sp); }
#else
struct Context {
  ucontext_t u{};
};
void prepare(Context& context, char* stack, void (*entry)()) {
  getcontext(&context.u);
  context.u.uc_stack.ss_sp = stack;
  context.u.uc_stack.ss_size = stack_bytes;
  context.u.uc_link = nullptr;
  makecontext(&context.u, entry, 0);
}
void change(Context& from, Context& to) { swapcontext(&from.u, &to.u); }
#endif

enum State : unsigned char { ready, in_warp, in_block, done };

struct Copy {
  void* dst;
  const void* src;
  int size, read;
};

struct Thread {
  Index index{};
  Context context;
  State state = done;
  Op op = op_sync;
  Site site{};
  int predicate = 0;
  std::vector<std::vector<Copy>> copies;  // the last group is open
#if defined(__SANITIZE_ADDRESS__)
  void* fake_stack = nullptr;
#endif
};

struct Warp {
  uint32_t runnable = 0;  // lanes
  int arrived = 0, parity = 0;
  Slot slots[2][32];
};

struct Machine {
  std::mutex mutex;
  char* stacks = nullptr;
  size_t stack_count = 0;
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  void (*kernel)(void**) = nullptr;
  void** arguments = nullptr;
  Context main;
  Thread* running = nullptr;
  int barrier_result = 0;
  bool failed = false;
  std::string error;
  int order = 0;  // 0 ascending, 1 descending, 2 shuffled
  uint64_t random = 0;
#if defined(__SANITIZE_ADDRESS__)
  const void* main_bottom = nullptr;
  size_t main_size = 0;
  void* main_fake = nullptr;
#endif
};
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

float truncate_tf32(uint32_t bits) { return fs_uint_as_float(bits & ~0x1fffu); }

struct MmaSlot {
  uint32_t a[4], b[2];
  float c[4];
};

// d = a b + c for a warp, given readers of its fragments.
template <int K, class ReadA, class ReadB> void multiply(Slot* slots, ReadA read_a, ReadB read_b) {
  float a[16][K], b[K][8], d[16][8];
  for (int lane = 0; lane < 32; ++lane) {
    MmaSlot s;
    memcpy(&s, slots[lane].bytes, sizeof(s));
    const int g = lane / 4, t = lane % 4;
    read_a(a, s, g, t);
    read_b(b, s, g, t);
    d[g][2 * t] = s.c[0], d[g][2 * t + 1] = s.c[1];
    d[g + 8][2 * t] = s.c[2], d[g + 8][2 * t + 1] = s.c[3];
  }
  for (int row = 0; row < 16; ++row) {
    for (int k = 0; k < K; ++k) {
      for (int column = 0; column < 8; ++column) d[row][column] += a[row][k] * b[k][column];
    }
  }
  for (int lane = 0; lane < 32; ++lane) {
    const int g = lane / 4, t = lane % 4;
    const float out[4] = {d[g][2 * t], d[g][2 * t + 1], d[g + 8][2 * t], d[g + 8][2 * t + 1]};
    memcpy(slots[lane].bytes, out, sizeof(out));
  }
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

template <class Unpack> void multiply_pairs(Slot* slots, Unpack unpack) {
  multiply<16>(
      slots,
      [unpack](float (&a)[16][16], const MmaSlot& s, int g, int t) {
        for (int i = 0; i < 4; ++i) {
          const int row = g + 8 * (i & 1), column = 2 * t + 8 * (i >> 1);
          unpack(s.a[i], a[row][column], a[row][column + 1]);
        }
      },
      [unpack](float (&b)[16][8], const MmaSlot& s, int g, int t) {
        for (int i = 0; i < 2; ++i) unpack(s.b[i], b[2 * t + 8 * i][g], b[2 * t + 8 * i + 1][g]);
      });
}

void finish_mma_f16(Slot* slots, int) {
  multiply_pairs(slots, [](uint32_t pair, float& lo, float& hi) { fs_unpack_f16(pair, lo, hi); });
}

void finish_mma_bf16(Slot* slots, int) {
  multiply_pairs(slots, [](uint32_t pair, float& lo, float& hi) { fs_unpack_bf16(pair, lo, hi); });
}

void finish_mma_tf32(Slot* slots, int) {
  multiply<8>(
      slots,
      [](float (&a)[16][8], const MmaSlot& s, int g, int t) {
        for (int i = 0; i < 4; ++i) a[g + 8 * (i & 1)][t + 4 * (i >> 1)] = truncate_tf32(s.a[i]);
      },
      [](float (&b)[8][8], const MmaSlot& s, int g, int t) {
        for (int i = 0; i < 2; ++i) b[t + 4 * i][g] = truncate_tf32(s.b[i]);
      });
}

void finish_ldmatrix(Slot* slots, int argument) {
  const int matrices = argument & 0xff;
  const bool transposed = (argument >> 8) != 0;
  uint32_t out[32][4];
  for (int matrix = 0; matrix < matrices; ++matrix) {
    uint16_t rows[8][8];
    for (int row = 0; row < 8; ++row) {
      const void* address;
      memcpy(&address, slots[8 * matrix + row].bytes, sizeof(address));
      memcpy(rows[row], address, sizeof(rows[row]));
    }
    for (int lane = 0; lane < 32; ++lane) {
      const int g = lane / 4, t = lane % 4;
      const uint16_t lo = transposed ? rows[2 * t][g] : rows[g][2 * t];
      const uint16_t hi = transposed ? rows[2 * t + 1][g] : rows[g][2 * t + 1];
      out[lane][matrix] = lo | static_cast<uint32_t>(hi) << 16;
    }
  }
  for (int lane = 0; lane < 32; ++lane) memcpy(slots[lane].bytes, out[lane], 4 * static_cast<size_t>(matrices));
}

uint16_t half_from_float(float x) {
  const uint32_t bits = fs_float_as_uint(x), magnitude = bits & 0x7fffffffu;
  const uint16_t sign = static_cast<uint16_t>(bits >> 16 & 0x8000u);
  if (magnitude > 0x7f800000u) return sign | 0x7fffu;            // NaN
  if (magnitude >= 0x477ff000u) return sign | 0x7c00u;           // rounds to infinity
  if (magnitude < 0x33000001u) return sign;                      // at most half of the smallest subnormal
  if (magnitude < 0x38800000u) {                                 // subnormal: value in units of 2^-24, to nearest even
    const int shift = 126 - static_cast<int>(magnitude >> 23);
    const uint32_t mantissa = (magnitude & 0x7fffffu) | 0x800000u;
    const uint32_t rest = mantissa & ((1u << shift) - 1), half = 1u << (shift - 1);
    uint32_t value = mantissa >> shift;
    value += rest > half || (rest == half && (value & 1));
    return static_cast<uint16_t>(sign | value);
  }
  const uint32_t rounded = magnitude + 0xfffu + (magnitude >> 13 & 1);
  return static_cast<uint16_t>(sign | ((rounded - 0x38000000u) >> 13));
}

float float_from_half(uint16_t h) {
  const uint32_t sign = static_cast<uint32_t>(h & 0x8000u) << 16, exponent = h >> 10 & 31u, mantissa = h & 0x3ffu;
  if (exponent == 31) return fs_uint_as_float(sign | 0x7f800000u | mantissa << 13);
  if (exponent == 0) {
    const float value = static_cast<float>(mantissa) * 5.9604644775390625e-8f;  // 2^-24
    return sign != 0 ? -value : value;
  }
  return fs_uint_as_float(sign | (exponent + 112) << 23 | mantissa << 13);
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
