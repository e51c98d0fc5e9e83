// Philox-4x32-10 and the normal distribution from it, for host and device.
//
// Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC11); inverse normal: Wichura, AS241 (1988).
// Only correctly rounded operations are used and no product may be contracted with a sum (-ffp-contract=off,
// nvcc -fmad=false), so that the numbers equal engine/ops/philox.py's to the last bit on every machine.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)
#define TRIMARAN_HD __host__ __device__ __forceinline__
#else
#define TRIMARAN_HD inline __attribute__((always_inline))
#endif

namespace trimaran {

struct Words {
  uint32_t w[4];
};

// The four output words of counter (low, high, 0, 0) under a 64-bit key.
TRIMARAN_HD Words philox(uint64_t counter, uint64_t key) {
  uint32_t c0 = static_cast<uint32_t>(counter), c1 = static_cast<uint32_t>(counter >> 32), c2 = 0, c3 = 0;
  uint32_t k0 = static_cast<uint32_t>(key), k1 = static_cast<uint32_t>(key >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = static_cast<uint64_t>(c0) * 0xD2511F53u, p1 = static_cast<uint64_t>(c2) * 0xCD9E8D57u;
    const uint32_t n0 = static_cast<uint32_t>(p1 >> 32) ^ c1 ^ k0, n2 = static_cast<uint32_t>(p0 >> 32) ^ c3 ^ k1;
    c1 = static_cast<uint32_t>(p1);
    c3 = static_cast<uint32_t>(p0);
    c0 = n0;
    c2 = n2;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return {{c0, c1, c2, c3}};
}

TRIMARAN_HD double to_unit(uint32_t bits) { return (static_cast<double>(bits) + 0.5) * 0x1p-32; }

// Natural logarithm of a positive, normal double: e ln 2 + 2 artanh((m - 1) / (m + 1)) with m in [sqrt(1/2), sqrt(2)).
TRIMARAN_HD double plain_log(double x) {
  uint64_t raw;
  memcpy(&raw, &x, sizeof raw);
  const uint64_t fraction = (raw & 0x000FFFFFFFFFFFFFull) | 0x3FE0000000000000ull;  // mantissa in [0.5, 1)
  double mantissa;
  memcpy(&mantissa, &fraction, sizeof mantissa);
  // the biased exponent becomes a double through the bits of 2^52 + exponent: no 64-bit integer conversion needed
  const uint64_t shifted = (raw >> 52) | 0x4330000000000000ull;
  double power;
  memcpy(&power, &shifted, sizeof power);
  power -= 4503599627370496.0 + 1022.0;
  const bool small = mantissa < 0.7071067811865476;
  mantissa = small ? mantissa * 2.0 : mantissa;
  power = small ? power - 1.0 : power;
  const double z = (mantissa - 1.0) / (mantissa + 1.0), zz = z * z;
  double series = 1.0 / 23;
  series = series * zz + 1.0 / 21;
  series = series * zz + 1.0 / 19;
  series = series * zz + 1.0 / 17;
  series = series * zz + 1.0 / 15;
  series = series * zz + 1.0 / 13;
  series = series * zz + 1.0 / 11;
  series = series * zz + 1.0 / 9;
  series = series * zz + 1.0 / 7;
  series = series * zz + 1.0 / 5;
  series = series * zz + 1.0 / 3;
  series = series * zz + 1.0;
  return power * 0.6931471805599453 + 2.0 * z * series;
}

// Square root of x in [0.5, 23] by Heron's rule, the same steps as the reference takes.
TRIMARAN_HD double plain_sqrt(double x) {
  double root = 0.5 * (x + 1.0);
  for (int step = 0; step < 6; ++step) root = 0.5 * (root + x / root);
  return root;
}

TRIMARAN_HD double horner(double x, double a0, double a1, double a2, double a3, double a4, double a5, double a6,
                          double a7) {
  return ((((((a7 * x + a6) * x + a5) * x + a4) * x + a3) * x + a2) * x + a1) * x + a0;
}

// The normal quantile of u in (0, 1), in its two parts: for |u - 1/2| <= 0.425, and for the tails beyond.
TRIMARAN_HD bool in_tail(double u) { return fabs(u - 0.5) > 0.425; }

TRIMARAN_HD double normal_centre(double u) {
  const double q = u - 0.5, s = 0.180625 - q * q;
  return q *
         horner(s, 3.3871328727963666080e0, 1.3314166789178437745e2, 1.9715909503065514427e3, 1.3731693765509461125e4,
                4.5921953931549871457e4, 6.7265770927008700853e4, 3.3430575583588128105e4, 2.5090809287301226727e3) /
         horner(s, 1.0, 4.2313330701600911252e1, 6.8718700749205790830e2, 5.3941960214247511077e3,
                2.1213794301586595867e4, 3.9307895800092710610e4, 2.8729085735721942674e4, 5.2264952788528545610e3);
}

TRIMARAN_HD double normal_tail(double u) {
  const double r = plain_sqrt(-plain_log(u < 0.5 ? u : 1.0 - u)) - 1.6;
  const double size =
      horner(r, 1.42343711074968357734e0, 4.63033784615654529590e0, 5.76949722146069140550e0,
             3.64784832476320460504e0, 1.27045825245236838258e0, 2.41780725177450611770e-1,
             2.27238449892691845833e-2, 7.74545014278341407640e-4) /
      horner(r, 1.0, 2.05319162663775882187e0, 1.67638483018380384940e0, 6.89767334985100004550e-1,
             1.48103976427480074590e-1, 1.51986665636164571966e-2, 5.47593808499534494600e-4,
             1.05075007164441684324e-9);
  return u < 0.5 ? -size : size;
}

// A standard normal from one 32-bit word, by the inverse distribution function.
TRIMARAN_HD double to_normal(uint32_t bits) {
  const double u = to_unit(bits);
  return in_tail(u) ? normal_tail(u) : normal_centre(u);
}

}  // namespace trimaran
