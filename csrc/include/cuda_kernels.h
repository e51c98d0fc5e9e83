// CUDA kernels, launched from plain C++. They know nothing of torch: pointers are device pointers, the return value is
// the launch's error. T is float, double, __half or __nv_bfloat16 unless a kernel says otherwise; numbers are computed
// in Wide<T> and rounded once. Tensors are row-major and contiguous; pointers that are called optional may be null.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>

#include <cstdint>

#include "wide.h"

namespace trimaran {

// ---- random.cu: to the last bit what the CPU kernels give (compiled with -fmad=false) ----

constexpr int kMaxDims = 8;

// An axis-aligned box of a global row-major tensor. sizes are the box's own.
struct Box {
  int dims;
  int64_t sizes[kMaxDims], offsets[kMaxDims], global_sizes[kMaxDims];
};

// Fill `out` (float or double), the contiguous box, with mean + std * normal of its elements' global indices in the
// stream `key`.
template <typename T>
cudaError_t cuda_fill_normal(T* out, uint64_t key, const Box& box, double std, double mean, cudaStream_t stream);

// The same with low + (high - low) * u, u in (0, 1): from low to high, both rounded to T.
template <typename T>
cudaError_t cuda_fill_uniform(T* out, uint64_t key, const Box& box, double low, double high, cudaStream_t stream);

// y = residual + (keep ? (x + bias) * scale : 0) for x [rows, f]; element (r, i) is kept if word addresses[r] * width +
// column + i of the stream `key` reaches `threshold`.
template <typename T>
struct CudaDropout {
  const T *x, *bias, *residual;  // bias [f] and residual [rows, f]: optional
  T* y;                          // may be x or residual
  uint64_t key;
  const int64_t* addresses;
  int64_t rows, f, width, column;
  uint32_t threshold;
  double scale;
};
template <typename T>
cudaError_t cuda_dropout(const CudaDropout<T>& a, cudaStream_t stream);

// ---- norm.cu ----

// total = x + residual rounded to T (with a residual; else x stands for it),
// y = (total - mean) * rstd * weight + bias over rows [rows, h], rstd = 1 / sqrt(mean((total - mean)^2) + eps).
template <typename T>
struct CudaNorm {
  const T *x, *residual, *weight, *bias;  // residual and bias: optional
  T *total, *y;                           // total: only with a residual; it may be x or residual
  Wide<T> *mean, *rstd;                   // [rows]; without mean it is RMSNorm: no mean is taken off
  int64_t rows, h;
  double eps;
};
template <typename T>
cudaError_t cuda_norm(const CudaNorm<T>& a, cudaStream_t stream);

// dx = gradient of y's input + dtotal, and the gradients of weight and bias by way of partial sums.
template <typename T>
struct CudaNormBackward {
  const T *dy, *x, *weight, *dtotal;     // x: what was normalised; dtotal: optional
  const Wide<T> *mean, *rstd;            // mean: null for RMSNorm
  T* dx;                                 // may be dy or dtotal
  Wide<T> *dweight_parts, *dbias_parts;  // [norm_chunks(rows, h), h], room to work
  Wide<T> *dweight, *dbias;              // [h]; dbias and its parts: optional
  int64_t rows, h;
};
template <typename T>
cudaError_t cuda_norm_backward(const CudaNormBackward<T>& a, cudaStream_t stream);

// Rows that one block of the backward takes.
int64_t norm_chunk_rows(int64_t h);
inline int64_t norm_chunks(int64_t rows, int64_t h) {
  const int64_t each = norm_chunk_rows(h);
  return (rows + each - 1) / each;
}

// ---- rope.cu ----

// Turn the first `rotary` features of the first `heads` heads of x [tokens, all_heads, d] in place, token t by row
// t % period of cos and sin [period, rotary / 2]. Feature i is paired with i + rotary / 2, or interleaved: 2i with
// 2i + 1. direction -1 turns back, which is the gradient.
template <typename T>
struct CudaRope {
  T* x;
  const float *cos, *sin;
  int64_t tokens, heads, all_heads, d, rotary, period;
  bool interleaved;
  float direction;
};
template <typename T>
cudaError_t cuda_rope(const CudaRope<T>& a, cudaStream_t stream);

// ---- activation.cu ----

enum class Curve { silu, gelu, gelu_tanh, relu, squared_relu };

// Gated: y = f(x[:, :width] + bias[:width]) * (x[:, width:] + bias[width:]) for x [rows, 2 width]; plain: y =
// f(x + bias) for x [rows, width].
template <typename T>
struct CudaActivation {
  const T *x, *bias;  // bias: optional, as long as a row of x
  T* y;               // [rows, width]
  int64_t rows, width;
  Curve kind;
  bool gated;
};
template <typename T>
cudaError_t cuda_activation(const CudaActivation<T>& a, cudaStream_t stream);

// The gradients of x and bias; the forward is computed anew.
template <typename T>
struct CudaActivationBackward {
  const T *dy, *x, *bias;  // bias: optional
  T* dx;                   // like x; may be x
  Wide<T>* dbias_parts;    // [activation_chunks(rows), a row of x], room to work
  Wide<T>* dbias;          // optional, with its parts
  int64_t rows, width;
  Curve kind;
  bool gated;
};
template <typename T>
cudaError_t cuda_activation_backward(const CudaActivationBackward<T>& a, cudaStream_t stream);

// Rows that one block takes.
constexpr int64_t kActivationRows = 8;
inline int64_t activation_chunks(int64_t rows) { return (rows + kActivationRows - 1) / kActivationRows; }

// ---- softmax.cu ----

// Rows of attention scores [b, heads, queries, keys], of which query i of sequence n sees keys first[n, i] to
// last[n, i]; ranges is b, or 1 where first and last [ranges, queries] are the same for all sequences.
struct CudaScores {
  int64_t b, heads, queries, keys, ranges;
  const int32_t *first, *last;
  double scale, cap;
};

// probs = softmax over the seen keys of cap * tanh(score * scale / cap) + bias + slope * (key - query), and 0 for the
// others; without a cap (0) the logit begins with score * scale.
template <typename T>
struct CudaSoftmax {
  const T *scores, *bias;  // bias: optional, [biases, queries, keys]
  int64_t biases;          // heads, or 1
  const float* slopes;     // optional, [heads]: ALiBi
  T* probs;                // may be scores
  CudaScores shape;
};
template <typename T>
cudaError_t cuda_softmax(const CudaSoftmax<T>& a, cudaStream_t stream);

// dscores = probs * (dprobs - sum(probs * dprobs)) * scale * (1 - tanh^2(score * scale / cap)). With scale 1 and no cap
// it is the gradient of the logits, and so of the bias.
template <typename T>
struct CudaSoftmaxBackward {
  const T *dprobs, *probs, *scores;  // scores: only with a cap
  T* dscores;                        // may be dprobs or probs
  CudaScores shape;
};
template <typename T>
cudaError_t cuda_softmax_backward(const CudaSoftmaxBackward<T>& a, cudaStream_t stream);

// ---- cross_entropy.cu ----

// Of each row of logits [rows, v], the columns of a vocabulary from `start` on: the largest logit, the sum of
// exp(logit - largest), the logit of the target (a global id; 0 if it is not among the columns) and the sum of logits.
template <typename T>
struct CudaCrossEntropy {
  const T* logits;
  const int64_t* targets;
  Wide<T> *max, *sum, *target, *total;  // [rows]; total: optional
  int64_t rows, v, start;
};
template <typename T>
cudaError_t cuda_cross_entropy(const CudaCrossEntropy<T>& a, cudaStream_t stream);

// logits <- scale * (p * (1 + 2 z_loss * log Z) - (1 - smoothing) [is target] - smoothing / vocab), with
// p = exp(logit - max - log_sum) and log Z = max + log_sum of the whole vocabulary: the gradient of
// (1 - smoothing) * nll + smoothing * (mean nll over the vocabulary) + z_loss * (log Z)^2, times scale.
template <typename T>
struct CudaCrossEntropyGrad {
  T* logits;
  const int64_t* targets;
  const Wide<T> *max, *log_sum, *scale;  // [rows]
  int64_t rows, v, start, vocab;  // vocab: of use where there is smoothing
  double smoothing, z_loss;
};
template <typename T>
cudaError_t cuda_cross_entropy_grad(const CudaCrossEntropyGrad<T>& a, cudaStream_t stream);

// ---- optimizer.cu ----

// One step of AdamW on `count` elements in W (float or double), as torch.optim.AdamW has it, with gradients times
// *grad_scale. The number of the step (from 1) and the other two are read on the device; *keep = 0 leaves every bit
// as it was.
template <typename W, typename Rounded>
struct CudaAdamW {
  W* param;
  const W* grad;
  W *exp_avg, *exp_avg_sq;
  Rounded* rounded;  // optional: the new parameter as __half or __nv_bfloat16
  const double *step, *grad_scale, *keep;
  int64_t count;
  double lr, beta1, beta2, eps, weight_decay;
};
template <typename W, typename Rounded>
cudaError_t cuda_adamw(const CudaAdamW<W, Rounded>& a, cudaStream_t stream);

// *sum = sum of squares of x in double, always added in the same order. parts: [square_parts(count)], room to work.
template <typename T>
cudaError_t cuda_sum_of_squares(const T* x, int64_t count, double* parts, double* sum, cudaStream_t stream);

constexpr int64_t kSquareSpan = 16384;  // elements of a partial sum
inline int64_t square_parts(int64_t count) { return (count + kSquareSpan - 1) / kSquareSpan; }

// Means of squares of x [rows, columns] over its columns and over its rows, which Adafactor keeps in place of the
// second moment.
template <typename T>
struct CudaSquareMeans {
  const T* x;
  Wide<T> *of_rows, *of_columns;  // [rows], [columns]
  Wide<T>* parts;                 // [square_mean_chunks(rows), columns], room to work
  int64_t rows, columns;
};
template <typename T>
cudaError_t cuda_square_means(const CudaSquareMeans<T>& a, cudaStream_t stream);

constexpr int64_t kSquareMeanRows = 16;  // that one block takes
inline int64_t square_mean_chunks(int64_t rows) { return (rows + kSquareMeanRows - 1) / kSquareMeanRows; }

}  // namespace trimaran
