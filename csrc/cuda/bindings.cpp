// The CUDA kernels as implementations of the operators that csrc/bindings/ declares.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty_like.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <algorithm>

#include "cuda_kernels.h"

namespace {

using at::Tensor;

Tensor& fill_normal_(Tensor& out, int64_t key, at::IntArrayRef global_shape, at::IntArrayRef offsets, double std,
                     double mean) {
  const auto dims = static_cast<size_t>(out.dim());
  TORCH_CHECK(out.is_contiguous() && dims >= 1 && dims <= trimaran::kMaxDims && global_shape.size() == dims &&
                  offsets.size() == dims,
              "fill_normal_ takes a contiguous box of 1 to 8 dimensions with as many offsets");
  trimaran::Box box{static_cast<int>(dims), {}, {}, {}};
  std::copy_n(out.sizes().begin(), dims, box.sizes);
  std::copy_n(offsets.begin(), dims, box.offsets);
  std::copy_n(global_shape.begin(), dims, box.global_sizes);
  const c10::cuda::CUDAGuard guard(out.device());
  const cudaStream_t stream = c10::cuda::getCurrentCUDAStream();
  const auto fill = [&](auto* data) {
    C10_CUDA_CHECK(trimaran::cuda_fill_normal(data, static_cast<uint64_t>(key), box, std, mean, stream));
  };
  if (out.scalar_type() == at::kFloat) {
    fill(out.data_ptr<float>());
  } else {
    TORCH_CHECK(out.scalar_type() == at::kDouble, "fill_normal_ fills float32 and float64, not ", out.scalar_type());
    fill(out.data_ptr<double>());
  }
  return out;
}

Tensor dropout(const Tensor& x, int64_t key, const Tensor& rows, int64_t width, int64_t column, int64_t threshold,
               double scale) {
  const int64_t f = x.size(-1);
  TORCH_CHECK(x.is_contiguous() && rows.is_contiguous() && rows.scalar_type() == at::kLong &&
                  rows.device() == x.device() && rows.numel() * f == x.numel(),
              "dropout takes contiguous x [..., f] and int64 rows of x.shape[:-1]");
  Tensor y = at::empty_like(x);
  const c10::cuda::CUDAGuard guard(x.device());
  const cudaStream_t stream = c10::cuda::getCurrentCUDAStream();
  const auto drop = [&](auto* to, const auto* from) {
    C10_CUDA_CHECK(trimaran::cuda_dropout(from, to, static_cast<uint64_t>(key), rows.const_data_ptr<int64_t>(),
                                          rows.numel(), f, width, column, static_cast<uint32_t>(threshold), scale,
                                          stream));
  };
  switch (x.scalar_type()) {
    case at::kFloat: drop(y.data_ptr<float>(), x.const_data_ptr<float>()); break;
    case at::kDouble: drop(y.data_ptr<double>(), x.const_data_ptr<double>()); break;
    case at::kHalf: drop(static_cast<__half*>(y.data_ptr()), static_cast<const __half*>(x.const_data_ptr())); break;
    case at::kBFloat16:
      drop(static_cast<__nv_bfloat16*>(y.data_ptr()), static_cast<const __nv_bfloat16*>(x.const_data_ptr()));
      break;
    default: TORCH_CHECK(false, "dropout takes floating point tensors, not ", x.scalar_type());
  }
  return y;
}

}  // namespace

TORCH_LIBRARY_IMPL(trimaran, CUDA, m) {
  m.impl("fill_normal_", &fill_normal_);
  m.impl("dropout", &dropout);
}
