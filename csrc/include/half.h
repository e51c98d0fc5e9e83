// 16-bit floating point numbers as they lie in memory. Kernels compute in Wide<T> and round once, to nearest even, when
// they store; loops over `widen` and `narrow` vectorise.
#pragma once

#include <cstdint>
#include <cstring>

#include "kernels.h"
#include "wide.h"

namespace trimaran {

struct BFloat16 {
  uint16_t bits;
};
struct Half {
  uint16_t bits;
};

TRIMARAN_INLINE uint32_t bits_of(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  return bits;
}
TRIMARAN_INLINE float float_of(uint32_t bits) {
  float x;
  memcpy(&x, &bits, sizeof x);
  return x;
}

// Halves are converted by integer arithmetic, because compilers keep loops over _Float16 scalar.
TRIMARAN_INLINE float widen(float x) { return x; }
TRIMARAN_INLINE double widen(double x) { return x; }
TRIMARAN_INLINE float widen(BFloat16 x) { return float_of(static_cast<uint32_t>(x.bits) << 16); }
TRIMARAN_INLINE float widen(Half x) {
  const uint32_t shifted = (x.bits & 0x7fffu) << 13, exponent = shifted & (0x1fu << 23), rebias = 112u << 23;
  const uint32_t normal = shifted + rebias, special = normal + rebias;  // special: infinity and NaN
  const uint32_t subnormal = bits_of(float_of(normal + (1u << 23)) - float_of(rebias + (1u << 23)));
  const uint32_t magnitude = exponent == 0 ? subnormal : (exponent == 0x1fu << 23 ? special : normal);
  return float_of(magnitude | (x.bits & 0x8000u) << 16);
}

TRIMARAN_INLINE void narrow(float x, float& to) { to = x; }
TRIMARAN_INLINE void narrow(double x, double& to) { to = x; }
TRIMARAN_INLINE void narrow(float x, Half& to) {
  const uint32_t bits = bits_of(x), magnitude = bits & 0x7fffffffu, rebias = 112u << 23, infinity = 0x7f800000u;
  const uint32_t largest = 0x47800000u;  // 65536, whose bits become those of infinity; smaller numbers may round up to it
  const uint32_t capped = magnitude < largest ? magnitude : largest;
  const uint32_t normal = (capped - rebias + 0xfffu + ((capped >> 13) & 1u)) >> 13;
  const uint32_t subnormal = bits_of(float_of(magnitude) + 0.5f) - bits_of(0.5f);  // the addition rounds
  const uint32_t finite = magnitude < rebias + (1u << 23) ? subnormal : normal;
  const uint32_t half = magnitude > infinity ? 0x7e00u | (magnitude >> 13 & 0x3ffu) : finite;
  to.bits = static_cast<uint16_t>(half | (bits >> 16 & 0x8000u));
}
TRIMARAN_INLINE void narrow(float x, BFloat16& to) {
  const uint32_t bits = bits_of(x);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  to.bits = static_cast<uint16_t>(x != x ? (bits >> 16) | 0x40u : rounded);  // rounding must not carry NaN away
}

}  // namespace trimaran
