// Feed-forward non-linearities over rows, with the bias of the layer before them. Rows are contiguous. Gated ones
// (arXiv 2002.05202) read 2f numbers a row, first the gate and then what it multiplies; the others f. Arithmetic is in
// Wide<T>. Defined for float, double, BFloat16 and Half.
#pragma once

#include "activation_kind.h"
#include "half.h"

namespace trimaran {

// y [rows, f] for rows [begin, end); bias (one row of x) may be null.
template <typename T>
void activation(Activation kind, const T* x, const T* bias, T* y, int64_t begin, int64_t end, int64_t f);

// dx, and dbias (one row of x, overwritten) summed over the rows [begin, end); without a bias dbias is not touched.
template <typename T>
void activation_backward(Activation kind, const T* dy, const T* x, const T* bias, T* dx, Wide<T>* dbias, int64_t begin,
                         int64_t end, int64_t f);

}  // namespace trimaran
