#include "random.h"

#include <optional>

#include "binding.h"

namespace {

using OptionalTensor = std::optional<Tensor>;

Tensor& fill_normal_(Tensor& out, int64_t key, at::IntArrayRef global_shape, at::IntArrayRef offsets, double std,
                     double mean) {
  const int64_t dims = out.dim();
  TORCH_CHECK(out.is_contiguous() && dims >= 1 && global_shape.size() == offsets.size() &&
                  static_cast<int64_t>(offsets.size()) == dims,
              "fill_normal_ takes a contiguous box with as many offsets as dimensions");
  const int64_t width = out.size(-1), rows = width == 0 ? 0 : out.numel() / width;
  auto first_of_row = [&](int64_t row) {
    uint64_t index = offsets[dims - 1], stride = global_shape[dims - 1];
    for (int64_t dim = dims - 2; dim >= 0; --dim) {
      index += (offsets[dim] + row % out.size(dim)) * stride;
      row /= out.size(dim);
      stride *= global_shape[dim];
    }
    return index;
  };
  DISPATCH(out, "fill_normal_", [&] {
    at::parallel_for(0, rows, rows_grain(width), [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row)
        trimaran::normal_run(out.data_ptr<scalar_t>() + row * width, static_cast<uint64_t>(key), first_of_row(row),
                             width, std, mean);
    });
  });
  return out;
}

Tensor dropout(const Tensor& x, const OptionalTensor& bias, const OptionalTensor& residual, int64_t key,
               const Tensor& rows, int64_t width, int64_t column, int64_t threshold, double scale) {
  const int64_t f = x.size(-1);
  TORCH_CHECK(x.is_contiguous() && rows.is_contiguous() && rows.scalar_type() == at::kLong &&
                  rows.numel() * f == x.numel(),
              "dropout takes contiguous x [..., f] and int64 rows of x.shape[:-1]");
  if (bias) {
    same(x, *bias, "dropout: input and bias");
    TORCH_CHECK(bias->is_contiguous() && bias->numel() == f, "dropout: ", bias->numel(), " biases for rows of ", f);
  }
  if (residual) {
    same(x, *residual, "dropout: input and residual");
    TORCH_CHECK(residual->is_contiguous() && residual->sizes() == x.sizes(), "dropout: residual of another shape");
  }
  Tensor y = at::empty_like(x);
  DISPATCH_ALL(x, "dropout", [&] {
    at::parallel_for(0, rows.numel(), rows_grain(f), [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row)
        trimaran::dropout_run(input<scalar_t>(x) + row * f, bias ? input<scalar_t>(*bias) : nullptr,
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
      "-> Tensor(a!)");
  m.def(
      "dropout(Tensor x, Tensor? bias, Tensor? residual, int key, Tensor rows, int width, int column, int threshold, "
      "float scale) -> Tensor");
}

TORCH_LIBRARY_IMPL(trimaran, CPU, m) {
  m.impl("fill_normal_", &fill_normal_);
  m.impl("dropout", &dropout);
}
