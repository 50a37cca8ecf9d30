// What a divergence D(p, q) is, once for the CPU and for CUDA: of each class its value and its slope.
//
//   D(p, q) = sum value,   dD/d(s/tau) = slope - q sum slope,   slope = q dD/dq
//
// p is the teacher's probability, q the student's. V is a float, a double or a vector of them, F its scalar; `log` takes
// the natural logarithm of a V that is at least the smallest normal number. mse compares logits: it is not here.
// The same formulas in torch: divergence_value and divergence_slope of nanonet/reference.py.
#pragma once

#include "problem.h"

#if defined(__CUDACC__)
#define NN_SHARED __host__ __device__ __forceinline__
#else
#define NN_SHARED inline __attribute__((always_inline))
#endif

namespace nanonet {

// One class of a teacher and a student. The probabilities may have vanished where their logarithms have not.
template <class V>
struct ClassPair {
  V log_p, log_q, p, q;
};

template <class V>
struct ClassShare {
  V value, slope;
};

// weight * x, where 0 * (-inf) is 0
template <class V>
NN_SHARED V times(V weight, V x) {
  return weight * (weight == 0 ? V{} : x);
}

// a x + (1 - a) y of two probabilities, above 0: where both have vanished, whatever it is multiplied by is 0
template <class V, class F>
NN_SHARED V mixture(F a, V x, V y) {
  constexpr F kSmallest = sizeof(F) == 4 ? F(0x1p-126) : F(0x1p-1022);
  const V m = a * x + (1 - a) * y;
  return m < kSmallest ? V{} + kSmallest : m;
}

template <int64_t kDivergence>
struct DivergenceOf;

template <>
struct DivergenceOf<kKl> {  // KL(p, q)
  template <class V, class F, class Log>
  static NN_SHARED ClassShare<V> share(const ClassPair<V>& c, F, Log) {
    return {times(c.p, c.log_p - c.log_q), -c.p};
  }
};

template <>
struct DivergenceOf<kCrossEntropy> {  // -sum p log q
  template <class V, class F, class Log>
  static NN_SHARED ClassShare<V> share(const ClassPair<V>& c, F, Log) {
    return {-times(c.p, c.log_q), -c.p};
  }
};

template <>
struct DivergenceOf<kReverseKl> {  // KL(q, p)
  template <class V, class F, class Log>
  static NN_SHARED ClassShare<V> share(const ClassPair<V>& c, F, Log) {
    const V value = times(c.q, c.log_q - c.log_p);
    return {value, value};
  }
};

template <>
struct DivergenceOf<kJs> {  // beta KL(p, m) + (1 - beta) KL(q, m), m = beta p + (1 - beta) q
  template <class V, class F, class Log>
  static NN_SHARED ClassShare<V> share(const ClassPair<V>& c, F beta, Log log) {
    const V log_m = log(mixture(beta, c.p, c.q));
    const V slope = (1 - beta) * times(c.q, c.log_q - log_m);
    return {beta * times(c.p, c.log_p - log_m) + slope, slope};
  }
};

template <>
struct DivergenceOf<kSymmetricKl> {  // beta KL(p, q) + (1 - beta) KL(q, p)
  template <class V, class F, class Log>
  static NN_SHARED ClassShare<V> share(const ClassPair<V>& c, F beta, Log) {
    const V apart = c.log_q - c.log_p;
    const V reverse = (1 - beta) * times(c.q, apart);
    return {reverse - beta * times(c.p, apart), reverse - beta * c.p};
  }
};

template <>
struct DivergenceOf<kSkewKl> {  // KL(p, m), m = beta p + (1 - beta) q
  template <class V, class F, class Log>
  static NN_SHARED ClassShare<V> share(const ClassPair<V>& c, F beta, Log log) {
    const V m = mixture(beta, c.p, c.q), log_m = log(m);
    return {times(c.p, c.log_p - log_m), (beta - 1) * c.q * (c.p / m)};
  }
};

template <>
struct DivergenceOf<kSkewReverseKl> {  // KL(q, m), m = beta q + (1 - beta) p
  template <class V, class F, class Log>
  static NN_SHARED ClassShare<V> share(const ClassPair<V>& c, F beta, Log log) {
    const V m = mixture(beta, c.q, c.p), log_m = log(m);
    const V value = times(c.q, c.log_q - log_m);
    return {value, value - beta * c.q * (c.q / m)};
  }
};

template <>
struct DivergenceOf<kTv> {  // sum |p - q| / 2
  template <class V, class F, class Log>
  static NN_SHARED ClassShare<V> share(const ClassPair<V>& c, F, Log) {
    const V apart = c.p - c.q, half = F(0.5) * c.q;
    const V zero = apart - apart;  // NaN where either is
    return {F(0.5) * (apart > 0 ? apart : -apart), apart > 0 ? -half : apart < 0 ? half : zero};
  }
};

// Calls body.operator()<number>() for the divergence of that number; false where there is none, or it is mse.
template <class Body>
NN_SHARED bool with_divergence(int64_t divergence, Body body) {
  switch (divergence) {
    case kKl: return body.template operator()<kKl>(), true;
    case kReverseKl: return body.template operator()<kReverseKl>(), true;
    case kJs: return body.template operator()<kJs>(), true;
    case kSymmetricKl: return body.template operator()<kSymmetricKl>(), true;
    case kSkewKl: return body.template operator()<kSkewKl>(), true;
    case kSkewReverseKl: return body.template operator()<kSkewReverseKl>(), true;
    case kTv: return body.template operator()<kTv>(), true;
    case kCrossEntropy: return body.template operator()<kCrossEntropy>(), true;
    default: return false;
  }
}

}  // namespace nanonet
