#include "random.h"

#include "binding.h"
#include "checks/random.h"

namespace {

// Call run(data, index in the global tensor, count) for the rows of the box, in parallel; data has out's type.
template <typename Run>
void fill_box(const char* op, Tensor& out, at::IntArrayRef global_shape, at::IntArrayRef offsets, Run run) {
  check_box(op, out, global_shape, offsets);
  const int64_t dims = out.dim(), width = out.size(-1), rows = width == 0 ? 0 : out.numel() / width;
  auto first_of_row = [&](int64_t row) {
    uint64_t index = offsets[dims - 1], stride = global_shape[dims - 1];
    for (int64_t dim = dims - 2; dim >= 0; --dim) {
      index += (offsets[dim] + row % out.size(dim)) * stride;
      row /= out.size(dim);
      stride *= global_shape[dim];
    }
    return index;
  };
  DISPATCH(out, "fill_box", [&] {
    at::parallel_for(0, rows, rows_grain(width), [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) run(out.data_ptr<scalar_t>() + row * width, first_of_row(row), width);
    });
  });
}

void fill_normal_(Tensor& out, int64_t key, at::IntArrayRef global_shape, at::IntArrayRef offsets, double std,
                  double mean) {
  fill_box("fill_normal_", out, global_shape, offsets, [&](auto* data, uint64_t first, int64_t count) {
    trimaran::normal_run(data, static_cast<uint64_t>(key), first, count, std, mean);
  });
}

void fill_uniform_(Tensor& out, int64_t key, at::IntArrayRef global_shape, at::IntArrayRef offsets, double low,
                   double high) {
  fill_box("fill_uniform_", out, global_shape, offsets, [&](auto* data, uint64_t first, int64_t count) {
    trimaran::uniform_run(data, static_cast<uint64_t>(key), first, count, low, high);
  });
}

Tensor dropout(const Tensor& x, const OptionalTensor& bias, const OptionalTensor& residual, int64_t key,
               const Tensor& rows, int64_t width, int64_t column, int64_t threshold, double scale) {
  check_dropout(x, bias, residual, rows);
  const int64_t f = x.size(-1);
  Tensor y = at::empty_like(x);
  DISPATCH_ALL(x, "dropout", [&] {
    at::parallel_for(0, rows.numel(), rows_grain(f), [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row)
        trimaran::dropout_run(input<scalar_t>(x) + row * f, optional_input<scalar_t>(bias),
                              residual ? input<scalar_t>(*residual) + row * f : nullptr, output<scalar_t>(y) + row * f,
                              static_cast<uint64_t>(key), rows.const_data_ptr<int64_t>()[row] * width + column, f,
                              static_cast<uint32_t>(threshold), scale);
    });
  });
  return y;
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(trimaran, m) {
  m.def(
      "fill_normal_(Tensor(a!) out, int key, int[] global_shape, int[] offsets, float std, float mean) "
      "-> ()");
  m.def(
      "fill_uniform_(Tensor(a!) out, int key, int[] global_shape, int[] offsets, float low, float high) "
      "-> ()");
  m.def(
      "dropout(Tensor x, Tensor? bias, Tensor? residual, int key, Tensor rows, int width, int column, int threshold, "
      "float scale) -> Tensor");
}

TORCH_LIBRARY_IMPL(trimaran, CPU, m) {
  m.impl("fill_normal_", &fill_normal_);
  m.impl("fill_uniform_", &fill_uniform_);
  m.impl("dropout", &dropout);
}
