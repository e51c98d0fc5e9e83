// Rotary position embedding (arXiv 2104.09864). Tables are float32, arithmetic is in Wide<T>. Defined for float, double,
// BFloat16 and Half.
#pragma once

#include "half.h"

namespace trimaran {

// Of every head the first 2 * half turn: feature i with i + half, or 2i with 2i + 1 when interleaved.
struct RopeShape {
  int64_t heads, half;
  int64_t period;  // token t turns by row t % period of the tables
  bool interleaved, inverse;
};

// Token t, head n at data + t * token + n * head; the features of a head are adjacent.
template <typename T>
struct Heads {
  T* data;
  int64_t token, head;
};

// Rotate x in place, tokens [begin, end).
template <typename T>
void rope(const RopeShape& shape, Heads<T> x, const float* cos, const float* sin, int64_t begin, int64_t end);

}  // namespace trimaran
