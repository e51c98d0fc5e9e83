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

// Per row: largest logit, sum of exp(logit - largest), logit of the target (0 when not in [start, start + v)).
void ce_stats(const float* logits, const int64_t* targets, float* max, float* sum, float* target, int64_t begin,
              int64_t end, int64_t v, int64_t start);
void ce_stats(const double* logits, const int64_t* targets, double* max, double* sum, double* target, int64_t begin,
              int64_t end, int64_t v, int64_t start);
// logits <- (exp(logit - max - log_sum) - [column is target]) * scale
void ce_grad(float* logits, const int64_t* targets, const float* max, const float* log_sum, const float* scale,
             int64_t begin, int64_t end, int64_t v, int64_t start);
void ce_grad(double* logits, const int64_t* targets, const double* max, const double* log_sum, const double* scale,
             int64_t begin, int64_t end, int64_t v, int64_t start);

struct AdamW {
  double lr, beta1, beta2, eps, weight_decay, correction1, correction2, grad_scale;
};
void adamw(float* param, const float* grad, float* exp_avg, float* exp_avg_sq, int64_t begin, int64_t end, AdamW a);
void adamw(double* param, const double* grad, double* exp_avg, double* exp_avg_sq, int64_t begin, int64_t end, AdamW a);
double sum_of_squares(const float* x, int64_t begin, int64_t end);
double sum_of_squares(const double* x, int64_t begin, int64_t end);

// Elements first .. first + count of the stream `key`, as mean + std * normal.
void normal_run(float* out, uint64_t key, uint64_t first, int64_t count, double std, double mean);
void normal_run(double* out, uint64_t key, uint64_t first, int64_t count, double std, double mean);
// y = keep ? x * scale : 0 where element i of the row is kept if word first + i of the stream reaches `threshold`.
void dropout_run(const float* x, float* y, uint64_t key, uint64_t first, int64_t count, uint32_t threshold,
                 double scale);
void dropout_run(const double* x, double* y, uint64_t key, uint64_t first, int64_t count, uint32_t threshold,
                 double scale);

}  // namespace trimaran
