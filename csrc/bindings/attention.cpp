#include "attention.h"

#include <ATen/ops/max.h>
#include <ATen/ops/min.h>

#include <limits>

#include "binding.h"
#include "checks/key_ranges.h"

namespace {

// What the tensors of one call have in common, checked once.
struct Call {
  int64_t b, queries, keys, heads, kv_heads, d, ranges;
  const int32_t *first, *last;
  const float* slopes;
  double scale;
  int64_t shift;

  Call(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& first_, const Tensor& last_,
       const OptionalTensor& slopes_, double scale_, int64_t shift_)
      : scale(scale_), shift(shift_) {
    for (const Tensor& x : {q, k, v})
      TORCH_CHECK(x.dim() == 4 && (x.stride(3) == 1 || x.size(3) <= 1), "attention takes [b, s, heads, d], adjacent d");
    same(q, k, "attention: queries and keys");
    same(q, v, "attention: queries and values");
    b = q.size(0), queries = q.size(1), heads = q.size(2), d = q.size(3);
    keys = k.size(1), kv_heads = k.size(2);
    TORCH_CHECK(k.sizes() == v.sizes() && k.size(0) == b && k.size(3) == d, "attention: keys ", k.sizes(),
                " and values ", v.sizes(), " do not fit queries ", q.sizes());
    TORCH_CHECK(kv_heads > 0 && heads % kv_heads == 0, "attention: ", kv_heads, " kv heads for ", heads, " heads");
    check_key_ranges("attention", q, first_, last_, b, queries);
    TORCH_CHECK(first_.numel() == 0 || (first_.min().item<int>() >= 0 && last_.max().item<int>() < keys),
                "attention: ranges reach beyond the ", keys, " keys");
    check_slopes("attention", q, slopes_, heads);
    ranges = first_.size(0);
    first = first_.const_data_ptr<int32_t>(), last = last_.const_data_ptr<int32_t>();
    slopes = optional_input<float>(slopes_);
  }

  trimaran::HeadShape shape(int64_t batch, int64_t head) const {
    const int64_t at = ranges == 1 ? 0 : batch * queries;
    return {queries, keys, d, first + at, last + at, scale, slopes == nullptr ? 0.0 : slopes[head], shift};
  }
};

template <typename T>
trimaran::Rows<const typename Stored<T>::type> rows_of(const Tensor& x, int64_t batch, int64_t head) {
  return {input<T>(x) + batch * x.stride(0) + head * x.stride(2), x.stride(1)};
}
template <typename T>
trimaran::Rows<typename Stored<T>::type> rows_to(const Tensor& x, int64_t batch, int64_t head) {
  return {output<T>(x) + batch * x.stride(0) + head * x.stride(2), x.stride(1)};
}

// How many shares to cut heads into, so that `threads` are done soonest. Each copies its head's keys and values, which
// takes about as long as kCopies queries do.
int64_t shares_for(int64_t pairs, int64_t queries, int64_t threads) {
  constexpr int64_t kCopies = 64;
  int64_t best = 1, least = std::numeric_limits<int64_t>::max();
  for (int64_t shares = 1; shares <= std::max<int64_t>(1, queries / trimaran::kQueryBlock / 2); ++shares) {
    const int64_t turns = (pairs * shares + threads - 1) / threads, time = turns * (queries / shares + kCopies);
    if (time < least) best = shares, least = time;
  }
  return best;
}

std::tuple<Tensor, Tensor> attention(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& first,
                                     const Tensor& last, const OptionalTensor& slopes, double scale, int64_t shift) {
  const Call call(q, k, v, first, last, slopes, scale, shift);
  Tensor out = at::empty({call.b, call.queries, call.heads, call.d}, q.options());
  Tensor lse = at::empty({call.b, call.heads, call.queries}, q.options().dtype(wide(q)));
  if (out.numel() == 0) return {out, lse};
  const int64_t pairs = call.b * call.heads, shares = shares_for(pairs, call.queries, at::get_num_threads());
  DISPATCH_ALL(q, "attention", [&] {
    using W = trimaran::Wide<typename Stored<scalar_t>::type>;
    at::parallel_for(0, pairs * shares, 1, [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; ++task) {
        const int64_t pair = task / shares, batch = pair / call.heads, head = pair % call.heads;
        const int64_t kv = head / (call.heads / call.kv_heads);
        trimaran::attention_forward<typename Stored<scalar_t>::type, W>(
            call.shape(batch, head), rows_of<scalar_t>(q, batch, head), rows_of<scalar_t>(k, batch, kv),
            rows_of<scalar_t>(v, batch, kv), rows_to<scalar_t>(out, batch, head),
            lse.data_ptr<W>() + pair * call.queries, {task % shares, shares});
      }
    });
  });
  return {out, lse};
}

