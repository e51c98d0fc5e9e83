// Normals, uniform numbers and dropout over a run of consecutive elements of one Philox stream.
#pragma once

#include <cstdint>

namespace trimaran {

// Elements first .. first + count of the stream `key`, as mean + std * normal.
void normal_run(float* out, uint64_t key, uint64_t first, int64_t count, double std, double mean);
void normal_run(double* out, uint64_t key, uint64_t first, int64_t count, double std, double mean);

// The same elements as low + (high - low) * u, with u in (0, 1): from low to high, both rounded to what `out` holds.
void uniform_run(float* out, uint64_t key, uint64_t first, int64_t count, double low, double high);
void uniform_run(double* out, uint64_t key, uint64_t first, int64_t count, double low, double high);

// y = residual + (keep ? (x + bias) * scale : 0), where element i is kept if word first + i of the stream reaches
// `threshold`; bias and residual may be nullptr. Computed wide, rounded once. y may be x or residual.
template <typename T>
void dropout_run(const T* x, const T* bias, const T* residual, T* y, uint64_t key, uint64_t first, int64_t count,
                 uint32_t threshold, double scale);

}  // namespace trimaran
