#include "isa.h"

#include <stdlib.h>
#include <string.h>

#include <atomic>

#include "engine.h"

#if defined(FS_X86) && defined(_MSC_VER)
#include <intrin.h>
#endif

namespace {

int supported() {
#if !defined(FS_X86)
  return 0;
#elif defined(_MSC_VER)
  int r[4];
  __cpuidex(r, 7, 0);
  const bool os_ymm = (_xgetbv(0) & 6) == 6, os_zmm = (_xgetbv(0) & 0xe6) == 0xe6;
  int l[4];
  __cpuidex(l, 1, 0);
  const bool avx2 = os_ymm && (r[1] >> 5 & 1) && (l[2] >> 12 & 1) && (r[1] >> 3 & 1) && (r[1] >> 8 & 1);
  const bool avx512 = os_zmm && (r[1] >> 16 & 1) && (r[1] >> 17 & 1) && (r[1] >> 30 & 1) && (r[1] >> 31 & 1);
  return avx2 ? (avx512 ? 2 : 1) : 0;
#else
  __builtin_cpu_init();
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") || !__builtin_cpu_supports("bmi") ||
      !__builtin_cpu_supports("bmi2"))
    return 0;
  const bool wide = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                    __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  return wide ? 2 : 1;
#endif
}

#if defined(FS_X86)
const char* const kNames[] = {"baseline", "avx2", "avx512"};
#elif defined(__aarch64__) || defined(_M_ARM64)
const char* const kNames[] = {"neon", "neon", "neon"};
#else
const char* const kNames[] = {"baseline", "baseline", "baseline"};
#endif

int from_environment() {
  const int most = supported();
  const char* wanted = getenv("FEATURESPLAT_ISA");
  for (int level = 0; wanted && level <= most; ++level)
    if (!strcmp(wanted, kNames[level])) return level;
  return most;
}

std::atomic<int> current{-1};

}  // namespace

int fs::isa_level() {
  int level = current.load(std::memory_order_relaxed);
  if (level < 0) current.store(level = from_environment(), std::memory_order_relaxed);
  return level;
}

const char* fs_isa(void) { return kNames[fs::isa_level()]; }

int fs_set_isa(const char* name) {
  for (int level = 0; level <= supported(); ++level)
    if (!strcmp(name, kNames[level])) {
      current.store(level, std::memory_order_relaxed);
      return 0;
    }
  return 1;
}