// Fills dq, dk and dv, which may be parts of one tensor.
void attention_backward_(const Tensor& dout, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& out,
                         const Tensor& lse, const Tensor& first, const Tensor& last, const OptionalTensor& slopes,
                         double scale, int64_t shift, Tensor& dq, Tensor& dk, Tensor& dv) {
  const Call call(q, k, v, first, last, slopes, scale, shift);
  TORCH_CHECK(dout.sizes() == out.sizes() && out.sizes() == q.sizes() && lse.is_contiguous() &&
                  lse.numel() == call.b * call.heads * call.queries,
              "attention_backward_: output, its gradient and row statistics do not fit the queries");
  TORCH_CHECK(dq.sizes() == q.sizes() && dk.sizes() == k.sizes() && dv.sizes() == v.sizes(),
              "attention_backward_: gradients do not fit their tensors");
  for (const Tensor& x : {out, dout, dq, dk, dv}) {
    same(q, x, "attention_backward_: queries, output and gradients");
    TORCH_CHECK(x.stride(3) == 1 || call.d <= 1, "attention_backward_ takes [b, s, heads, d], adjacent d");
  }
  if (q.numel() == 0) {  // keys that nobody sees
    dk.zero_();
    dv.zero_();
    return;
  }
  const int64_t group = call.heads / call.kv_heads, pairs = call.b * call.heads;
  // Shares are added up, so their number may depend on the shape alone, not on the threads that happen to be there.
  const int64_t shares = shares_for(pairs, call.queries, 2);
  Tensor parts = at::empty({2, pairs * shares, call.keys, call.d}, lse.options());
  DISPATCH_ALL(q, "attention_backward_", [&] {
    using K = typename Stored<scalar_t>::type;
    using W = trimaran::Wide<K>;
    const auto part = [&](int64_t which, int64_t task) {
      return parts.data_ptr<W>() + (which * pairs * shares + task) * call.keys * call.d;
    };
    at::parallel_for(0, pairs * shares, 1, [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; ++task) {
        const int64_t pair = task / shares, batch = pair / call.heads, head = pair % call.heads, kv = head / group;
        trimaran::attention_backward<K, W>(
            call.shape(batch, head), rows_of<scalar_t>(q, batch, head), rows_of<scalar_t>(k, batch, kv),
            rows_of<scalar_t>(v, batch, kv), rows_of<scalar_t>(out, batch, head), rows_of<scalar_t>(dout, batch, head),
            lse.const_data_ptr<W>() + pair * call.queries, rows_to<scalar_t>(dq, batch, head),
            {part(0, task), call.d}, {part(1, task), call.d}, {task % shares, shares});
      }
    });
    at::parallel_for(0, 2 * call.b * call.kv_heads, 1, [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; ++task) {
        const int64_t which = task % 2, batch = task / 2 / call.kv_heads, kv = task / 2 % call.kv_heads;
        const auto to = rows_to<scalar_t>(which == 0 ? dk : dv, batch, kv);
        const int64_t first = (batch * call.heads + kv * group) * shares;
        trimaran::sum_parts<K, W>(part(which, first), group * shares, call.keys, call.d, to);
      }
    });
  });
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(trimaran, m) {
  m.def(
      "attention(Tensor q, Tensor k, Tensor v, Tensor first, Tensor last, Tensor? slopes, float scale, int shift) "
      "-> (Tensor, Tensor)");
  m.def(
      "attention_backward_(Tensor dout, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, Tensor first, Tensor "
      "last, Tensor? slopes, float scale, int shift, Tensor(a!) dq, Tensor(b!) dk, Tensor(c!) dv) -> ()");
}

TORCH_LIBRARY_IMPL(trimaran, CPU, m) {
  m.impl("attention", &attention);
  m.impl("attention_backward_", &attention_backward_);
}
