// Small kernels that show what the emulation can do, and that break in a chosen way to show what it sees.
#include "launch.h"

using namespace trimaran;

namespace {

enum Bug : int64_t {
  kNone,
  kNoBarrierAfterWrite,
  kNoBarrierBeforeReuse,
  kHalfAtBarrier,
  kHalfExits,
  kTwoBarriers,
  kOutside,
  kBefore,
  kNoWarpBarrier,
  kAllWrite,
  kLaneMissing,
  kNotInMask,
  kPastEnd,
};

// y[r] = sum of row r of x, by shuffles within warps and shared memory between them. Any number of threads.
__global__ void sum_rows(Bug bug, const float* x, float* y, int64_t rows, int64_t width) {
  TRIMARAN_SHARED(float, partial, 32);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, warps = (blockDim.x + 31) / 32;
  const int lanes = min(32, static_cast<int>(blockDim.x) - warp * 32);
  const unsigned mask = __ballot_sync(0xffffffffu, 1);
  for (int64_t row = blockIdx.x; row < rows; row += gridDim.x) {
    float sum = 0;
    for (int64_t i = threadIdx.x; i < width + (bug == kPastEnd); i += blockDim.x) sum += x[row * width + i];
    for (int distance = 16; distance > 0; distance /= 2) {
      if (bug == kLaneMissing && lane == 7) continue;
      const unsigned others = bug == kNotInMask ? mask & ~128u : mask;
      const float other = __shfl_down_sync(others, sum, distance);
      if (lane + distance < lanes) sum += other;
    }
    if (lane == 0) partial[bug == kOutside ? warp + 32 : bug == kBefore ? warp - 1 : warp] = sum;
    if (bug == kAllWrite) partial[31] = sum;
    if (bug == kHalfExits && threadIdx.x % 2 == 1) return;
    if (bug == kTwoBarriers && threadIdx.x % 2 == 1) {
      __syncthreads();
    } else if (bug != kNoBarrierAfterWrite && (bug != kHalfAtBarrier || threadIdx.x % 2 == 0)) {
      __syncthreads();
    }
    if (threadIdx.x == 0) {
      sum = 0;
      for (int other = 0; other < warps; ++other) sum += partial[other];
      y[row] = sum;
    }
    if (bug != kNoBarrierBeforeReuse) __syncthreads();
  }
}

// y[b] = sum of the block's blockDim.x numbers: halves are added in shared memory, the last ones by a single warp.
__global__ void sum_by_halves(Bug bug, const double* x, double* y) {
  TRIMARAN_SHARED(double, sums, 1024);
  const int at = threadIdx.x;
  sums[at] = x[blockIdx.x * blockDim.x + at];
  __syncthreads();
  int left = blockDim.x;
  for (; left > 32; left = (left + 1) / 2) {
    if (at < left / 2) sums[at] += sums[(left + 1) / 2 + at];
    __syncthreads();
  }
  if (at >= 32) return;
  for (; left > 1; left = (left + 1) / 2) {
    if (at < left / 2) sums[at] += sums[(left + 1) / 2 + at];
    if (bug != kNoWarpBarrier) __syncwarp();
  }
  if (at == 0) y[blockIdx.x] = sums[0];
}

// Adds up in global memory; `order` lists the threads as they came.
__global__ void count(const double* x, int64_t n, int* counter, float* single, double* sum, int* order) {
  for_each_index(n, [&](int64_t i) {
    order[atomicAdd(counter, 1)] = static_cast<int>(i);
    atomicAdd(single, static_cast<float>(x[i]));
    atomicAdd(sum, x[i]);
  });
}

// What the lanes of a warp tell each other: row k of `to` [12, 32] is the kth of these.
template <typename T>
__global__ void exchange(const T* from, T* to) {
  constexpr unsigned kAll = 0xffffffffu;
  const int lane = threadIdx.x;
  const T x = from[lane];
  int row = 0;
  const auto tell = [&](T value) { to[32 * row++ + lane] = value; };
  tell(__shfl_sync(kAll, x, 5));
  tell(__shfl_sync(kAll, x, lane + 1));
  tell(__shfl_sync(kAll, x, 9, 8));
  tell(__shfl_up_sync(kAll, x, 3));
  tell(__shfl_up_sync(kAll, x, 3, 8));
  tell(__shfl_down_sync(kAll, x, 3));
  tell(__shfl_down_sync(kAll, x, 3, 8));
  tell(__shfl_xor_sync(kAll, x, 5));
  tell(__shfl_xor_sync(kAll, x, 9, 8));
  const unsigned half = lane % 2 == 0 ? 0x55555555u : 0xaaaaaaaau;  // two meetings at once
  tell(static_cast<T>(__ballot_sync(half, lane < 4)));
  tell(static_cast<T>(__any_sync(half, lane == 4)));
  tell(static_cast<T>(__all_sync(half, lane % 2 == 0)));
}

// What shared memory holds before it is written, and after.
__global__ void leave_unwritten(float* reals, int* integers) {
  TRIMARAN_SHARED(float, real, 2);
  TRIMARAN_SHARED(int, integer, 2);
  reals[blockIdx.x] = real[1];
  integers[blockIdx.x] = integer[1];
  real[1] = real[1] * 0.0f;
  integer[1] = static_cast<int>(fmaxf(real[1], 7.0f)) + static_cast<int>(real[0]);
}

// Linear numbers of all threads of a grid of three dimensions.
__global__ void number(int* to) {
  const unsigned block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
  const unsigned thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
  const unsigned at = block * (blockDim.x * blockDim.y * blockDim.z) + thread;
  to[at] = static_cast<int>(at);
}

}  // namespace

extern "C" {
int sum_rows(Bug bug, const float* x, float* y, int64_t rows, int64_t width, int64_t blocks, int64_t threads) {
  return launch(sum_rows, dim3(blocks), dim3(threads), nullptr, bug, x, y, rows, width);
}
}
