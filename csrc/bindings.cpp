// The kernels as torch operators: shapes and dtypes are checked here, work is cut into ranges for torch's threads.
#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/scalar_tensor.h>
#include <Python.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <tuple>
#include <vector>

#include "kernels.h"

namespace {

using at::Tensor;

constexpr int64_t kGrain = 16384;   // elements a thread should at least get
constexpr int64_t kBlockRows = 64;  // rows summed together into one partial weight gradient, whatever the threads

int64_t rows_grain(int64_t width) { return std::max<int64_t>(1, kGrain / std::max<int64_t>(1, width)); }

void same(const Tensor& a, const Tensor& b, const char* what) {
  TORCH_CHECK(a.scalar_type() == b.scalar_type(), what, " must have one dtype, not ", a.scalar_type(), " and ",
              b.scalar_type());
}

#define DISPATCH(TENSOR, NAME, ...) AT_DISPATCH_FLOATING_TYPES((TENSOR).scalar_type(), NAME, __VA_ARGS__)

std::tuple<Tensor, Tensor> rms_norm(const Tensor& x, const Tensor& weight, double eps) {
  const int64_t h = x.size(-1);
  TORCH_CHECK(x.is_contiguous() && weight.is_contiguous(), "rms_norm needs contiguous tensors");
  TORCH_CHECK(weight.dim() == 1 && weight.size(0) == h, "rms_norm: weight has ", weight.numel(), " elements, rows ", h);
  same(x, weight, "rms_norm: input and weight");
  Tensor y = at::empty_like(x), rstd = at::empty(x.sizes().slice(0, x.dim() - 1), x.options());
  DISPATCH(x, "rms_norm", [&] {
    at::parallel_for(0, rstd.numel(), rows_grain(h), [&](int64_t begin, int64_t end) {
      trimaran::rms_norm(x.const_data_ptr<scalar_t>(), weight.const_data_ptr<scalar_t>(), y.data_ptr<scalar_t>(),
                         rstd.data_ptr<scalar_t>(), begin, end, h, eps);
    });
  });
  return {y, rstd.unsqueeze(-1)};
}

std::tuple<Tensor, Tensor> rms_norm_backward(const Tensor& dy, const Tensor& x, const Tensor& weight,
                                             const Tensor& rstd) {
  const int64_t h = x.size(-1), rows = rstd.numel(), blocks = (rows + kBlockRows - 1) / kBlockRows;
  TORCH_CHECK(dy.is_contiguous() && x.is_contiguous() && dy.sizes() == x.sizes(), "rms_norm_backward: bad gradient");
  same(dy, x, "rms_norm_backward: gradient and input");
  Tensor dx = at::empty_like(x), partial = at::empty({blocks, h}, x.options());
  DISPATCH(x, "rms_norm_backward", [&] {
    at::parallel_for(0, blocks, 1, [&](int64_t begin, int64_t end) {
      for (int64_t block = begin; block < end; ++block) {
        trimaran::rms_norm_backward(dy.const_data_ptr<scalar_t>(), x.const_data_ptr<scalar_t>(),
                                    weight.const_data_ptr<scalar_t>(), rstd.const_data_ptr<scalar_t>(),
                                    dx.data_ptr<scalar_t>(), partial.data_ptr<scalar_t>() + block * h,
                                    block * kBlockRows, std::min(rows, (block + 1) * kBlockRows), h);
      }
    });
  });
  return {dx, partial.sum(0)};
}

Tensor rope(const Tensor& x, const Tensor& cos, const Tensor& sin) {
  TORCH_CHECK(x.dim() == 4 && x.stride(3) == 1, "rope takes [b, s, heads, d] with adjacent features");
  const int64_t b = x.size(0), s = x.size(1), heads = x.size(2), d = x.size(3);
  TORCH_CHECK(d % 2 == 0 && cos.size(-1) == d / 2 && cos.sizes() == sin.sizes(), "rope: tables do not fit width ", d);
  TORCH_CHECK(cos.scalar_type() == at::kFloat && sin.scalar_type() == at::kFloat, "rope: tables must be float32");
  const int64_t period = cos.dim() == 2 ? s : b * s;
  TORCH_CHECK(cos.numel() == period * (d / 2), "rope: tables do not fit ", b, " x ", s, " positions");
  const Tensor source = x.stride(0) == s * x.stride(1) || b == 1 ? x : x.contiguous();
  const Tensor c = cos.contiguous(), n = sin.contiguous();
  Tensor y = at::empty({b, s, heads, d}, x.options());
  DISPATCH(x, "rope", [&] {
    at::parallel_for(0, b * s, rows_grain(heads * d), [&](int64_t begin, int64_t end) {
      trimaran::rope(source.const_data_ptr<scalar_t>(), c.const_data_ptr<float>(), n.const_data_ptr<float>(),
                     y.data_ptr<scalar_t>(), begin, end, heads, d, source.stride(1), source.stride(2),
                     std::max<int64_t>(1, period));
    });
  });
  return y;
}

Tensor swiglu(const Tensor& x) {
  TORCH_CHECK(x.is_contiguous() && x.size(-1) % 2 == 0, "swiglu takes contiguous [..., 2f]");
  const int64_t f = x.size(-1) / 2;
  auto shape = x.sizes().vec();
  shape.back() = f;
  Tensor y = at::empty(shape, x.options());
  DISPATCH(x, "swiglu", [&] {
    at::parallel_for(0, f == 0 ? 0 : y.numel() / f, rows_grain(f), [&](int64_t begin, int64_t end) {
      trimaran::swiglu(x.const_data_ptr<scalar_t>(), y.data_ptr<scalar_t>(), begin, end, f);
    });
  });
  return y;
}

Tensor swiglu_backward(const Tensor& dy, const Tensor& x) {
  const int64_t f = x.size(-1) / 2;
  TORCH_CHECK(x.is_contiguous() && dy.is_contiguous() && dy.numel() * 2 == x.numel(), "swiglu_backward: bad gradient");
  same(dy, x, "swiglu_backward: gradient and input");
  Tensor dx = at::empty_like(x);
  DISPATCH(x, "swiglu_backward", [&] {
    at::parallel_for(0, f == 0 ? 0 : dy.numel() / f, rows_grain(f), [&](int64_t begin, int64_t end) {
      trimaran::swiglu_backward(dy.const_data_ptr<scalar_t>(), x.const_data_ptr<scalar_t>(), dx.data_ptr<scalar_t>(),
                                begin, end, f);
    });
  });
  return dx;
}

void check_targets(const Tensor& logits, const Tensor& targets) {
  TORCH_CHECK(logits.dim() == 2 && logits.is_contiguous(), "cross_entropy takes contiguous logits [n, v]");
  TORCH_CHECK(targets.scalar_type() == at::kLong && targets.numel() == logits.size(0) && targets.is_contiguous(),
              "cross_entropy takes one int64 target a row");
}

std::tuple<Tensor, Tensor, Tensor> ce_stats(const Tensor& logits, const Tensor& targets, int64_t start) {
  check_targets(logits, targets);
  const int64_t n = logits.size(0), v = logits.size(1);
  Tensor max = at::empty({n}, logits.options()), sum = at::empty_like(max), target = at::empty_like(max);
  DISPATCH(logits, "ce_stats", [&] {
    at::parallel_for(0, n, rows_grain(v), [&](int64_t begin, int64_t end) {
      trimaran::ce_stats(logits.const_data_ptr<scalar_t>(), targets.const_data_ptr<int64_t>(),
                         max.data_ptr<scalar_t>(), sum.data_ptr<scalar_t>(), target.data_ptr<scalar_t>(), begin, end,
                         v, start);
    });
  });
  return {max, sum, target};
}

Tensor& ce_grad_(Tensor& logits, const Tensor& targets, int64_t start, const Tensor& max, const Tensor& log_sum,
                 const Tensor& scale) {
  check_targets(logits, targets);
  for (const Tensor& row : {max, log_sum, scale}) {
    same(logits, row, "ce_grad_: logits and row statistics");
    TORCH_CHECK(row.is_contiguous() && row.numel() == logits.size(0), "ce_grad_ takes one number a row");
  }
  DISPATCH(logits, "ce_grad_", [&] {
    at::parallel_for(0, logits.size(0), rows_grain(logits.size(1)), [&](int64_t begin, int64_t end) {
      trimaran::ce_grad(logits.data_ptr<scalar_t>(), targets.const_data_ptr<int64_t>(), max.const_data_ptr<scalar_t>(),
                        log_sum.const_data_ptr<scalar_t>(), scale.const_data_ptr<scalar_t>(), begin, end,
                        logits.size(1), start);
    });
  });
  return logits;
}

void adamw_(Tensor& param, const Tensor& grad, Tensor& exp_avg, Tensor& exp_avg_sq, double lr, double beta1,
            double beta2, double eps, double weight_decay, const Tensor& step, const Tensor& grad_scale,
            const Tensor& keep) {
  for (const Tensor& other : {grad, exp_avg, exp_avg_sq}) {
    same(param, other, "adamw_: parameter, gradient and moments");
    TORCH_CHECK(other.is_contiguous() && other.numel() == param.numel(), "adamw_: tensors of different shapes");
  }
  TORCH_CHECK(param.is_contiguous(), "adamw_: parameter is not contiguous");
  if (keep.item<double>() == 0.0) return;
  const double t = step.item<double>();
  const trimaran::AdamW settings{lr,  beta1, beta2, eps, weight_decay, 1 - std::pow(beta1, t), 1 - std::pow(beta2, t),
                                 grad_scale.item<double>()};
  DISPATCH(param, "adamw_", [&] {
    at::parallel_for(0, param.numel(), kGrain, [&](int64_t begin, int64_t end) {
      trimaran::adamw(param.data_ptr<scalar_t>(), grad.const_data_ptr<scalar_t>(), exp_avg.data_ptr<scalar_t>(),
                      exp_avg_sq.data_ptr<scalar_t>(), begin, end, settings);
    });
  });
}

Tensor sum_of_squares(const Tensor& x) {
  TORCH_CHECK(x.is_contiguous(), "sum_of_squares takes a contiguous tensor");
  const int64_t n = x.numel(), blocks = (n + kGrain - 1) / kGrain;
  std::vector<double> partial(blocks, 0.0);  // added in order, so the result does not depend on the threads
  DISPATCH(x, "sum_of_squares", [&] {
    at::parallel_for(0, blocks, 1, [&](int64_t begin, int64_t end) {
      for (int64_t block = begin; block < end; ++block)
        partial[block] =
            trimaran::sum_of_squares(x.const_data_ptr<scalar_t>(), block * kGrain, std::min(n, (block + 1) * kGrain));
    });
  });
  double total = 0;
  for (double part : partial) total += part;
  return at::scalar_tensor(total, x.options().dtype(at::kDouble));
}

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

Tensor dropout(const Tensor& x, int64_t key, const Tensor& rows, int64_t width, int64_t column, int64_t threshold,
               double scale) {
  const int64_t f = x.size(-1);
  TORCH_CHECK(x.is_contiguous() && rows.is_contiguous() && rows.scalar_type() == at::kLong &&
                  rows.numel() * f == x.numel(),
              "dropout takes contiguous x [..., f] and int64 rows of x.shape[:-1]");
  Tensor y = at::empty_like(x);
  DISPATCH(x, "dropout", [&] {
    at::parallel_for(0, rows.numel(), rows_grain(f), [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row)
        trimaran::dropout_run(x.const_data_ptr<scalar_t>() + row * f, y.data_ptr<scalar_t>() + row * f,
                              static_cast<uint64_t>(key), rows.const_data_ptr<int64_t>()[row] * width + column, f,
                              static_cast<uint32_t>(threshold), scale);
    });
  });
  return y;
}

}  // namespace

