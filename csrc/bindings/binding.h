// What every binding of CPU kernels needs: each is a file that has its arguments checked, cuts the work of one kernel
// into ranges for torch's threads, and declares the operator to torch.
#pragma once

#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <tuple>

#include "elements.h"
#include "half.h"
#include "kernels.h"

constexpr int64_t kGrain = 16384;  // elements a thread should at least get

inline int64_t rows_grain(int64_t width) { return std::max<int64_t>(1, kGrain / std::max<int64_t>(1, width)); }

template <>
struct Stored<at::BFloat16> {
  using type = trimaran::BFloat16;
};
template <>
struct Stored<at::Half> {
  using type = trimaran::Half;
};
