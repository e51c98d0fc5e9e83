// Small matrix products on data in the cache: C [m, n] = or += A [m, k] B [k, n], for one thread.
//
// A may have any strides (rows of a transposed matrix included). B is given as panels of `kPanel<T>` adjacent columns;
// row k of a panel starts at panel + k * row_stride. C rows are contiguous. A tile of six rows by one panel is kept in
// registers: 12 accumulators of the 16 vector registers of AVX2.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "kernels.h"

namespace trimaran {

template <typename T>
constexpr int64_t kPanel = 64 / sizeof(T);
constexpr int64_t kTileRows = 6;

template <typename T>
struct Vector {
  typedef T type __attribute__((vector_size(32)));
  static constexpr int64_t lanes = 32 / sizeof(T);
};

// Where rows and depth of A are: element (i, k) at a + i * row + k * depth.
template <typename T>
struct Left {
  const T* a;
  int64_t row, depth;
};

template <typename T, int64_t R>
TRIMARAN_INLINE void tile(int64_t k, Left<T> left, const T* b, int64_t b_row, T* c, int64_t c_row, bool add) {
  using V = typename Vector<T>::type;
  constexpr int64_t L = Vector<T>::lanes;
  V sum[R][2];
#pragma GCC unroll 6
  for (int64_t i = 0; i < R; ++i) {
    if (add) {
      memcpy(&sum[i][0], c + i * c_row, sizeof(V));
      memcpy(&sum[i][1], c + i * c_row + L, sizeof(V));
    } else {
      sum[i][0] = sum[i][1] = V{};
    }
  }
  const T* a = left.a;
  for (int64_t step = 0; step < k; ++step, a += left.depth, b += b_row) {
    V b0, b1;
    memcpy(&b0, b, sizeof(V));
    memcpy(&b1, b + L, sizeof(V));
#pragma GCC unroll 6
    for (int64_t i = 0; i < R; ++i) {
      const T ai = a[i * left.row];
      sum[i][0] += ai * b0;
      sum[i][1] += ai * b1;
    }
  }
#pragma GCC unroll 6
  for (int64_t i = 0; i < R; ++i) {
    memcpy(c + i * c_row, &sum[i][0], sizeof(V));
    memcpy(c + i * c_row + L, &sum[i][1], sizeof(V));
  }
}

// One stripe of up to six rows by one panel.
template <typename T>
TRIMARAN_INLINE void stripe(int64_t rows, int64_t k, Left<T> left, const T* b, int64_t b_row, T* c, int64_t c_row,
                            bool add) {
  switch (rows) {
    case 6: return tile<T, 6>(k, left, b, b_row, c, c_row, add);
    case 5: return tile<T, 5>(k, left, b, b_row, c, c_row, add);
    case 4: return tile<T, 4>(k, left, b, b_row, c, c_row, add);
    case 3: return tile<T, 3>(k, left, b, b_row, c, c_row, add);
    case 2: return tile<T, 2>(k, left, b, b_row, c, c_row, add);
    default: return tile<T, 1>(k, left, b, b_row, c, c_row, add);
  }
}

}  // namespace trimaran
