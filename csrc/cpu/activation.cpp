// The backward pass computes the function again.
#include "activation.h"

#include <algorithm>
#include <type_traits>

#include "vector_math.h"

namespace trimaran {
namespace {

// A function and its derivative at one point; a loop that uses one of them computes only that.
template <typename T>
struct Point {
  T value, slope;
};

struct Silu {
  template <typename T>
  TRIMARAN_INLINE Point<T> at(T z) {
    const T sigmoid = fast_sigmoid(z), value = z * sigmoid;
    return {value, sigmoid + value * (T(1) - sigmoid)};
  }
};

struct Gelu {
  template <typename T>
  TRIMARAN_INLINE Point<T> at(T z) {
    const Normal<T> normal = fast_normal(z);
    return {z * normal.below, normal.below + z * normal.density};
  }
};

// 0.5 z (1 + tanh(u)) = z sigmoid(2u) with 2u = z (a + b z^2).
struct GeluTanh {
  template <typename T>
  TRIMARAN_INLINE Point<T> at(T z) {
    const T a = T(1.5957691216057308), b = T(0.0713548162726009);  // 2 sqrt(2 / pi), and 0.044715 times it
    const T near = at_least(T(-32), at_most(T(32), z));  // the sigmoid is 0 or 1 beyond, and squares stay finite
    const T square = near * near, sigmoid = fast_sigmoid(near * (a + b * square));
    return {z * sigmoid, sigmoid + near * sigmoid * (T(1) - sigmoid) * (a + 3 * b * square)};
  }
};

struct Relu {
  template <typename T>
  TRIMARAN_INLINE Point<T> at(T z) {
    return {z < T(0) ? T(0) : z, z <= T(0) ? T(0) : T(1)};
  }
};

// arXiv 2109.08668
struct SquaredRelu {
  template <typename T>
  TRIMARAN_INLINE Point<T> at(T z) {
    const T relu = z < T(0) ? T(0) : z;
    return {relu * relu, 2 * relu};
  }
};

// The functions work on tiles of Wide numbers in the first-level cache; only loading and storing know the types in
// memory. Tiles of float and double without a bias are where they lie in memory: nothing is copied.
constexpr int64_t kTile = 512;

template <typename T>
TRIMARAN_INLINE const Wide<T>* load(const T* x, const T* bias, Wide<T>* tile, int64_t count) {
  if (bias != nullptr) {
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) tile[i] = widen(x[i]) + widen(bias[i]);
    return tile;
  }
  if constexpr (std::is_same_v<T, Wide<T>>) {
    return x;
  } else {
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) tile[i] = widen(x[i]);
    return tile;
  }
}

// Where to compute what belongs at `to`, and how it gets there.
template <typename T>
TRIMARAN_INLINE Wide<T>* place(T* to, Wide<T>* tile) {
  if constexpr (std::is_same_v<T, Wide<T>>) return to;
  return tile;
}
template <typename T>
TRIMARAN_INLINE void store(const Wide<T>* tile, T* to, int64_t count) {
  if constexpr (!std::is_same_v<T, Wide<T>>) {
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) narrow(tile[i], to[i]);
  }
}
template <typename W>
TRIMARAN_INLINE void add(const W* tile, W* sum, int64_t count) {
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) sum[i] += tile[i];
}

// `up` is null unless the activation is gated.
template <typename F, typename W>
TRIMARAN_INLINE void apply(const W* z, const W* up, W* y, int64_t count) {
  if (up != nullptr) {
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) y[i] = F::at(z[i]).value * up[i];
  } else {
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) y[i] = F::at(z[i]).value;
  }
}
template <typename F, typename W>
TRIMARAN_INLINE void apply_backward(const W* dy, const W* z, const W* up, W* dz, W* dup, int64_t count) {
  if (up != nullptr) {
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) {
      const Point<W> point = F::at(z[i]);
      dz[i] = dy[i] * point.slope * up[i];  // dy * up may overflow where the gate is closed
      dup[i] = dy[i] * point.value;
    }
  } else {
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) dz[i] = dy[i] * F::at(z[i]).slope;
  }
}

