// RMSNorm (arXiv 1910.07467) and LayerNorm (arXiv 1607.06450) over rows of width h, with the sum that often precedes
// them. Rows are contiguous. Statistics are taken and kept in Wide<T>. Defined for float, double, BFloat16 and Half.
#pragma once

#include "half.h"

namespace trimaran {

template <typename T>
struct NormForward {
  const T *x, *residual;  // total = x + residual, rounded to T, is what is normalised; residual may be null
  const T *weight, *bias;  // bias may be null; RMSNorm has none
  T *y, *total;            // total is written where there is a residual
  Wide<T>*mean, *rstd;     // one number a row; RMSNorm has no mean
  int64_t h;
  double eps;
};

template <typename T>
struct NormBackward {
  const T *dy, *dtotal;  // dtotal, the gradient that reaches the total by other ways, is added to dx; may be null
  const T *x, *weight;   // x is the total where there was a residual
  const Wide<T>*mean, *rstd;
  T* dx;  // of x and of the residual alike
  int64_t h;
};

template <typename T>
void rms_norm(const NormForward<T>& n, int64_t begin, int64_t end);
template <typename T>
void layer_norm(const NormForward<T>& n, int64_t begin, int64_t end);

// dweight and dbias (h numbers each, overwritten) are summed over the rows [begin, end).
template <typename T>
void rms_norm_backward(const NormBackward<T>& n, Wide<T>* dweight, int64_t begin, int64_t end);
template <typename T>
void layer_norm_backward(const NormBackward<T>& n, Wide<T>* dweight, Wide<T>* dbias, int64_t begin, int64_t end);

}  // namespace trimaran
