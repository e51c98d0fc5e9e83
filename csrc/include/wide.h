// The type that kernels compute in: double for double, float for everything else.
#pragma once

namespace trimaran {

template <typename T>
struct WideOf {
  using type = float;
};
template <>
struct WideOf<double> {
  using type = double;
};
template <typename T>
using Wide = typename WideOf<T>::type;

}  // namespace trimaran
