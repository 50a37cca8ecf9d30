// The loss of one row: terms and gradient of K students.
//
// Rows that the fast path (row_kl.cuh) cannot take, and all divergences outside the kl family, are processed with care:
// log q = min(x - max, 0)/tau - lse, q = e^(log q). The minimum is never NaN, so that a row of NaN (or of nothing above
// -inf) gives meaningless but finite numbers; run_gradient() and terms() write NaN to exactly what depends on such a
// row.
#pragma once

#include "../divergence.h"
#include "row_kl.cuh"

namespace nanonet::cuda {

template <int kK, bool kKlSlopes, class Group, class Source>
struct Row : KlRow<kK, kKlSlopes, Group, Source> {
  using Base = KlRow<kK, kKlSlopes, Group, Source>;
  using Base::Base, Base::kRows, Base::kE;
  using Base::p, Base::group, Base::source, Base::n, Base::y, Base::labelled, Base::bad_label;
  using Base::u_ce, Base::u_teacher, Base::u_peers, Base::max, Base::lse_tau, Base::lse_1, Base::slope_sum;
  using Base::K, Base::has_teacher, Base::present, Base::valid, Base::all_valid, Base::teacher_valid, Base::mse;
  using Base::pairs, Base::steps, Base::invalid_gradient;

  // The values of one class, of every row.
  struct Class {
    float x[kRows], l[kRows], q[kRows];  // logits, for mse; log-probabilities; probabilities
  };

  template <class Chunk>
  NN_DEVICE Class class_of(const Chunk& x, int e) const {
    Class c;
    const float per_tau = 1 / p.temperature;
    NN_UNROLL
    for (int r = 0; r < kRows; ++r) {
      if (!present(r)) continue;
      c.x[r] = x[r][e];
      c.l[r] = fminf(x[r][e] - max[r], 0.0f) * per_tau - lse_tau[r] * kLn2;
      c.q[r] = exp2_fast(c.l[r] * kLog2e);
    }
    return c;
  }

  // Value and slope of D(p, q_k) in this class, of every student.
  NN_DEVICE void share_of(const Class& c, ClassShare<float> (&share)[kK]) const {
    const auto log = [](float x) { return log2_fast(x) * kLn2; };
    const auto set = [&]<int64_t kDivergence>() {
      NN_UNROLL
      for (int k = 0; k < kK; ++k) {
        const ClassPair<float> pair{c.l[kK], c.l[k], c.q[kK], c.q[k]};
        if (k < K()) share[k] = DivergenceOf<kDivergence>::share(pair, p.beta, log);
      }
    };
    if constexpr (!kKlSlopes) with_divergence(p.divergence, set);
    else if (p.divergence == kCrossEntropy) set.template operator()<kCrossEntropy>();
    else set.template operator()<kKl>();
  }

  // As in KlRow::add_class, with care.
  NN_DEVICE void add_peers_kl(const Class& c, float (&sums)[3 * kK], float& total) const {
    float centre = c.l[0], Q = 0;
    NN_UNROLL
    for (int k = 0; k < kK; ++k)
      if (k < K()) centre = fmaxf(centre, c.l[k]), Q += c.q[k];
    centre = centre - centre == 0 ? centre : 0;  // -inf for all: nothing to centre
    NN_UNROLL
    for (int k = 0; k < kK; ++k) {
      if (k >= K()) continue;
      const float l = c.l[k] - centre;
      if (c.q[k] != 0) total += c.q[k] * l;
      if (Q != 0) sums[kK + k] -= Q * l;
    }
  }

  NN_DEVICE void add_mse(const Class& c, float (&sums)[3 * kK]) const {
    NN_UNROLL
    for (int k = 0; k < kK; ++k) {
      if (k >= K()) continue;
      if (has_teacher()) sums[k] += (c.x[k] - c.x[kK]) * (c.x[k] - c.x[kK]);
      NN_UNROLL
      for (int j = 0; j < k; ++j) {  // pair by pair: an identity in O(K) would turn classes at -inf into NaN
        const float squared = (c.x[k] - c.x[j]) * (c.x[k] - c.x[j]);
        sums[kK + k] += squared, sums[kK + j] += squared;
      }
    }
  }

