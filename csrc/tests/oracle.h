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

// D(p, q) and its gradient with respect to the logits of q, as the definition has them.
inline Real divergence(const Values& from, const Values& to, Real tau, int64_t kind, Values* slope) {
  const size_t C = to.size();
  Real loss = 0;
  slope->assign(C, 0);
  if (kind == kMse) {
    for (size_t c = 0; c < C; ++c) {
      loss += (to[c] - from[c]) * (to[c] - from[c]) / Real(C);
      (*slope)[c] = 2 * (to[c] - from[c]) / Real(C);
    }
    return loss;
  }
  const Values log_p = log_softmax(from, tau), log_q = log_softmax(to, tau);
  Values h(C);
  Real mean = 0;
  for (size_t c = 0; c < C; ++c) {
    const Real p = std::exp(log_p[c]), q = std::exp(log_q[c]), log_m = std::log((p + q) / 2);
    if (kind == kKl) loss += times(p, log_p[c] - log_q[c]);
    if (kind == kReverseKl) loss += times(q, h[c] = log_q[c] - log_p[c]);
    if (kind == kJs) {
      h[c] = (log_q[c] - log_m) / 2;
      loss += times(p, log_p[c] - log_m) / 2 + times(q, h[c]);
    }
    mean += times(q, h[c]);
  }
  for (size_t c = 0; c < C; ++c) {
    const Real p = std::exp(log_p[c]), q = std::exp(log_q[c]);
    (*slope)[c] = tau * (kind == kKl ? q - p : times(q, h[c] - mean));
  }
  return tau * tau * loss;
}

inline Oracle definition(const std::vector<Values>& student, const Values* teacher, int64_t y, size_t k, Real tau,
                         int64_t kind, const Real* u) {
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
    o.teacher = divergence(*teacher, student[k], tau, kind, &slope);
    for (size_t c = 0; c < C && u[1] != 0; ++c) o.dstudent[c] += u[1] * slope[c];
  }
  for (size_t j = 0; j < K; ++j) {
    if (j == k) continue;
    o.peers += divergence(student[j], student[k], tau, kind == kMse ? kMse : kKl, &slope) / Real(K - 1);
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
