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
  const int after = static_cast<int>(blockDim.x) - warp * 32, lanes = after < 32 ? after : 32;
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

// Lanes below `stay` add up two lanes' numbers; the others leave, before or after those have come to the shuffle.
__global__ void leave_early(const float* from, float* to, int stay) {
  const int lane = threadIdx.x;
  if (lane < stay) to[lane] = from[lane] + __shfl_down_sync(0xffffffffu, from[lane], 5);
}

enum Sync : int64_t { kNothing, kShuffle, kEarlier, kWarp, kHalves, kChain, kBlock };

// Two threads touch the same element, with something between that may order them.
__global__ void touch_twice(Sync sync, int first, bool first_writes, int second, bool second_writes, float* to) {
  TRIMARAN_SHARED(float, element, 1);
  const int at = threadIdx.x;
  const auto touch = [&](bool writes) {
    if (writes) {
      element[0] = 1;
    } else {
      to[at] = element[0];
    }
  };
  if (sync == kEarlier) __syncwarp();
  if (at == first) touch(first_writes);
  if (sync == kWarp) __syncwarp();
  if (sync == kHalves) __syncwarp(at % 2 == 0 ? 0x55555555u : 0xaaaaaaaau);
  if (sync == kChain && at < 2) __syncwarp(0b011);
  if (sync == kChain && (at == 1 || at == 2)) __syncwarp(0b110);
  if (sync == kBlock) __syncthreads();
  if (sync != kNothing) __shfl_sync(0xffffffffu, 0, 0);  // later in a warp, which alone orders nothing
  if (at == second) touch(second_writes);
}

// What a block finds in shared memory before it writes there.
__global__ void find_unwritten(float* reals, int* integers) {
  TRIMARAN_SHARED(float, real, 2);
  TRIMARAN_SHARED(int, integer, 2);
  reals[blockIdx.x] = real[1];
  integers[blockIdx.x] = integer[1];
  real[1] = 1.0f;
  integer[1] = 1;
}

// y = 6 x, for ways to write down shared elements that must mean what they mean for a plain array.
__global__ void use_elements(const float* x, float* y) {
  TRIMARAN_SHARED(float, element, 64);
  const unsigned i = threadIdx.x;
  element[i] = x[i];
  element[i + 32u] = element[i];
  element[i + 32u] *= 3;
  element[i] += element[static_cast<int64_t>(i)];
  const float twice = i < 100 ? element[i] : 0.0f;
  double sum = static_cast<double>(element[i]) + 0 * element[i + 32];
  sum += fmaxf(element[i + 32], -INFINITY) - element[i + 32] * 1.0f;
  y[i] = i % 2 == 0 ? twice + element[i] + static_cast<float>(sum) : 2.0f * element[i + 32];
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
int sum_by_halves(Bug bug, const double* x, double* y, int64_t blocks, int64_t threads) {
  return launch(sum_by_halves, dim3(blocks), dim3(threads), nullptr, bug, x, y);
}
int count(const double* x, int64_t n, int* counter, float* single, double* sum, int* order) {
  return launch(count, n, nullptr, x, n, counter, single, sum, order);
}
int exchange_float32(const float* from, float* to) { return launch(exchange<float>, 1, 32, nullptr, from, to); }
int exchange_float64(const double* from, double* to) { return launch(exchange<double>, 1, 32, nullptr, from, to); }
int exchange_int32(const int* from, int* to) { return launch(exchange<int>, 1, 32, nullptr, from, to); }
int exchange_uint32(const unsigned* from, unsigned* to) {
  return launch(exchange<unsigned>, 1, 32, nullptr, from, to);
}
int exchange_int64(const int64_t* from, int64_t* to) { return launch(exchange<int64_t>, 1, 32, nullptr, from, to); }
int leave_early(const float* from, float* to, int64_t stay) {
  return launch(leave_early, 1, 32, nullptr, from, to, static_cast<int>(stay));
}
int touch_twice(Sync sync, int64_t first, int64_t first_writes, int64_t second, int64_t second_writes, float* to) {
  return launch(touch_twice, 1, 64, nullptr, sync, static_cast<int>(first), first_writes != 0,
                static_cast<int>(second), second_writes != 0, to);
}
int find_unwritten(float* reals, int* integers, int64_t blocks) {
  return launch(find_unwritten, dim3(blocks), 1, nullptr, reals, integers);
}
int use_elements(const float* x, float* y) { return launch(use_elements, 1, 32, nullptr, x, y); }
int number(int* to, const int64_t* sizes) {
  return launch(number, dim3(sizes[0], sizes[1], sizes[2]), dim3(sizes[3], sizes[4], sizes[5]), nullptr, to);
}
}
