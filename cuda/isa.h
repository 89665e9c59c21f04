// Compiling one source for several instruction sets, and choosing one at run time.
//
// A file cuda/NAME.cpp is compiled once per instruction set with FS_ISA naming the namespace its code must live in.
// Everything in it is inside `namespace FS_ISA { }` or `static`: an inline function shared between two such objects
// could be merged by the linker and run wide instructions on a processor that lacks them. For the same reason these
// files use no templates or inline functions of the standard library (std::min, std::vector, ...).
//
//   NAME.h     FS_DECLARE(void, blur, (const float* in, float* out, int64_t n))     the same in every variant
//   NAME.cpp   namespace FS_ISA { void blur(const float* in, ...) { ... } }
//              #ifdef FS_ENTRY                                                      compiled once, baseline code
//              extern "C" FS_API int fs_blur(...) { FS_PICK(blur)(in, out, n); return 0; }
//              #endif
#pragma once
#include <stdint.h>

#if defined(_WIN32)
#define FS_API __declspec(dllexport)
#else
#define FS_API __attribute__((visibility("default")))
#endif

#if defined(__x86_64__) || defined(_M_X64)
#define FS_X86 1
#define FS_DECLARE(ret, name, args) \
  namespace isa_baseline { ret name args; } \
  namespace isa_avx2 { ret name args; } \
  namespace isa_avx512 { ret name args; }
#define FS_PICK(name) fs::pick(&isa_baseline::name, &isa_avx2::name, &isa_avx512::name)
#elif defined(__aarch64__) || defined(_M_ARM64)
#define FS_DECLARE(ret, name, args) namespace isa_neon { ret name args; }
#define FS_PICK(name) (&isa_neon::name)
#else
#define FS_DECLARE(ret, name, args) namespace isa_baseline { ret name args; }
#define FS_PICK(name) (&isa_baseline::name)
#endif

namespace fs {

// 0 baseline (or the only one), 1 AVX2 + FMA, 2 AVX-512 F/BW/DQ/VL. Read once from cpuid and FEATURESPLAT_ISA.
int isa_level();

template <class F>
static inline F pick(F baseline, F avx2, F avx512) {
  const int level = isa_level();
  return level == 2 ? avx512 : level == 1 ? avx2 : baseline;
}

}  // namespace fs
