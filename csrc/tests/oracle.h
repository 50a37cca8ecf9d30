// The loss of one row by its definition, in long double and pair by pair; and arrays of any dtype.
#pragma once

#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "problem.h"

using namespace nanonet;
using Real = long double;
using Values = std::vector<Real>;

constexpr Real kInfinity = std::numeric_limits<Real>::infinity();

// 0 * (-inf) is 0.
inline Real times(Real p, Real x) { return p == 0 ? 0 : p * x; }

inline Values log_softmax(const Values& x, Real temperature) {
  Real top = -kInfinity, sum = 0;
  for (Real value : x) top = std::fmax(top, value);
  for (Real value : x) sum += std::exp((value - top) / temperature);
  Values l(x.size());
  for (size_t c = 0; c < x.size(); ++c) l[c] = (x[c] - top) / temperature - std::log(sum);
  return l;
}

struct Oracle {
  Real ce = 0, teacher = 0, peers = 0;
  Values dstudent;  // for the upstream gradients u[3]
};

// What one class adds to D(p, q), and the derivative of that by log q.
inline void share(Real log_p, Real log_q, int64_t kind, Real beta, Real* value, Real* slope) {
  const Real p = std::exp(log_p), q = std::exp(log_q);
  const auto apart = [](Real log_a, Real a, Real b) { return times(a, log_a - std::log(b)); };  // of KL(a, b)
  switch (kind) {
    case kKl: *value = times(p, log_p - log_q), *slope = -p; return;
    case kCrossEntropy: *value = -times(p, log_q), *slope = -p; return;
    case kReverseKl: *value = *slope = times(q, log_q - log_p); return;
    case kSymmetricKl:
      *slope = (1 - beta) * times(q, log_q - log_p) - beta * p;
      *value = beta * times(p, log_p - log_q) + (1 - beta) * times(q, log_q - log_p);
      return;
    case kJs: {
      const Real m = beta * p + (1 - beta) * q;
      *slope = (1 - beta) * apart(log_q, q, m);
      *value = beta * apart(log_p, p, m) + *slope;
      return;
    }
    case kSkewKl: {
      const Real m = beta * p + (1 - beta) * q;
      *value = apart(log_p, p, m), *slope = q == 0 ? 0 : -(1 - beta) * q * p / m;
      return;
    }
    case kSkewReverseKl: {
      const Real m = beta * q + (1 - beta) * p;
      *value = apart(log_q, q, m), *slope = q == 0 ? 0 : *value - beta * q * q / m;
      return;
    }
    case kTv: *value = std::fabs(p - q) / 2, *slope = p > q ? -q / 2 : p < q ? q / 2 : p - q; return;
  }
}

// D(p, q) and its gradient with respect to the logits of q, as the definition has them.
inline Real divergence(const Values& from, const Values& to, Real tau, int64_t kind, Real beta, Values* slope) {
  const size_t C = to.size();
  Real loss = 0, slopes = 0;
  slope->assign(C, 0);
  if (kind == kMse) {
    for (size_t c = 0; c < C; ++c) {
      loss += (to[c] - from[c]) * (to[c] - from[c]) / Real(C);
      (*slope)[c] = 2 * (to[c] - from[c]) / Real(C);
    }
    return loss;
  }
  const Values log_p = log_softmax(from, tau), log_q = log_softmax(to, tau);
  for (size_t c = 0; c < C; ++c) {
    Real value;
    share(log_p[c], log_q[c], kind, beta, &value, &(*slope)[c]);
    loss += value, slopes += (*slope)[c];
  }
  for (size_t c = 0; c < C; ++c) (*slope)[c] = tau * ((*slope)[c] - times(std::exp(log_q[c]), slopes));
  return tau * tau * loss;
}

inline Oracle definition(const std::vector<Values>& student, const Values* teacher, int64_t y, size_t k, Real tau,
                         int64_t kind, Real beta, const Real* u) {
  const size_t K = student.size(), C = student[k].size();
  Oracle o;
  o.dstudent.assign(C, 0);
  Values slope;
  if (y != kUnlabelled) {
    const Values l = log_softmax(student[k], 1);
    o.ce = -l[size_t(y)];
    for (size_t c = 0; c < C && u[0] != 0; ++c) o.dstudent[c] += u[0] * (std::exp(l[c]) - (c == size_t(y)));
  }
  if (teacher) {
    o.teacher = divergence(*teacher, student[k], tau, kind, beta, &slope);
    for (size_t c = 0; c < C && u[1] != 0; ++c) o.dstudent[c] += u[1] * slope[c];
  }
  for (size_t j = 0; j < K; ++j) {
    if (j == k) continue;
    o.peers += divergence(student[j], student[k], tau, kind == kMse ? kMse : kKl, beta, &slope) / Real(K - 1);
    for (size_t c = 0; c < C && u[2] != 0; ++c) o.dstudent[c] += u[2] * slope[c] / Real(K - 1);
  }
  return o;
}

inline Real half_to_real(uint16_t bits, Dtype dtype) {
  if (dtype == Dtype::kBfloat16) {
    const uint32_t wide = uint32_t(bits) << 16;
    float value;
    std::memcpy(&value, &wide, 4);
    return value;
  }
  const int exponent = bits >> 10 & 31, mantissa = bits & 1023;
  const Real magnitude = exponent == 31  ? (mantissa ? NAN : kInfinity)
                         : exponent == 0 ? std::ldexp(Real(mantissa), -24)
                                         : std::ldexp(Real(mantissa + 1024), exponent - 25);
  return bits & 0x8000 ? -magnitude : magnitude;
}

struct Array {
  Dtype dtype;
  std::vector<char> bytes;
  Array(Dtype dtype, size_t n) : dtype(dtype), bytes(n * size_t(size_of(dtype)), char(0xFF)) {}  // NaN throughout
  Real get(size_t i) const {
    const char* at = bytes.data() + i * size_t(size_of(dtype));
    if (dtype == Dtype::kFloat32) return *reinterpret_cast<const float*>(at);
    if (dtype == Dtype::kFloat64) return *reinterpret_cast<const double*>(at);
    return half_to_real(*reinterpret_cast<const uint16_t*>(at), dtype);
  }
  void set(size_t i, double x) {
    char* at = bytes.data() + i * size_t(size_of(dtype));
    uint32_t bits;
    const float narrow = float(x);
    std::memcpy(&bits, &narrow, 4);
    uint16_t half = uint16_t(bits >> 16);
    if (dtype == Dtype::kFloat16) half = x == -INFINITY ? 0xFC00 : to_float16(narrow);
    if (dtype == Dtype::kFloat32) std::memcpy(at, &narrow, 4);
    else if (dtype == Dtype::kFloat64) std::memcpy(at, &x, 8);
    else std::memcpy(at, &half, 2);
  }
  static uint16_t to_float16(float x) {  // truncated, and no smaller than a normal number
    if (std::fabs(x) < 6.2e-5f) return 0;
    int exponent;
    const float mantissa = std::frexp(std::fabs(x), &exponent);
    return uint16_t((x < 0 ? 0x8000 : 0) | (exponent + 14) << 10 | (int(mantissa * 2048) & 1023));
  }
};

inline double rounding(Dtype dtype) {  // of the gradient, to the student's dtype
  return dtype == Dtype::kBfloat16 ? 1.0 / 256 : dtype == Dtype::kFloat16 ? 1.0 / 2048 : 0;
}

inline bool close(Real got, Real want, Real scale, double bound) {
  if (std::isnan(want)) return std::isnan(got);
  return got == want || std::fabs(got - want) <= Real(bound) * scale;
}
