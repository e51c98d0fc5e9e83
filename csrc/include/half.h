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
using Half = _Float16;

TRIMARAN_INLINE float widen(float x) { return x; }
TRIMARAN_INLINE double widen(double x) { return x; }
TRIMARAN_INLINE float widen(Half x) { return static_cast<float>(x); }
TRIMARAN_INLINE float widen(BFloat16 x) {
  const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
  float wide;
  memcpy(&wide, &bits, sizeof wide);
  return wide;
}

TRIMARAN_INLINE void narrow(float x, float& to) { to = x; }
TRIMARAN_INLINE void narrow(double x, double& to) { to = x; }
TRIMARAN_INLINE void narrow(float x, Half& to) { to = static_cast<Half>(x); }
TRIMARAN_INLINE void narrow(float x, BFloat16& to) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  to.bits = static_cast<uint16_t>(x != x ? (bits >> 16) | 0x40u : rounded);  // rounding must not carry NaN away
}

}  // namespace trimaran