TORCH_LIBRARY(trimaran, m) {
  m.def("rms_norm(Tensor x, Tensor weight, float eps) -> (Tensor, Tensor)");
  m.def("rms_norm_backward(Tensor dy, Tensor x, Tensor weight, Tensor rstd) -> (Tensor, Tensor)");
  m.def("rope(Tensor x, Tensor cos, Tensor sin) -> Tensor");
  m.def("swiglu(Tensor x) -> Tensor");
  m.def("swiglu_backward(Tensor dy, Tensor x) -> Tensor");
  m.def("ce_stats(Tensor logits, Tensor targets, int start) -> (Tensor, Tensor, Tensor)");
  m.def(
      "ce_grad_(Tensor(a!) logits, Tensor targets, int start, Tensor max, Tensor log_sum, Tensor scale) "
      "-> Tensor(a!)");
  m.def(
      "adamw_(Tensor(a!) param, Tensor grad, Tensor(b!) exp_avg, Tensor(c!) exp_avg_sq, float lr, float beta1, float "
      "beta2, float eps, float weight_decay, Tensor step, Tensor grad_scale, Tensor keep) -> ()");
  m.def("sum_of_squares(Tensor x) -> Tensor");
  m.def(
      "fill_normal_(Tensor(a!) out, int key, int[] global_shape, int[] offsets, float std, float mean) "
      "-> Tensor(a!)");
  m.def("dropout(Tensor x, int key, Tensor rows, int width, int column, int threshold, float scale) -> Tensor");
}

TORCH_LIBRARY_IMPL(trimaran, CPU, m) {
  m.impl("rms_norm", &rms_norm);
  m.impl("rms_norm_backward", &rms_norm_backward);
  m.impl("rope", &rope);
  m.impl("swiglu", &swiglu);
  m.impl("swiglu_backward", &swiglu_backward);
  m.impl("ce_stats", &ce_stats);
  m.impl("ce_grad_", &ce_grad_);
  m.impl("adamw_", &adamw_);
  m.impl("sum_of_squares", &sum_of_squares);
  m.impl("fill_normal_", &fill_normal_);
  m.impl("dropout", &dropout);
}

// Importing engine._C loads this library, which registers the operators above; the module itself is empty.
extern "C" PyObject* PyInit__C() {
  static PyModuleDef module = {PyModuleDef_HEAD_INIT, "_C", nullptr, -1, nullptr};
  return PyModule_Create(&module);
}
