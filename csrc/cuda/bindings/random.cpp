#include "checks/random.h"

#include <algorithm>

#include "cuda_binding.h"

namespace {

// Call launch(data, box, stream); data has out's type.
template <typename Launch>
void fill_box(const char* op, const Tensor& out, at::IntArrayRef global_shape, at::IntArrayRef offsets, Launch launch) {
  check_box(op, out, global_shape, offsets);
  TORCH_CHECK(out.dim() <= trimaran::kMaxDims, op, " fills boxes of at most ", trimaran::kMaxDims, " dimensions");
  trimaran::Box box{.dims = static_cast<int>(out.dim()), .sizes = {}, .offsets = {}, .global_sizes = {}};
  std::copy(out.sizes().begin(), out.sizes().end(), box.sizes);
  std::copy(offsets.begin(), offsets.end(), box.offsets);
  std::copy(global_shape.begin(), global_shape.end(), box.global_sizes);
  DISPATCH(out, "fill_box", [&] {
    on_device_of(out, [&](cudaStream_t stream) { return launch(out.data_ptr<scalar_t>(), box, stream); });
  });
}

void fill_normal_(Tensor& out, int64_t key, at::IntArrayRef global_shape, at::IntArrayRef offsets, double std,
                  double mean) {
  fill_box("fill_normal_", out, global_shape, offsets,
           [&](auto* data, const trimaran::Box& box, cudaStream_t stream) {
             return trimaran::cuda_fill_normal(data, static_cast<uint64_t>(key), box, std, mean, stream);
           });
}

void fill_uniform_(Tensor& out, int64_t key, at::IntArrayRef global_shape, at::IntArrayRef offsets, double low,
                   double high) {
  fill_box("fill_uniform_", out, global_shape, offsets,
           [&](auto* data, const trimaran::Box& box, cudaStream_t stream) {
             return trimaran::cuda_fill_uniform(data, static_cast<uint64_t>(key), box, low, high, stream);
           });
}

Tensor dropout(const Tensor& x, const OptionalTensor& bias, const OptionalTensor& residual, int64_t key,
               const Tensor& rows, int64_t width, int64_t column, int64_t threshold, double scale) {
  check_dropout(x, bias, residual, rows);
  Tensor y = at::empty_like(x);
  DISPATCH_ALL(x, "dropout", [&] {
    const trimaran::CudaDropout<typename Stored<scalar_t>::type> call{.x = input<scalar_t>(x),
                                                                      .bias = optional_input<scalar_t>(bias),
                                                                      .residual = optional_input<scalar_t>(residual),
                                                                      .y = output<scalar_t>(y),
                                                                      .key = static_cast<uint64_t>(key),
                                                                      .addresses = rows.const_data_ptr<int64_t>(),
                                                                      .rows = rows.numel(),
                                                                      .f = x.size(-1),
                                                                      .width = width,
                                                                      .column = column,
                                                                      .threshold = static_cast<uint32_t>(threshold),
                                                                      .scale = scale};
    on_device_of(x, [&](cudaStream_t stream) { return trimaran::cuda_dropout(call, stream); });
  });
  return y;
}

}  // namespace

TORCH_LIBRARY_IMPL(trimaran, TRIMARAN_CUDA_KEY, m) {
  m.impl("fill_normal_", &fill_normal_);
  m.impl("fill_uniform_", &fill_uniform_);
  m.impl("dropout", &dropout);
}
