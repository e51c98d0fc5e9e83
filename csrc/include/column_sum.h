// out[i] = sum over rows of x[row, i] for columns [begin, end) of x [rows, width], summed in double.
#pragma once

#include "kernels.h"

namespace trimaran {

void column_sum(const float* x, float* out, int64_t rows, int64_t width, int64_t begin, int64_t end);
void column_sum(const double* x, double* out, int64_t rows, int64_t width, int64_t begin, int64_t end);

}  // namespace trimaran
