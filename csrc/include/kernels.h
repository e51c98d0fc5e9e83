// CPU kernels over a range of rows or elements. They know nothing of torch or of threads: the binding cuts the work
// into ranges. Each takes float and double, most take 16-bit numbers too (half.h); row-major, contiguous unless strides
// are given.
#pragma once

#include <cstdint>

// One binary holds a version of each kernel for AVX-512, AVX2 and plain x86-64; the loader picks. Other
// architectures compile the plain loops with their own vector width.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define TRIMARAN_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define TRIMARAN_CLONES
#endif
#define TRIMARAN_INLINE static inline __attribute__((always_inline))
