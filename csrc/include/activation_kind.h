// The feed-forward non-linearities: those that are gated (arXiv 2002.05202), then the plain ones.
#pragma once

namespace trimaran {

enum class Activation { swiglu, geglu, geglu_tanh, reglu, gelu, gelu_tanh, relu, squared_relu };

inline bool is_gated(Activation kind) { return kind <= Activation::reglu; }

}  // namespace trimaran