// Functions of their own, so that all types in memory share the code for a tile.
template <typename W>
TRIMARAN_CLONES void apply(Activation kind, const W* z, const W* up, W* y, int64_t count) {
  switch (kind) {
    case Activation::swiglu: return apply<Silu>(z, up, y, count);
    case Activation::geglu:
    case Activation::gelu: return apply<Gelu>(z, up, y, count);
    case Activation::geglu_tanh:
    case Activation::gelu_tanh: return apply<GeluTanh>(z, up, y, count);
    case Activation::reglu:
    case Activation::relu: return apply<Relu>(z, up, y, count);
    case Activation::squared_relu: return apply<SquaredRelu>(z, up, y, count);
  }
}
template <typename W>
TRIMARAN_CLONES void apply_backward(Activation kind, const W* dy, const W* z, const W* up, W* dz, W* dup,
                                    int64_t count) {
  switch (kind) {
    case Activation::swiglu: return apply_backward<Silu>(dy, z, up, dz, dup, count);
    case Activation::geglu:
    case Activation::gelu: return apply_backward<Gelu>(dy, z, up, dz, dup, count);
    case Activation::geglu_tanh:
    case Activation::gelu_tanh: return apply_backward<GeluTanh>(dy, z, up, dz, dup, count);
    case Activation::reglu:
    case Activation::relu: return apply_backward<Relu>(dy, z, up, dz, dup, count);
    case Activation::squared_relu: return apply_backward<SquaredRelu>(dy, z, up, dz, dup, count);
  }
}

template <typename T>
TRIMARAN_INLINE void forward(Activation kind, const T* x, const T* bias, T* y, int64_t begin, int64_t end, int64_t f) {
  using W = Wide<T>;
  const bool gated = is_gated(kind);
  W gate_tile[kTile], up_tile[kTile], y_tile[kTile];
  for (int64_t row = begin; row < end; ++row) {
    for (int64_t first = 0; first < f; first += kTile) {
      const int64_t count = std::min(kTile, f - first);
      const T *xr = x + row * (gated ? 2 * f : f) + first, *b = bias == nullptr ? nullptr : bias + first;
      const W* z = load(xr, b, gate_tile, count);
      const W* up = gated ? load(xr + f, b == nullptr ? b : b + f, up_tile, count) : nullptr;
      T* to = y + row * f + first;
      W* result = place(to, y_tile);
      apply(kind, z, up, result, count);
      store(result, to, count);
    }
  }
}

template <typename T>
TRIMARAN_INLINE void backward(Activation kind, const T* dy, const T* x, const T* bias, T* dx, Wide<T>* dbias,
                              int64_t begin, int64_t end, int64_t f) {
  using W = Wide<T>;
  const bool gated = is_gated(kind);
  const int64_t width = gated ? 2 * f : f;
  W gate_tile[kTile], up_tile[kTile], dy_tile[kTile], dz_tile[kTile], dup_tile[kTile];
  for (int64_t row = begin; row < end; ++row) {
    for (int64_t first = 0; first < f; first += kTile) {
      const int64_t count = std::min(kTile, f - first);
      const T *xr = x + row * width + first, *b = bias == nullptr ? nullptr : bias + first;
      const W *z = load(xr, b, gate_tile, count), *g = load<T>(dy + row * f + first, nullptr, dy_tile, count);
      const W* up = gated ? load(xr + f, b == nullptr ? b : b + f, up_tile, count) : nullptr;
      T *to = dx + row * width + first, *to_up = to + f;
      W *dz = place(to, dz_tile), *dup = gated ? place(to_up, dup_tile) : nullptr;
      apply_backward(kind, g, z, up, dz, dup, count);
      store(dz, to, count);
      if (gated) store(dup, to_up, count);
      if (bias != nullptr) add(dz, dbias + first, count);
      if (bias != nullptr && gated) add(dup, dbias + f + first, count);
    }
  }
}

}  // namespace

template <typename T>
TRIMARAN_CLONES void activation(Activation kind, const T* x, const T* bias, T* y, int64_t begin, int64_t end,
                                int64_t f) {
  forward(kind, x, bias, y, begin, end, f);
}

template <typename T>
TRIMARAN_CLONES void activation_backward(Activation kind, const T* dy, const T* x, const T* bias, T* dx, Wide<T>* dbias,
                                         int64_t begin, int64_t end, int64_t f) {
  if (bias != nullptr) std::fill_n(dbias, is_gated(kind) ? 2 * f : f, 0);
  backward(kind, dy, x, bias, dx, dbias, begin, end, f);
}

#define TRIMARAN_ACTIVATION(T)                                                                   \
  template void activation(Activation, const T*, const T*, T*, int64_t, int64_t, int64_t);       \
  template void activation_backward(Activation, const T*, const T*, const T*, T*, Wide<T>*, int64_t, int64_t, int64_t);
TRIMARAN_ACTIVATION(float)
TRIMARAN_ACTIVATION(double)
TRIMARAN_ACTIVATION(BFloat16)
TRIMARAN_ACTIVATION(Half)

}  // namespace trimaran
