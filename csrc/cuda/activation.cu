// Feed-forward non-linearities with gate and bias, forward and backward. Memory is what they cost: the backward takes
// the forward's input and computes the rest anew.
#include "block.cuh"
#include "columns.cuh"
#include "cuda_kernels.h"
#include "curves.cuh"

namespace trimaran {
namespace {

constexpr int kGrid = 65535;  // blocks along y, at most

// The backward keeps five vectors and two sums: half a vector of 16-bit numbers is enough for a thread.
template <typename T>
constexpr int kBackwardLanes = kLanes<T> < 4 ? kLanes<T> : 4;

template <int N, typename T>
__device__ __forceinline__ void load_biased(const T* x, const Wide<T> (&bias)[N], Wide<T> (&to)[N]) {
  load(x, to);
#pragma unroll
  for (int k = 0; k < N; ++k) to[k] += bias[k];
}

// Blocks take kActivationRows rows of a strip of columns, each thread one vector of columns, and its bias is read once.
template <typename T, int N, Curve kind, bool kGated>
__global__ void activate(CudaActivation<T> a) {
  using W = Wide<T>;
  const int64_t column = (static_cast<int64_t>(blockIdx.y) * blockDim.x + threadIdx.x) * N;
  if (column >= a.width) return;
  const int64_t first = blockIdx.x * kActivationRows, stride = kGated ? 2 * a.width : a.width;
  const int64_t last = first + kActivationRows < a.rows ? first + kActivationRows : a.rows;
  W bias[N] = {}, up_bias[N] = {};
  if (a.bias != nullptr) {
    load(a.bias + column, bias);
    if (kGated) load(a.bias + a.width + column, up_bias);
  }
  for (int64_t row = first; row < last; ++row) {
    const T* x = a.x + row * stride + column;
    W y[N], up[N];
    load_biased(x, bias, y);
    if (kGated) load_biased(x + a.width, up_bias, up);
#pragma unroll
    for (int k = 0; k < N; ++k) y[k] = kGated ? curve<kind>(y[k]) * up[k] : curve<kind>(y[k]);
    store(y, a.y + row * a.width + column);
  }
}

template <typename T, int N, Curve kind, bool kGated>
__global__ void activate_backward(CudaActivationBackward<T> a) {
  using W = Wide<T>;
  const int64_t column = (static_cast<int64_t>(blockIdx.y) * blockDim.x + threadIdx.x) * N;
  if (column >= a.width) return;
  const int64_t first = blockIdx.x * kActivationRows, stride = kGated ? 2 * a.width : a.width;
  const int64_t last = first + kActivationRows < a.rows ? first + kActivationRows : a.rows;
  W bias[N] = {}, up_bias[N] = {}, dbias[N] = {}, dup_bias[N] = {};
  if (a.bias != nullptr) {
    load(a.bias + column, bias);
    if (kGated) load(a.bias + a.width + column, up_bias);
  }
  for (int64_t row = first; row < last; ++row) {
    const int64_t at = row * stride + column;
    W dy[N], x[N], up[N];
    load(a.dy + row * a.width + column, dy);
    load_biased(a.x + at, bias, x);
    if (kGated) load_biased(a.x + at + a.width, up_bias, up);
#pragma unroll
    for (int k = 0; k < N; ++k) {
      const W dx = dy[k] * slope<kind>(x[k]);
      if (kGated) {
        const W gate = x[k];
        x[k] = dx * up[k];
        up[k] = dy[k] * curve<kind>(gate);
        dup_bias[k] += up[k];
      } else {
        x[k] = dx;
      }
      dbias[k] += x[k];
    }
    store(x, a.dx + at);
    if (kGated) store(up, a.dx + at + a.width);
  }
  if (a.dbias_parts == nullptr) return;
  store(dbias, a.dbias_parts + blockIdx.x * stride + column);
  if (kGated) store(dup_bias, a.dbias_parts + blockIdx.x * stride + a.width + column);
}

// Call use(std::integral_constant of the kind): kinds are compiled apart.
template <typename Use>
cudaError_t with_kind(Curve kind, Use use) {
  switch (kind) {
    case Curve::silu: return use(std::integral_constant<Curve, Curve::silu>());
    case Curve::gelu: return use(std::integral_constant<Curve, Curve::gelu>());
    case Curve::gelu_tanh: return use(std::integral_constant<Curve, Curve::gelu_tanh>());
    case Curve::relu: return use(std::integral_constant<Curve, Curve::relu>());
    case Curve::squared_relu: return use(std::integral_constant<Curve, Curve::squared_relu>());
  }
  return cudaErrorInvalidValue;
}

template <int N>
dim3 grid_of(int64_t rows, int64_t width, unsigned threads) {
  const int64_t strips = (width / N + threads - 1) / threads;
  return dim3(blocks_for(activation_chunks(rows)).x, static_cast<unsigned>(std::min<int64_t>(strips, kGrid + 1)));
}

template <typename T, int N>
cudaError_t forward(const CudaActivation<T>& a, cudaStream_t stream) {
  const unsigned threads = threads_for(a.width / N);
  return with_kind(a.kind, [&](auto kind) {
    const auto kernel = a.gated ? activate<T, N, kind.value, true> : activate<T, N, kind.value, false>;
    return launch(kernel, grid_of<N>(a.rows, a.width, threads), dim3(threads), stream, a);
  });
}

template <typename T, int N>
cudaError_t backward(const CudaActivationBackward<T>& a, cudaStream_t stream) {
  const unsigned threads = threads_for(a.width / N);
  return with_kind(a.kind, [&](auto kind) {
    const auto kernel =
        a.gated ? activate_backward<T, N, kind.value, true> : activate_backward<T, N, kind.value, false>;
    return launch(kernel, grid_of<N>(a.rows, a.width, threads), dim3(threads), stream, a);
  });
}

}  // namespace

template <typename T>
cudaError_t cuda_activation(const CudaActivation<T>& a, cudaStream_t stream) {
  if (a.rows == 0 || a.width == 0) return cudaSuccess;
  return vectorised<T>(a.width, a.x, a.bias, a.y) ? forward<T, kLanes<T>>(a, stream) : forward<T, 1>(a, stream);
}

template <typename T>
cudaError_t cuda_activation_backward(const CudaActivationBackward<T>& a, cudaStream_t stream) {
  if (a.rows > 0 && a.width > 0) {
    const cudaError_t error = vectorised<T>(a.width, a.dy, a.x, a.bias, a.dx, a.dbias_parts)
                                  ? backward<T, kBackwardLanes<T>>(a, stream)
                                  : backward<T, 1>(a, stream);
    if (error != cudaSuccess) return error;
  }
  if (a.dbias == nullptr) return cudaSuccess;
  return sum_columns(a.dbias_parts, a.dbias, activation_chunks(a.rows), a.gated ? 2 * a.width : a.width, stream);
}

#define TRIMARAN_ACTIVATION(T)                                                       \
  template cudaError_t cuda_activation(const CudaActivation<T>&, cudaStream_t); \
  template cudaError_t cuda_activation_backward(const CudaActivationBackward<T>&, cudaStream_t);
TRIMARAN_ACTIVATION(float)
TRIMARAN_ACTIVATION(double)
TRIMARAN_ACTIVATION(__half)
TRIMARAN_ACTIVATION(__nv_bfloat16)

}  // namespace trimaran
