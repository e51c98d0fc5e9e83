// The part of CUDA that the kernels of csrc/cuda/ use, for a plain C++ compiler: tests execute the very sources that
// nvcc compiles for a GPU, and hear of races in shared memory, accesses outside of it and barriers that not all threads
// reach. One launch runs at a time, one thread at a time, so races on global memory stay hidden, and so does all that
// depends on time.
//
// Compile with -std=c++20 -fno-strict-aliasing -ffp-contract=off -fno-gnu-unique, and with the CUDA toolkit's headers.
#pragma once

#include <cuda_runtime.h>

#include <cmath>

#include "meeting.h"
#include "shared_array.h"

#define __launch_bounds__(...)
#undef __shared__
#define __shared__ _Pragma("GCC error \"say TRIMARAN_SHARED, whose races can be seen\"")
#define TRIMARAN_SHARED(T, name, N) static ::trimaran::emulation::SharedArray<T, (N)> name(#name)

constexpr int warpSize = trimaran::emulation::kLanesOfWarp;

extern "C" {
// What went wrong in the last launch that returned cudaErrorUnknown, or "". The text lives until the next call.
__attribute__((used)) inline const char* trimaran_emulation_error() {
  return trimaran::emulation::machine.take_message();
}

// Launches after this one take their blocks and threads in an order that depends on `seed` alone.
__attribute__((used)) inline void trimaran_emulation_seed(uint64_t seed) { trimaran::emulation::machine.seed(seed); }
}

namespace trimaran::emulation {

template <typename T>
T shuffle(unsigned mask, T value, int source, const Site& site) {
  static_assert(std::is_arithmetic_v<T> && (sizeof(T) == 4 || sizeof(T) == 8), "a type that CUDA can shuffle");
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  bits = machine.meet(Meeting::kShuffle, mask, bits, source, site);
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// The lane itself if `source` is not in its part of the warp, which is `width` lanes wide.
inline int within(int source, int first, int last) {
  const int lane = machine.thread().lane;
  return source >= first && source <= last ? source : lane;
}

inline cudaError_t run(dim3 grid, dim3 block, void (*body)(void*), void* context) {
  const uint64_t threads = static_cast<uint64_t>(block.x) * block.y * block.z;
  const bool fits = grid.x >= 1 && grid.y >= 1 && grid.z >= 1 && threads >= 1 && threads <= 1024 && block.z <= 64 &&
                    grid.x <= 0x7fffffff && grid.y <= 0xffff && grid.z <= 0xffff;
  if (!fits) return cudaErrorInvalidConfiguration;
  return machine.run(grid, block, body, context) ? cudaSuccess : cudaErrorUnknown;
}

}  // namespace trimaran::emulation

// Site arguments are never given: they are the line of the call.
using TrimaranSite = trimaran::emulation::Site;

inline void __syncthreads(const TrimaranSite& site = TrimaranSite::current()) {
  trimaran::emulation::machine.block_barrier(site);
}

inline void __syncwarp(unsigned mask = 0xffffffffu, const TrimaranSite& site = TrimaranSite::current()) {
  trimaran::emulation::machine.meet(trimaran::emulation::Meeting::kSync, mask, 0, 0, site);
}

inline unsigned __ballot_sync(unsigned mask, int vote, const TrimaranSite& site = TrimaranSite::current()) {
  return static_cast<unsigned>(
      trimaran::emulation::machine.meet(trimaran::emulation::Meeting::kVote, mask, vote != 0, 0, site));
}

inline int __any_sync(unsigned mask, int vote, const TrimaranSite& site = TrimaranSite::current()) {
  return __ballot_sync(mask, vote, site) != 0;
}

inline int __all_sync(unsigned mask, int vote, const TrimaranSite& site = TrimaranSite::current()) {
  return __ballot_sync(mask, vote == 0, site) == 0;
}

template <typename T>
T __shfl_sync(unsigned mask, T value, int source, int width = warpSize,
              const TrimaranSite& site = TrimaranSite::current()) {
  const int first = trimaran::emulation::machine.thread().lane & -width;
  return trimaran::emulation::shuffle(mask, value, first + (source & (width - 1)), site);
}

template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned distance, int width = warpSize,
                 const TrimaranSite& site = TrimaranSite::current()) {
  const int lane = trimaran::emulation::machine.thread().lane, first = lane & -width;
  const int source = trimaran::emulation::within(lane - static_cast<int>(distance), first, lane);
  return trimaran::emulation::shuffle(mask, value, source, site);
}

template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned distance, int width = warpSize,
                   const TrimaranSite& site = TrimaranSite::current()) {
  const int lane = trimaran::emulation::machine.thread().lane, last = lane | (width - 1);
  const int source = trimaran::emulation::within(lane + static_cast<int>(distance), lane, last);
  return trimaran::emulation::shuffle(mask, value, source, site);
}

// Earlier parts of the warp may be read, later ones may not.
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = warpSize,
                  const TrimaranSite& site = TrimaranSite::current()) {
  const int lane = trimaran::emulation::machine.thread().lane;
  const int source = trimaran::emulation::within(lane ^ lanes, 0, lane | (width - 1));
  return trimaran::emulation::shuffle(mask, value, source, site);
}

// In global memory; one thread runs at a time.
template <typename T>
  requires(std::same_as<T, float> || std::same_as<T, double> || std::same_as<T, int>)
T atomicAdd(T* to, std::type_identity_t<T> value) {
  return std::exchange(*to, *to + value);
}
