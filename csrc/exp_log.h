// Exponential and logarithms on vectors, no tables, no branches.
//
// Bounds, measured against long double by tests/test_exp_log.cpp:
//   exp_scaled            3 + |x/tau| ulp, as though the temperature were off by half an ulp; as much again where
//                         multiply-add is not fused (baseline on x86)
//   log_of                2 ulp of its dtype from the smallest normal number on, half an ulp of 1 near 1
#pragma once

#include "vec.h"

namespace nanonet::NANONET_ISA {

// e^(x/tau) is 2^(x c), c = log2(e)/tau: the division by the temperature costs nothing. That c is rounded shifts the
// temperature by half an ulp, for all classes alike: softmax in torch rounds x/tau itself.
template <class F>
NN_INLINE F exponent_factor(double temperature) {
  return F(0x1.71547652b82fep0 / temperature);
}

template <class F>
struct Exp2;  // minimax polynomial of 2^f on [-1/2, 1/2] that is 1 at 0, and the constants of its dtype

template <>
struct Exp2<float> {
  static constexpr float c[] = {1.0f,
                                0x1.62e4291fea3e7p-1f,
                                0x1.ebf9bb85df582p-3f,
                                0x1.c6b7530251157p-5f,
                                0x1.3cea889b317c2p-7f,
                                0x1.5bba0c9fd0c5ap-10f};
  static constexpr float round = 0x1.8p23f, lowest = -125.0f, vanished = -180.0f;
  static constexpr int mantissa = 23;
};

template <>
struct Exp2<double> {
  static constexpr double c[] = {1.0,
                                 0x1.62e42fefa39efp-1,
                                 0x1.ebfbdff82c5adp-3,
                                 0x1.c6b08d7049fd1p-5,
                                 0x1.3b2ab6fb9f413p-7,
                                 0x1.5d87fe78cf260p-10,
                                 0x1.43091310bf66dp-13,
                                 0x1.ffcbfba7bc9a1p-17,
                                 0x1.62bfc3c1d2153p-20,
                                 0x1.b5267882d5309p-24,
                                 0x1.e620fb67ac6ddp-28,
                                 0x1.e7aa1c12faa3cp-32};
  static constexpr double round = 0x1.8p52, lowest = -1021.0, vanished = -1200.0;
  static constexpr int mantissa = 52;
};

// x c = n + f, n an integer: y is 2^f, and n stands in the low bits of `shifted`.
template <class F>
struct Power {
  Vec<F> shifted, n, y;
};

template <class F>
NN_INLINE Power<F> power_of_two(Vec<F> x, F c) {
  using E = Exp2<F>;
  const Vec<F> shifted = x * c + E::round;
  const Vec<F> n = shifted - E::round;
  const Vec<F> f = x * c - n;  // one rounding where multiply-add is fused
  constexpr int degree = int(sizeof(E::c) / sizeof(F)) - 1;
  Vec<F> y = splat(E::c[degree]);
#pragma GCC unroll 16
  for (int i = degree - 1; i >= 0; --i) y = y * f + E::c[i];
  return {shifted, n, y};
}

// y 2^n, where that is a normal number
template <class F>
NN_INLINE Vec<F> scaled(const Power<F>& power) {
#if defined(__AVX512F__)
  if constexpr (sizeof(F) == 4)
    return (Vec<F>)_mm512_scalef_ps((__m512)power.y, (__m512)power.n);
  else
    return (Vec<F>)_mm512_scalef_pd((__m512d)power.y, (__m512d)power.n);
#else
  using U = Vec<std::make_unsigned_t<Bits<F>>>;  // the integer's sign leaves at the top
  return (Vec<F>)((U)power.y + ((U)power.shifted << Exp2<F>::mantissa));
#endif
}

// 2^(x c) for x <= 0, or not far above. -inf gives 0, NaN gives NaN, and what would be denormal may be 0.
template <class F>
NN_INLINE Vec<F> exp_scaled(Vec<F> x, F c) {
  using E = Exp2<F>;
  const Power<F> power = power_of_two<F>(larger<F>(splat(E::vanished / c), x), c);
#if defined(__AVX512F__)
  return scaled<F>(power);
#else
  return power.n < E::lowest ? Vec<F>{} : scaled<F>(power);
#endif
}

// 2^(x c) for kNearLowest <= x c < kNearLowest + kNear, nothing to mask. Where x c lies outside, or is NaN, the value is
// anything and bits of `outside` from kNear on are set.
constexpr int kNear = 128, kNearLowest = -120;

template <class F>
NN_INLINE Vec<F> exp_near(Vec<F> x, F c, Vec<Bits<F>>& outside) {
  const Power<F> power = power_of_two<F>(x, c);
  using U = std::make_unsigned_t<Bits<F>>;
  outside |= (Vec<Bits<F>>)(((Vec<U>)power.shifted + U(-kNearLowest)) ^ (Vec<U>)splat(Exp2<F>::round));
  return scaled<F>(power);
}

template <class I>
NN_INLINE bool all_inside(I outside) {
  return (fold_lanes(outside, [](auto a, auto b) __attribute__((always_inline)) { return a | b; }) & -kNear) == 0;
}

// log x for x > 0, normal and finite; NaN where x is NaN. x = 2^n m with m in [sqrt(1/2), sqrt(2)); W: double, or a vector.
template <class W>
  requires(!std::is_same_v<W, Vec<float>>)
NN_INLINE W log_of(W x) {
  using I = decltype(x > x);
  const I bits = (I)x;
  const I n = (bits - 0x3FE6A09E667F3BCD) >> 52;
  const W m = (W)(bits - (n << 52));
  const W s = (m - 1.0) / (m + 1.0), s2 = s * s;
  W y = W{} + 1.0 / 19;
#pragma GCC unroll 16
  for (int i = 8; i >= 0; --i) y = y * s2 + 1.0 / (2 * i + 1);
  const W log = __builtin_convertvector(n, W) * 0.693147180559945309 + 2.0 * s * y;
  return x == x ? log : x;
}

NN_INLINE double log_of(double x) { return __builtin_log(x); }

// f = m - 1: f - f^2/2 + f^3 P(f), P by Cephes' logf; no division.
NN_INLINE Vec<float> log_of(Vec<float> x) {
  using I = Vec<int32_t>;
  const I bits = (I)x, n = (bits - 0x3F3504F3) >> 23;
  const Vec<float> f = (Vec<float>)(bits - (n << 23)) - 1.0f, power = __builtin_convertvector(n, Vec<float>);
  constexpr float c[] = {3.3333331174e-1f,  -2.4999993993e-1f, 2.0000714765e-1f,  -1.6668057665e-1f, 1.4249322787e-1f,
                         -1.2420140846e-1f, 1.1676998740e-1f,  -1.1514610310e-1f, 7.0376836292e-2f};
  Vec<float> y = splat(c[8]);
#pragma GCC unroll 16
  for (int i = 7; i >= 0; --i) y = y * f + c[i];
  y = y * f * (f * f) + power * -2.12194440e-4f - 0.5f * (f * f);  // log 2 in two parts
  const Vec<float> log = power * 0.693359375f + (f + y);
  return x == x ? log : x;
}

}  // namespace nanonet::NANONET_ISA