  // Of each student: sums of the divergence, of the peers, of the slopes.
  NN_DEVICE void add_terms(const Class& c, float (&sums)[3 * kK], float& total) const {
    if (mse()) return add_mse(c, sums);
    if (has_teacher()) {
      ClassShare<float> share[kK];
      share_of(c, share);
      NN_UNROLL
      for (int k = 0; k < kK; ++k) {
        if (k >= K()) continue;
        sums[k] += share[k].value;
        if (!kKlSlopes) sums[2 * kK + k] += share[k].slope;
      }
    }
    if (K() > 1) add_peers_kl(c, sums, total);
  }

  NN_DEVICE float softmax_1(const Class& c, int k) const {
    // from log q, so that the logit need not be kept: softmax = e^(tau log q + tau lse_tau - lse_1)
    return exp2_fast(c.l[k] * p.temperature * kLog2e + (lse_tau[k] * p.temperature - lse_1[k]));
  }

  // The gradient of every student for one class.
  NN_DEVICE void gradient_of(const Class& c, float (&d)[kK]) const {
    ClassShare<float> share[kK] = {};
    if (!kKlSlopes && has_teacher() && !mse()) share_of(c, share);
    float all = 0;
    NN_UNROLL
    for (int j = 0; j < kK; ++j)
      if (j < K()) all += mse() ? c.x[j] : c.q[j];
    NN_UNROLL
    for (int k = 0; k < kK; ++k) {
      if (k >= K()) continue;
      const float own = mse() ? c.x[k] : c.q[k];
      d[k] = u_ce[k] == 0 ? 0 : u_ce[k] * softmax_1(c, k);
      if (u_teacher[k] != 0) {
        const bool difference = kKlSlopes || mse();  // q - p, or that of the logits
        const float of_teacher = mse() ? c.x[kK] : c.q[kK];
        d[k] += u_teacher[k] * (difference ? own - of_teacher : share[k].slope - times(own, slope_sum[k]));
      }
      if (u_peers[k] != 0) d[k] += u_peers[k] * (K() * own - all);
    }
  }

  NN_DEVICE void run_terms(float (&sums)[3 * kK], bool last) {
    float total = 0;
    steps(true, [&](auto&, int chunk, int at, float (&x)[kRows][kE]) {
      NN_UNROLL
      for (int e = 0; e < kE; ++e)
        if (source.inside(chunk, at + e)) add_terms(class_of(x, e), sums, total);
      this->step_done(chunk, at, last);
    });
    NN_UNROLL
    for (int k = 0; k < kK; ++k) sums[kK + k] += total;
  }

  NN_DEVICE void run_gradient() {
    steps(false, [&](auto& vectors, int chunk, int at, float (&x)[kRows][kE]) {
      NN_UNROLL
      for (int e = 0; e < kE; ++e) {
        float d[kK];
        gradient_of(class_of(x, e), d);
        NN_UNROLL
        for (int k = 0; k < kK; ++k)
          if (k < K()) x[k][e] = invalid_gradient(k) ? not_a_number() : d[k];
      }
      if (source.holds(chunk, y)) this->subtract_label(chunk, at, x);
      source.put(vectors, chunk, at, x, source.whole(chunk));
      this->step_done(chunk, at, true);
    });
  }

