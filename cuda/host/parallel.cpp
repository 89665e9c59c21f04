#include "parallel.h"

#include <stdlib.h>

#include <atomic>
#include <condition_variable>
#include <exception>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "engine.h"
#include "isa.h"

#if defined(FS_X86)
#include <xmmintrin.h>
#endif
#if defined(__linux__)
#include <sched.h>
#endif
#if !defined(_WIN32)
#include <pthread.h>
#endif

namespace {

// Flushes denormals for its lifetime; the caller's floating-point state comes back on exit.
class FlushDenormals {
 public:
#if defined(FS_X86)
  FlushDenormals() : saved_(_mm_getcsr()) { _mm_setcsr(saved_ | 0x8040); }
  ~FlushDenormals() { _mm_setcsr(saved_); }

 private:
  unsigned saved_;
#elif defined(__aarch64__)
  FlushDenormals() {
    asm volatile("mrs %0, fpcr" : "=r"(saved_));
    asm volatile("msr fpcr, %0" ::"r"(saved_ | (1ull << 24)));
  }
  ~FlushDenormals() { asm volatile("msr fpcr, %0" ::"r"(saved_)); }

 private:
  uint64_t saved_;
#else
  FlushDenormals() {}
#endif
};

inline void pause_briefly() {
#if defined(FS_X86)
  _mm_pause();
#elif defined(__aarch64__) && !defined(_MSC_VER)
  asm volatile("yield");
#endif
}

// Sleeping and waking costs tens of microseconds, as long as some stages take: poll for about that long first.
template <class Ready>
bool poll(Ready ready) {
  for (int i = 0; i < 600; ++i) {
    if (ready()) return true;
    pause_briefly();
  }
  return false;
}

thread_local bool inside = false;

struct Job {
  int64_t items = 0;
  void (*task)(void*, int64_t, int) = nullptr;
  void* context = nullptr;
  int helpers = 0;
};

class Pool {
 public:
  explicit Pool(int size) {
    for (int i = 1; i < size; ++i) workers_.emplace_back([this, i] { serve(i); });
  }

  ~Pool() {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      quit_ = true;
    }
    wake_.notify_all();
    for (auto& worker : workers_) worker.join();
  }

  int size() const { return static_cast<int>(workers_.size()) + 1; }

  void run(const Job& job) {
    std::lock_guard<std::mutex> one_caller(run_mutex_);
    {
      std::lock_guard<std::mutex> lock(mutex_);
      job_ = job;
      job_.helpers = static_cast<int>(job.items - 1 < size() - 1 ? job.items - 1 : size() - 1);
      next_.store(0);
      failure_ = nullptr;
      pending_.store(job_.helpers);
      epoch_.fetch_add(1);
    }
    if (job_.helpers) wake_.notify_all();
    work(0);
    if (!poll([this] { return pending_.load() == 0; })) {
      std::unique_lock<std::mutex> lock(mutex_);
      done_.wait(lock, [this] { return pending_.load() == 0; });
    }
    if (failure_) std::rethrow_exception(failure_);
  }

 private:
  void work(int index) {
    inside = true;
    FlushDenormals guard;
    for (int64_t item; (item = next_.fetch_add(1)) < job_.items;) {
      try {
        job_.task(job_.context, item, index);
      } catch (...) {
        std::lock_guard<std::mutex> lock(mutex_);
        if (!failure_) failure_ = std::current_exception();
        next_.store(job_.items);
      }
    }
    inside = false;
  }

  void serve(int index) {
    uint64_t seen = 0;
    while (true) {
      poll([&] { return epoch_.load() != seen; });
      {
        std::unique_lock<std::mutex> lock(mutex_);
        wake_.wait(lock, [&] { return quit_ || epoch_.load() != seen; });
        if (quit_) return;
        seen = epoch_.load();
        if (index > job_.helpers) continue;
      }
      work(index);
      if (pending_.fetch_sub(1) == 1) {
        std::lock_guard<std::mutex> lock(mutex_);
        done_.notify_one();
      }
    }
  }

  std::mutex run_mutex_, mutex_;
  std::condition_variable wake_, done_;
  std::vector<std::thread> workers_;
  Job job_;
  std::atomic<int64_t> next_{0};
  std::atomic<int> pending_{0};
  std::atomic<uint64_t> epoch_{0};
  std::exception_ptr failure_;
  bool quit_ = false;
};

int default_size() {
  if (const char* text = getenv("FEATURESPLAT_NUM_THREADS")) {
    const int n = atoi(text);
    if (n >= 1) return n < 1024 ? n : 1024;
  }
#if defined(__linux__)
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0 && CPU_COUNT(&set) > 0) return CPU_COUNT(&set);
#endif
  const unsigned n = std::thread::hardware_concurrency();
  return n ? static_cast<int>(n) : 1;
}

std::mutex create_mutex;
// Never destroyed at exit: joining threads while a library unloads can hang.
std::shared_ptr<Pool>* pool = new std::shared_ptr<Pool>;
int wanted_size = 0;

#if !defined(_WIN32)
// A child process has only the thread that forked: forget the parent's pool (its threads are gone) and start anew.
void before_fork() { create_mutex.lock(); }
void after_fork_parent() { create_mutex.unlock(); }
void after_fork_child() {
  pool = new std::shared_ptr<Pool>;  // the old one is left behind: it cannot be joined
  inside = false;
  create_mutex.unlock();
}
#endif

std::shared_ptr<Pool> the_pool() {
  std::lock_guard<std::mutex> lock(create_mutex);
#if !defined(_WIN32)
  static const int registered = pthread_atfork(before_fork, after_fork_parent, after_fork_child);
  (void)registered;
#endif
  if (!wanted_size) wanted_size = default_size();
  if (!*pool) *pool = std::make_shared<Pool>(wanted_size);
  return *pool;
}

}  // namespace

int fs::threads() {
  std::lock_guard<std::mutex> lock(create_mutex);
  if (!wanted_size) wanted_size = default_size();
  return wanted_size;
}

void fs::parallel(int64_t items, void (*task)(void*, int64_t, int), void* context) {
  if (items <= 0) return;
  if (inside) {
    // The index of the running worker is not known here, and a nested item may use its scratch: only the outermost
    // level is spread over threads, and engine code never nests where it uses the worker index.
    for (int64_t i = 0; i < items; ++i) task(context, i, 0);
    return;
  }
  the_pool()->run({items, task, context, 0});
}

int fs_threads(void) { return fs::threads(); }

int fs_set_threads(int n) {
  if (n < 1 || n > 1024 || inside) return 1;
  std::shared_ptr<Pool> old;  // ends with the last call that still runs on it
  {
    std::lock_guard<std::mutex> lock(create_mutex);
    if (n == wanted_size) return 0;
    wanted_size = n;
    old.swap(*pool);
  }
  return 0;
}
