// The engine's threads. Not OpenMP: its idle threads spin, and on a loaded machine that costs more than it gives.
#pragma once
#include <stdint.h>

namespace fs {

// Runs task(context, item, worker) for every item of [0, items), handed out in order to whoever is free; returns when
// all are done. worker is in [0, threads()). Denormals are flushed to zero inside. Calls from several threads queue
// up; a call from inside a task runs its items on the spot. Rethrows the first exception of a task.
void parallel(int64_t items, void (*task)(void* context, int64_t item, int worker), void* context);

int threads();

template <class F>
static inline void parallel(int64_t items, F& f) {
  parallel(items, [](void* context, int64_t item, int worker) { (*static_cast<F*>(context))(item, worker); }, &f);
}

}  // namespace fs
