// CPU kernels over a range of rows or elements. They know nothing of torch or of threads: the binding cuts the work
// into ranges. Each takes float and double; row-major, contiguous unless strides are given.
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

namespace trimaran {

// Rotate the heads of tokens [begin, end): token t at x + t * stride_token, head n at + n * stride_head; y is
// contiguous [tokens, heads, d]. cos and sin [., d/2] are row t (row t % period when positions repeat).
void rope(const float* x, const float* cos, const float* sin, float* y, int64_t begin, int64_t end, int64_t heads,
          int64_t d, int64_t stride_token, int64_t stride_head, int64_t period);
void rope(const double* x, const float* cos, const float* sin, double* y, int64_t begin, int64_t end, int64_t heads,
          int64_t d, int64_t stride_token, int64_t stride_head, int64_t period);


}  // namespace trimaran
