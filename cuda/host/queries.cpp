// Entry points that hand out the weights themselves.
#include "queries.h"

#include "api.h"
#include "plan.h"

int fs_topk(const fs_call* call, int64_t k, int64_t* ids, float* weights) {
  return fs::guarded([&] {
    const int64_t pixels = call->width * call->height;
    for (int64_t camera = 0; camera < call->cameras; ++camera) {
      const fs::View view = fs::make_view(*call, camera, nullptr, nullptr);
      const Frame frame = view.frame();
      const int64_t at = camera * pixels * k;
      fs::for_tiles(view, [&](int64_t tile, Scratch& scratch) {
        FS_PICK(topk_tile)(frame, tile, k, ids + at, weights + at, scratch);
      });
    }
  });
}

int fs_weight_rows(const fs_call* call, int64_t camera, int64_t* indptr, void** plan) {
  return fs::guarded([&] {
    auto made = std::make_unique<fs::Plan>();
    made->views.push_back(fs::make_view(*call, camera, nullptr, nullptr));
    const Frame frame = made->views[0].frame();
    fs::for_tiles(made->views[0], [&](int64_t tile, Scratch& scratch) {
      FS_PICK(count_tile)(frame, tile, indptr + 1, scratch);
    });
    indptr[0] = 0;
    for (int64_t p = 0; p < call->width * call->height; ++p) indptr[p + 1] += indptr[p];
    *plan = made.release();
  });
}

int fs_weight_entries(void* plan, const int64_t* indptr, int64_t* indices, float* weights) {
  return fs::guarded([&] {
    const fs::View& view = static_cast<const fs::Plan*>(plan)->views[0];
    const Frame frame = view.frame();
    fs::for_tiles(view, [&](int64_t tile, Scratch& scratch) {
      FS_PICK(list_tile)(frame, tile, indptr, indices, weights, scratch);
    });
  });
}
