// One row of a teacher that is known by its k likeliest classes: what it says of them and of the rest, and how a student
// stands to it. The classes are bucketed by chunk, so that a sweep over chunks meets each once.
#pragma once

#include "divergence.h"
#include "scratch.h"

namespace nanonet::NANONET_ISA {

constexpr double kLeastTail = 1e-7;  // float32 log-probabilities tell no smaller one

// Arrays of up to k classes, carved out of one allocation; those of the students are (K,k).
template <class F>
struct TopClasses {
  int64_t k, K, chunks, count = 0;
  int64_t *id, *first;  // first: (chunks+1) where each chunk's begin
  double *log_p, *p, *log_q, *q, *slope;
  double* outside;  // (K,chunks) sums of e
  double rest_log_p, rest_p;
  bool rest;  // whether the classes outside are a class of their own
  int64_t bytes;

  TopClasses(const Problem& problem, char* memory)
      : k(problem.top->k), K(problem.K), chunks((problem.C + kChunk - 1) / kChunk) {
    int64_t used = 0;
    const auto take = [&](int64_t elements) {
      char* at = memory + used;
      used += elements * 8;
      return at;
    };
    id = (int64_t*)take(k), first = (int64_t*)take(chunks + 1);
    log_p = (double*)take(k), p = (double*)take(k);
    log_q = (double*)take(K * k), q = (double*)take(K * k), slope = (double*)take(K * k);
    outside = (double*)take(K * chunks);
    bytes = (used + 63) / 64 * 64;
  }

  // Row n, sorted by chunk: counting sort.
  void take_row(const Problem& problem, int64_t n) {
    const TopTeacher& top = *problem.top;
    const int64_t* ids = top.ids + n * k;
    const F* given = (const F*)top.log_p + n * k;
    for (int64_t i = 0; i <= chunks; ++i) first[i] = 0;
    for (int64_t i = 0; i < k; ++i)
      if (ids[i] >= 0) ++first[ids[i] / kChunk + 1];
    for (int64_t i = 0; i < chunks; ++i) first[i + 1] += first[i];
    count = first[chunks];
    double mass = 0;
    for (int64_t i = 0; i < k; ++i) {
      if (ids[i] < 0) continue;
      const int64_t at = first[ids[i] / kChunk]++;
      id[at] = ids[i], log_p[at] = double(given[i]), p[at] = __builtin_exp(log_p[at]);
      mass += p[at];
    }
    for (int64_t i = chunks; i > 0; --i) first[i] = first[i - 1];  // each had moved on to where the next begins
    first[0] = 0;
    rest = top.tail == kBucket;
    rest_p = count == problem.C ? 0 : 1 - mass > kLeastTail ? 1 - mass : mass == mass ? kLeastTail : mass;
    rest_log_p = __builtin_log(rest_p);
    for (int64_t i = 0; top.tail == kRenormalised && i < count; ++i) p[i] /= mass, log_p[i] -= __builtin_log(mass);
  }

  double& log_q_of(int64_t student, int64_t i) const { return log_q[student * k + i]; }
  double& q_of(int64_t student, int64_t i) const { return q[student * k + i]; }
  double& outside_of(int64_t student, int64_t chunk) const { return outside[student * chunks + chunk]; }
  double& slope_of(int64_t student, int64_t i) const { return slope[student * k + i]; }
};

// The multiple of q that a slope of divergence.h leaves out: it has no gradient where the q sum to 1.
inline double left_out_of_slope(int64_t divergence, double beta) {
  if (divergence == kReverseKl || divergence == kSkewReverseKl) return 1;
  return divergence == kSymmetricKl ? 1 - beta : 0;
}

struct TopSums {
  double value, slopes, rest_slope;  // D(p, q), the sum of all slopes, the slope of the rest
};

// D(p, q) and its slopes, of a student whose log_q and q stand in `top`.
template <class F>
TopSums top_sums(const Problem& p, const TopClasses<F>& top, int64_t student, double rest_log_q, double rest_q) {
  TopSums sums = {0, 0, 0};
  const double multiple = p.top->tail == kLeftOut ? left_out_of_slope(p.divergence, p.beta) : 0;
  with_divergence(p.divergence, [&]<int64_t kDivergence>() {
    const auto share_of = [&](double log_p, double log_q, double probability, double q) {
      const ClassPair<double> pair = {log_p, log_q, probability, q};
      return DivergenceOf<kDivergence>::share(pair, p.beta, [](double x) { return __builtin_log(x); });
    };
    for (int64_t i = 0; i < top.count; ++i) {
      const double q = top.q_of(student, i);
      const auto share = share_of(top.log_p[i], top.log_q_of(student, i), top.p[i], q);
      const double slope = share.slope + multiple * q;
      sums.value += share.value, sums.slopes += slope;
      top.slope_of(student, i) = slope;
    }
    if (top.rest) {
      const auto share = share_of(top.rest_log_p, rest_log_q, top.rest_p, rest_q);
      sums.value += share.value, sums.slopes += share.slope;
      sums.rest_slope = share.slope;
    }
  });
  return sums;
}

}  // namespace nanonet::NANONET_ISA
