// The weights themselves, pixel by pixel.
#pragma once
#include "isa.h"
#include "splat.h"

// The k greatest weights of each pixel of a tile, greatest first, the nearer one first among equals; -1 and 0 where
// there are fewer. ids and weights are [H, W, k].
FS_DECLARE(void, topk_tile,
           (const Frame& f, int64_t tile, int64_t k, int64_t* ids, float* weights, Scratch& scratch))

// How many weights each pixel of a tile has, [H, W].
FS_DECLARE(void, count_tile, (const Frame& f, int64_t tile, int64_t* counts, Scratch& scratch))

// Pixel p's weights and Gaussians, near to far, from starts[p] on.
FS_DECLARE(void, list_tile,
           (const Frame& f, int64_t tile, const int64_t* starts, int64_t* ids, float* weights, Scratch& scratch))