  // The terms of student k, from the row's sums.
  NN_DEVICE void terms(int k, const float (&sums)[3 * kK], float (&term)[3]) const {
    const float squared = p.temperature * p.temperature;
    term[0] = term[1] = term[2] = 0;
    if (labelled) {
      term[0] = not_a_number();
      if (!bad_label && valid(k)) {
        const Rows& rows = p.student[k];
        const float x = element_at(rows.data + n * rows.row_bytes + y * size_of(rows.dtype), rows.dtype);
        term[0] = lse_1[k] * kLn2 - (x - max[k]);
      }
    }
    if (has_teacher()) term[1] = mse() ? sums[k] / p.C : valid(k) && valid(kK) ? sums[k] * squared : not_a_number();
    if (K() > 1) {
      term[2] = mse() ? sums[kK + k] / p.C : all_valid() ? sums[kK + k] * squared : not_a_number();
      term[2] /= pairs();
    }
  }

  // Stores what the row yields besides its gradient: statistics, terms, and its share of the means.
  template <class Weight>
  NN_DEVICE void store(const float (&sums)[3 * kK], Weight weight, float* counted) const {
    if (p.stats && group.leader()) this->store_statistics();
    NN_UNROLL
    for (int k = 0; k < kK; ++k) {
      if (k >= K() || !group.serves(k)) continue;
      float term[3];
      terms(k, sums, term);
      NN_UNROLL
      for (int i = 0; i < 3; ++i) {
        if (p.terms) p.terms[(i * K() + k) * p.N + n] = term[i];
        if (p.loss) counted[i * kK + k] = times(weight(i, k), term[i]);
      }
    }
  }

  NN_DEVICE void set_statistics() {
    if (p.from_stats) return this->load_statistics();
    if constexpr (Source::kRereads) {
      this->template statistics<false>();
      if (all_valid() && teacher_valid()) return;
      group.cluster_barrier();  // other blocks may still be reading the first statistics
    }
    this->template statistics<true>();
  }

  NN_DEVICE bool fast_path_applies() const {
    bool invalid = false;
    NN_UNROLL
    for (int k = 0; k < kK; ++k) invalid |= k < K() && invalid_gradient(k);
    return kKlSlopes && Source::kFast && group.all(all_valid() && teacher_valid() && !invalid && source.in_range());
  }

  // Terms and gradient by the fast path; whether its sums are finite.
  NN_DEVICE bool run_fast(float (&sums)[3 * kK]) {
    if constexpr (kKlSlopes && Source::kFast) this->run_kl(sums);
    if (!p.from_stats) group.sum(sums);
    bool finite = true;
    NN_UNROLL
    for (int i = 0; Source::kRereads && i < 2 * kK; ++i) finite &= i % kK >= K() || sums[i] - sums[i] == 0;
    return finite;
  }

  NN_DEVICE void run_careful_terms(float (&sums)[3 * kK], bool last) {
    NN_UNROLL
    for (int i = 0; i < 3 * kK; ++i) sums[i] = 0;
    if constexpr (Source::kStaged)
      if (source.next_is_staged) source.restage();
    run_terms(sums, last);
    if constexpr (kKlSlopes && Source::kFast && Source::kRereads) group.cluster_barrier();  // run_fast's may be unread
    group.sum(sums);
    NN_UNROLL
    for (int k = 0; k < kK; ++k) slope_sum[k] = sums[2 * kK + k];
  }

  // All that the call wants of this row. weight(i, k): its weight in the mean of term i; counted: where its share goes.
  template <class Weight>
  NN_DEVICE void run(Weight weight, float* counted) {
    NN_UNROLL
    for (int k = 0; k < kK; ++k) slope_sum[k] = 0;
    if constexpr (Source::kStaged) source.wait();
    set_statistics();
    float sums[3 * kK] = {};
    const bool fast = fast_path_applies(), gradient = p.dstudent && !fast;
    const bool finite = fast && run_fast(sums);
    if (!p.from_stats && !group.all(finite)) run_careful_terms(sums, !gradient);
    if constexpr (Source::kRereads) source.finite = finite;
    if (!p.from_stats && source.active()) store(sums, weight, counted);
    if (gradient) run_gradient();
  }
};

}  // namespace nanonet::cuda
