// The whole native surface of the rasterizer: plain C, opened by ctypes (featuresplat/raster/_native.py, cpu.py).
// Functions that can fail return 0 on success; otherwise fs_error() tells, per thread, what went wrong.
// Arrays are float32, contiguous, in the shapes of featuresplat.raster.rasterize; null where nothing is asked for.
#pragma once
#include <stdint.h>

#include "isa.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct {
  int64_t gaussians, cameras, width, height, dim;
  const float *means, *quats, *scales, *opacities, *colors, *features, *viewmats, *Ks, *backgrounds;
  int64_t camera_colors;  // floats from one camera's colours to the next; 0 when cameras share them
  int32_t color_kind;     // 0 none, 1 plain [N, 3], 2 spherical harmonics [N, sh_rows, 3]
  int32_t sh_degree, sh_rows, antialiased;
  double near, far, eps2d, extent, alpha_max, alpha_min, transmittance_min;
} fs_call;

typedef struct {
  float *rgb, *features, *alpha, *depth;  // [C, H, W, ...]
  float* means2d;                         // [C, N, 2]
  int32_t* radii;                         // [C, N, 2]
  float *depths, *conics;                 // [C, N], [C, N, 3]
} fs_images;

// Incoming gradients of the images, and where the outgoing ones go (overwritten, summed over cameras).
typedef struct {
  const float *rgb, *features, *alpha, *depth;
  float *means, *quats, *scales, *opacities, *colors, *feature_rows, *backgrounds, *viewmats;
  float *means2d, *means2d_abs;      // [C, N, 2]
  int32_t features_move_geometry;    // 0: the features' gradient stops at the features
} fs_gradients;

FS_API const char* fs_error(void);
FS_API const char* fs_isa(void);          // "baseline", "avx2", "avx512" or "neon"
FS_API int fs_set_isa(const char* name);  // 1 when this processor lacks it
FS_API int fs_threads(void);
FS_API int fs_set_threads(int n);  // 1 when n is not in 1..1024

// Renders. When plan is not null it receives what fs_backward needs; give it back with fs_free.
FS_API int fs_render(const fs_call* call, const fs_images* out, void** plan);
FS_API int fs_backward(void* plan, const fs_call* call, const fs_images* rendered, const fs_gradients* gradients);
FS_API void fs_free(void* plan);

// sums [N, dim] and weights [N]; maps [C, H, W, dim].
FS_API int fs_lift(const fs_call* call, const float* maps, int64_t dim, int32_t power, float* sums, float* weights);
// ids [C, H, W, k], weights [C, H, W, k].
FS_API int fs_topk(const fs_call* call, int64_t k, int64_t* ids, float* weights);
// sums, maxima, pixels [C, N].
FS_API int fs_contributions(const fs_call* call, float* sums, float* maxima, int64_t* pixels);
// Of one camera: the row pointers [H * W + 1], then, given the plan, the columns and weights.
FS_API int fs_weight_rows(const fs_call* call, int64_t camera, int64_t* indptr, void** plan);
FS_API int fs_weight_entries(void* plan, const int64_t* indptr, int64_t* indices, float* weights);

// Milliseconds of this process' last render (project, sort, bin, blend) and backward (tiles, gather, project).
FS_API void fs_timings(double milliseconds[7]);
// Bytes of memory the engine keeps for its next calls; gives them back to the system when release is not 0.
FS_API int64_t fs_memory(int32_t release);

#ifdef __cplusplus
}
#endif
