// What the emulator remembers of the block that runs: its threads, its warps, and who waits for what.
#pragma once
#include <mutex>
#include <string>
#include <vector>

#include "fibers.h"
#include "shim.h"

namespace fs_shim {
namespace {

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

}  // namespace
}  // namespace fs_shim
