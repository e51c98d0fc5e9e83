// The optimizer's passes over flat tensors.
#pragma once

#include <cstdint>

namespace trimaran {

struct AdamW {
  double lr, beta1, beta2, eps, weight_decay, correction1, correction2, grad_scale;
};

// Update elements [begin, end) of param and moments (float or double) with grad * grad_scale, and write the parameter
// rounded to R (BFloat16 or Half) to `rounded` unless that is nullptr.
template <typename W, typename R>
void adamw(W* param, const W* grad, W* exp_avg, W* exp_avg_sq, R* rounded, int64_t begin, int64_t end, AdamW a);

template <typename T>
double sum_of_squares(const T* x, int64_t begin, int64_t end);

// Of x [rows, columns]: of_rows[row] = mean of squares of rows [begin, end); of_columns += squares of those rows.
template <typename W>
void squares_of_matrix(const W* x, W* of_rows, W* of_columns, int64_t begin, int64_t end, int64_t columns);

}  // namespace trimaran
