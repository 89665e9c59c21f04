// Entry points of rendering, forward.
#include <string.h>

#include "api.h"
#include "forward.h"
#include "plan.h"

namespace fs {

std::string& last_error() {
  thread_local std::string text;
  return text;
}

namespace {

Meta meta_of(const fs_call& call, const fs_images& out, int64_t camera) {
  const int64_t n = call.gaussians * camera;
  return {out.means2d + 2 * n, out.radii + 2 * n, out.depths + n, out.conics + 3 * n};
}

// Blends one camera's view; true when a feature that is not finite came up (its Gaussian is then in `unhealthy`).
bool blend(const fs_call& call, const fs_images& out, int64_t camera, const View& view, Array<uint8_t>& unhealthy) {
  Timer timer(kBlend);
  const Frame frame = view.frame();
  const int64_t at = camera * call.width * call.height;
  Images images = {};
  images.rgb = out.rgb ? out.rgb + 3 * at : nullptr;
  images.alpha = out.alpha + at, images.depth = out.depth + at;
  images.features = out.features ? out.features + call.dim * at : nullptr;
  images.feature_rows = call.features, images.dim = call.dim;
  images.unhealthy = unhealthy.get();
  for (int k = 0; k < 3; ++k) images.background[k] = call.backgrounds ? call.backgrounds[3 * camera + k] : 0.f;
  for_tiles(view, [&](int64_t tile, Scratch& scratch) { FS_PICK(blend_tile)(frame, tile, images, scratch); });
  if (!unhealthy) return false;
  return memchr(unhealthy.get(), 1, static_cast<size_t>(call.gaussians)) != nullptr;
}

}  // namespace
}  // namespace fs

const char* fs_error(void) { return fs::last_error().c_str(); }

int64_t fs_memory(int32_t release) { return fs::kept_bytes(release != 0); }

int fs_render(const fs_call* call, const fs_images* out, void** plan) {
  return fs::guarded([&] {
    fs::clear_timings(false);
    auto made = std::make_unique<fs::Plan>();
    const bool features = call->features && call->dim > 0;
    if (features) {
      made->unhealthy.reset(call->gaussians);
      memset(made->unhealthy.get(), 0, static_cast<size_t>(call->gaussians));
    }
    const int64_t n = call->gaussians, pixels = call->cameras * call->width * call->height;
    fs::prefer_large_pages(out->rgb, 12 * pixels);
    fs::prefer_large_pages(out->features, 4 * call->dim * pixels);
    for (int64_t camera = 0; camera < call->cameras; ++camera) {
      const Meta meta = fs::meta_of(*call, *out, camera);
      // Features are looked at where they are used. Should one not be finite, the camera starts anew without those.
      const uint8_t* excluded = nullptr;
      while (true) {
        fs::View view = fs::make_view(*call, camera, &meta, excluded);
        const bool found = fs::blend(*call, *out, camera, view, made->unhealthy);
        if (!found || excluded) {
          if (plan) made->views.push_back(std::move(view));
          break;
        }
        for (int64_t i = 0; i < n; ++i) {
          for (int64_t c = 0; c < call->dim && !made->unhealthy[i]; ++c)
            made->unhealthy[i] = !(call->features[i * call->dim + c] * 0.f == 0.f);
        }
        excluded = made->unhealthy.get();
      }
    }
    made->unhealthy.clear();
    if (plan) *plan = made.release();
  });
}

void fs_free(void* plan) { delete static_cast<fs::Plan*>(plan); }
