#include "memory.h"

#include <stdlib.h>
#include <string.h>

#include <algorithm>
#include <mutex>
#include <new>
#include <vector>

#include "parallel.h"

#if defined(_WIN32)
#include <malloc.h>
#else
#include <pthread.h>
#endif
#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace {

struct Block {
  void* data;
  size_t capacity;
};

constexpr size_t kKeep = size_t{768} << 20;
std::mutex mutex;
std::vector<Block>* blocks = nullptr;
size_t kept = 0;

#if !defined(_WIN32)
void lock() { mutex.lock(); }
void unlock() { mutex.unlock(); }
#endif

std::vector<Block>& the_blocks() {
#if !defined(_WIN32)
  static const int registered = pthread_atfork(lock, unlock, unlock);
  (void)registered;
#endif
  if (!blocks) blocks = new std::vector<Block>;
  return *blocks;
}

void* from_system(size_t bytes) {
#if defined(_WIN32)
  return _aligned_malloc(bytes, 64);
#else
  const bool large = bytes >= (size_t{4} << 20);
  void* p = nullptr;
  if (posix_memalign(&p, large ? size_t{2} << 20 : 64, bytes)) return nullptr;
#if defined(__linux__)
  if (large) madvise(p, bytes, MADV_HUGEPAGE);
#endif
  return p;
#endif
}

void to_system(void* p) {
#if defined(_WIN32)
  _aligned_free(p);
#else
  free(p);
#endif
}

}  // namespace

void* fs::acquire(size_t bytes, size_t* capacity) {
  {
    std::lock_guard<std::mutex> guard(mutex);
    auto& list = the_blocks();
    size_t best = list.size();
    for (size_t i = 0; i < list.size(); ++i) {
      const size_t c = list[i].capacity;
      if (c >= bytes && c <= 2 * bytes + 65536 && (best == list.size() || c < list[best].capacity)) best = i;
    }
    if (best < list.size()) {
      void* p = list[best].data;
      *capacity = list[best].capacity;
      kept -= *capacity;
      list[best] = list.back();
      list.pop_back();
      return p;
    }
  }
  // Room to spare, so that a slightly larger next call finds it again.
  const size_t unit = bytes < 65536 ? 4096 : size_t{1} << 20;
  const size_t want = bytes > SIZE_MAX / 2 ? bytes : (bytes + bytes / 8 + unit - 1) / unit * unit;
  void* p = from_system(want);
  if (!p) {
    kept_bytes(true);
    p = from_system(want);
  }
  if (!p) throw std::bad_alloc();
  *capacity = want;
  return p;
}

void fs::give_back(void* block, size_t capacity) {
  {
    std::lock_guard<std::mutex> guard(mutex);
    if (kept + capacity <= kKeep && the_blocks().size() < 512) {
      the_blocks().push_back({block, capacity});
      kept += capacity;
      return;
    }
  }
  to_system(block);
}

int64_t fs::kept_bytes(bool release) {
  std::lock_guard<std::mutex> guard(mutex);
  if (release) {
    for (const Block& block : the_blocks()) to_system(block.data);
    the_blocks().clear();
    kept = 0;
  }
  return static_cast<int64_t>(kept);
}

void fs::prefer_large_pages(void* data, int64_t bytes) {
#if defined(__linux__)
  // Smaller ones come back from malloc with their pages in place.
  if (bytes < (int64_t{32} << 20)) return;
  constexpr uintptr_t kPage = uintptr_t{2} << 20;
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(data) + kPage - 1) & ~(kPage - 1);
  const uintptr_t end = (reinterpret_cast<uintptr_t>(data) + static_cast<uintptr_t>(bytes)) & ~(kPage - 1);
  if (data && end > begin) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#else
  (void)data, (void)bytes;
#endif
}

void fs::zero(void* data, int64_t bytes) {
  if (!data) return;
  constexpr int64_t kStep = int64_t{2} << 20;
  prefer_large_pages(data, bytes);
  auto clear = [&](int64_t i, int) {
    memset(static_cast<char*>(data) + i * kStep, 0, static_cast<size_t>(std::min(kStep, bytes - i * kStep)));
  };
  parallel((bytes + kStep - 1) / kStep, clear);
}
