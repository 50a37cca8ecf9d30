// The fast path of kl and cross_entropy: the terms and the gradient of a row in one sweep, without guards.
//
// It takes rows that all have a softmax. A class at -inf makes its sums NaN; Row::run() then repeats the terms with
// care. Logarithms are to base 2, as the hardware's exponential is.
#pragma once

#include "row_state.cuh"

namespace nanonet::cuda {

template <int kK, bool kKlSlopes, class Group, class Source>
struct KlRow : RowState<kK, kKlSlopes, Group, Source> {
  using Base = RowState<kK, kKlSlopes, Group, Source>;
  using Base::Base, Base::kRows, Base::kE;
  using Base::p, Base::source, Base::y, Base::u_ce, Base::u_teacher, Base::u_peers;
  using Base::max, Base::lse_tau, Base::lse_1, Base::K;

  // Adds the terms of one class to the sums, and replaces x by its gradient.
  //
  // KL(q_j || q_k) of all pairs in O(K): with A = sum_j q_j l_j and Q = sum_j q_j the class adds A - Q l_k. Likewise
  // KL(p, q_k) adds p log p - p l_k. What all students share, p log p and A, is collected in `shared`. Logarithms are
  // centred on the likeliest student first: students that agree would otherwise cancel, and any other centre would be
  // far off once one student masks the class with a large number.
  //
  // kAlike: u_teacher and u_peers are the same for every student, so that they share a product.
  template <bool kSeparateCe, bool kAlike>
  NN_DEVICE void add_class(float (&x)[kRows][kE], int e, const float (&u_own)[kK], float (&sums)[3 * kK],
                           float (&shared)[2]) const {
    const float per_logit = kLog2e / p.temperature;
    float below[kRows], l[kRows], q[kRows], Q = 0;
    NN_UNROLL
    for (int r = 0; r < kRows; ++r) {
      below[r] = x[r][e] - max[r];
      l[r] = fmaf(below[r], per_logit, -lse_tau[r]);
      q[r] = exp2_fast(l[r]);
      if (r < kK) Q += q[r];
    }
    float centre = l[0];
    NN_UNROLL
    for (int k = 1; k < kK; ++k) centre = fmaxf(centre, l[k]);
    const float log_p = p.divergence == kCrossEntropy ? 0 : l[kK];
    shared[0] = fmaf(q[kK], log_p - centre, shared[0]);
    const float u_others = kK > 1 ? fmaf(u_peers[0], Q, u_teacher[0] * q[kK]) : u_teacher[0] * q[kK];
    NN_UNROLL
    for (int k = 0; k < kK; ++k) {
      if (kK > 1) {
        const float centred = l[k] - centre;
        sums[k] = fmaf(-q[kK], centred, sums[k]);
        shared[1] = fmaf(q[k], centred, shared[1]);
        sums[kK + k] = fmaf(-Q, centred, sums[kK + k]);
      }
      // u_teacher (q - p) + u_peers (K q - Q) + u_ce softmax(x)
      float d;
      if (kAlike) d = fmaf(u_own[k], q[k], -u_others);
      else d = u_teacher[k] * (q[k] - q[kK]);
      if (!kAlike && kK > 1) d = fmaf(u_peers[k], fmaf(float(K()), q[k], -Q), d);
      if (kSeparateCe) d = fmaf(u_ce[k], exp2_fast(fmaf(below[k], kLog2e, -lse_1[k])), d);
      x[k][e] = d;
    }
  }

  // A logit for classes outside the row: finite, with a probability of 0.
  NN_DEVICE float padding_logit(int r) const { return max[r] - fmaxf(300 * p.temperature, fabsf(max[r])); }

  NN_DEVICE bool alike() const {
    bool all = true;
    NN_UNROLL
    for (int k = 1; k < kK; ++k) all &= k >= K() || (u_teacher[k] == u_teacher[0] && u_peers[k] == u_peers[0]);
    return all;
  }

  // A sweep; backwards, as the last chunks read are most likely still cached.
  template <bool kSeparateCe, bool kAlike>
  NN_DEVICE void run_kl(float (&sums)[3 * kK]) {
    float u_own[kK], shared[2] = {};
    NN_UNROLL
    for (int k = 0; k < kK; ++k) u_own[k] = (kSeparateCe ? 0 : u_ce[k]) + u_teacher[k] + u_peers[k] * K();
    this->steps(true, [&](auto& vectors, int chunk, int at, float (&x)[kRows][kE]) {
      const auto add = [&] {
        NN_UNROLL
        for (int e = 0; e < kE; ++e) add_class<kSeparateCe, kAlike>(x, e, u_own, sums, shared);
      };
      if (Source::kRereads && source.whole(chunk) && !source.holds(chunk, y)) {
        add();
        if (p.dstudent) source.put(vectors, chunk, at, x, true);
      } else {
        NN_UNROLL
        for (int e = 0; e < kE; ++e) {
          const bool inside = source.inside(chunk, at + e);
          NN_UNROLL
          for (int r = 0; r < kRows; ++r) x[r][e] = inside ? x[r][e] : padding_logit(r);
        }
        add();
        if (source.holds(chunk, y)) this->subtract_label(chunk, at, x);
        if (p.dstudent) source.put(vectors, chunk, at, x, source.whole(chunk));
      }
      this->step_done(chunk, at, source.finite);
    });
    NN_UNROLL
    for (int k = 0; k < kK; ++k) {
      sums[k] = (sums[k] + shared[0]) * kLn2;
      sums[kK + k] = (sums[kK + k] + shared[1]) * kLn2;
    }
  }

  // Rows that are weighted per student, rare and read once, do not get a variant without separate_ce: u_ce is 0 then,
  // or the two softmaxes are one. Nor do short rows, whose time is the launch's.
  NN_DEVICE void run_kl(float (&sums)[3 * kK]) {
    if (!Source::kRereads || !alike()) run_kl<true, false>(sums);
    else if (this->separate_ce) run_kl<true, true>(sums);
    else run_kl<false, true>(sums);
  }
};

}  // namespace nanonet::cuda
