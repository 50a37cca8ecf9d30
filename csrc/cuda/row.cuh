// The loss of one row: terms and gradient of K students.
//
// kl has a hot loop for rows of which nothing special is to be feared. The others go the careful way, as all divergences
// but kl do, with d = min(x - top, 0): log q = d/tau - log S, q = e^(log q). The minimum is free of NaN, so a row that holds
// NaN (or nothing above -inf) goes through as junk that is finite; what it may reach is made NaN at the end, and nothing
// else.
#pragma once

#include "row_state.cuh"

namespace nanonet::cuda {

template <int kK, bool kKl, class Group, class Source>
struct Row : RowState<kK, kKl, Group, Source> {
  using Base = RowState<kK, kKl, Group, Source>;
  using Base::Base, Base::kRows, Base::kE;
  using Base::p, Base::group, Base::source, Base::n, Base::y, Base::labelled, Base::bad_label, Base::plain;
  using Base::u_ce, Base::u_teacher, Base::u_peers, Base::top, Base::log_soft, Base::log_plain, Base::expectation;
  using Base::K, Base::has_teacher, Base::present, Base::lives, Base::all_live, Base::teacher_lives, Base::mse;
  using Base::pairs, Base::steps;

  // The hot loop's share of one class, for rows that all have a softmax; x becomes the gradient. Nothing is guarded: a
  // class at -inf makes the sums NaN, by which run() sees that they have to be added up with care. Logarithms are to base
  // 2, which is what the hardware's exponential takes.
  //
  // KL(q_j || q_k) of all pairs in O(K): with A = sum_j q_j l_j and Q = sum_j q_j the class adds A - Q l_k. l is centred
  // on the likeliest student first: where they agree, like terms would else be subtracted; and any other centre would be
  // of another magnitude as soon as one student masks the class with a large number.
  template <bool kPlain, bool kAlike>
  NN_DEVICE void add_kl(float (&x)[kRows][kE], int e, const float (&of_own)[kK], float (&sums)[3 * kK],
                        float& total) const {
    const float per_logit = kLog2e / p.temperature;
    float below[kRows], l[kRows], q[kRows], Q = 0;
    NN_UNROLL
    for (int r = 0; r < kRows; ++r) {
      below[r] = x[r][e] - top[r];
      l[r] = fmaf(below[r], per_logit, -log_soft[r]);
      q[r] = exp2_fast(l[r]);
      if (r < kK) Q += q[r];
    }
    float centre = l[0];
    NN_UNROLL
    for (int k = 1; k < kK; ++k) centre = fmaxf(centre, l[k]);
    const float of_others = kK > 1 ? fmaf(u_peers[0], Q, u_teacher[0] * q[kK]) : u_teacher[0] * q[kK];
    NN_UNROLL
    for (int k = 0; k < kK; ++k) {
      sums[k] = fmaf(q[kK], l[kK] - l[k], sums[k]);
      if (kK > 1) {
        const float apart = l[k] - centre;
        total = fmaf(q[k], apart, total);
        sums[kK + k] = fmaf(-Q, apart, sums[kK + k]);
      }
      float d;
      if (kAlike) {
        d = fmaf(of_own[k], q[k], -of_others);
      } else {
        d = u_teacher[k] * (q[k] - q[kK]);
        if (kK > 1) d = fmaf(u_peers[k], fmaf(float(K()), q[k], -Q), d);
        if (!kPlain) d = fmaf(u_ce[k], q[k], d);
      }
      if (kPlain) d = fmaf(u_ce[k], exp2_fast(fmaf(below[k], kLog2e, -log_plain[k])), d);
      x[k][e] = d;
    }
  }

  // Whether the soft terms weigh the same for every student, as they do unless each has weights of its own.
  NN_DEVICE bool alike() const {
    bool all = true;
    NN_UNROLL
    for (int k = 1; k < kK; ++k) all &= k >= K() || (u_teacher[k] == u_teacher[0] && u_peers[k] == u_peers[0]);
    return all;
  }

  // A logit for places outside the row: finite, and of a probability of 0.
  NN_DEVICE float nothing(int r) const { return top[r] - fmaxf(300 * p.temperature, fabsf(top[r])); }

  // Sums and gradient of kl, where every row that is there has a softmax. Backwards: what was read last is nearest.
  template <bool kPlain, bool kAlike>
  NN_DEVICE void run_kl(float (&sums)[3 * kK]) {
    float of_own[kK], total = 0;
    NN_UNROLL
    for (int k = 0; k < kK; ++k) of_own[k] = (kPlain ? 0 : u_ce[k]) + u_teacher[k] + u_peers[k] * K();
    steps(true, [&](auto& held, int chunk, int at, float (&x)[kRows][kE]) {
      const auto add = [&] {
        NN_UNROLL
        for (int e = 0; e < kE; ++e) add_kl<kPlain, kAlike>(x, e, of_own, sums, total);
      };
      if (Source::kRereads && source.whole(chunk) && !source.holds(chunk, y)) {
        add();
        if (p.dstudent) source.put_whole(held, chunk, at, x);
      } else {
        NN_UNROLL
        for (int e = 0; e < kE; ++e) {
          const bool inside = source.inside(chunk, at + e);
          NN_UNROLL
          for (int r = 0; r < kRows; ++r) x[r][e] = inside ? x[r][e] : nothing(r);
        }
        add();
        if (source.holds(chunk, y)) this->subtract_label(chunk, at, x);
        if (p.dstudent) source.put(held, chunk, at, x);
      }
      this->done_with(chunk, at, source.calm);
    });
    NN_UNROLL
    for (int k = 0; k < kK; ++k) {
      sums[k] *= kLn2;
      sums[kK + k] = (sums[kK + k] + total) * kLn2;
    }
  }

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
      c.l[r] = fminf(x[r][e] - top[r], 0.0f) * per_tau - log_soft[r] * kLn2;
      c.q[r] = exp2_fast(c.l[r] * kLog2e);
    }
    return c;
  }

  // As in add_kl, with care.
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

  NN_DEVICE float plain_probability(const Class& c, int k) const {
    // from log q, so that no logit has to be kept: softmax = e^(tau log q + tau log S - log S_1)
    return exp2_fast(c.l[k] * p.temperature * kLog2e + (log_soft[k] * p.temperature - log_plain[k]));
  }

  // log m of the mixture m = (p + q_k)/2
  NN_DEVICE float log_mean(const Class& c, int k) const {
    const float high = fmaxf(c.l[k], c.l[kK]), low = fminf(c.l[k], c.l[kK]);
    return high + log1pf(expf(low - high)) - kLn2;
  }

  NN_DEVICE static float times(float weight, float value) { return weight == 0 ? 0 : weight * value; }  // 0 (-inf) = 0

  // Sums of D (without its constants), of the peers, of the gradient's expectation, of each student.
  NN_DEVICE void add_terms(const Class& c, float (&sums)[3 * kK], float& total) const {
    NN_UNROLL
    for (int k = 0; k < kK; ++k) {
      if (k >= K()) continue;
      if (mse()) {
        if (has_teacher()) sums[k] += (c.x[k] - c.x[kK]) * (c.x[k] - c.x[kK]);
        NN_UNROLL
        for (int j = 0; j < k; ++j) {  // pair by pair: an identity in O(K) would turn classes at -inf into NaN
          const float apart = (c.x[k] - c.x[j]) * (c.x[k] - c.x[j]);
          sums[kK + k] += apart, sums[kK + j] += apart;
        }
      } else if (kKl) {
        if (has_teacher()) sums[k] += times(c.q[kK], c.l[kK] - c.l[k]);
      } else if (has_teacher() && p.divergence == kReverseKl) {
        sums[k] += times(c.q[k], c.l[k] - c.l[kK]);
      } else if (has_teacher()) {
        const float log_m = log_mean(c, k);
        const float of_q = times(c.q[k], c.l[k] - log_m) / 2;
        sums[k] += times(c.q[kK], c.l[kK] - log_m) / 2 + of_q;
        sums[2 * kK + k] += of_q;
      }
    }
    if (K() > 1 && !mse()) add_peers_kl(c, sums, total);
  }

  NN_DEVICE float slope(const Class& c, int k) const {
    float all = 0;
    NN_UNROLL
    for (int j = 0; j < kK; ++j)
      if (j < K()) all += mse() ? c.x[j] : c.q[j];
    float d = u_ce[k] == 0 ? 0 : u_ce[k] * plain_probability(c, k);
    float to_teacher = 0;
    if (kKl) to_teacher = c.q[k] - c.q[kK];
    else if (mse()) to_teacher = c.x[k] - c.x[kK];
    else if (p.divergence == kReverseKl)
      to_teacher = times(c.q[k], c.l[k] - c.l[kK] - expectation[k]);
    else to_teacher = times(c.q[k], (c.l[k] - log_mean(c, k)) / 2 - expectation[k]);
    if (u_teacher[k] != 0) d += u_teacher[k] * to_teacher;
    if (u_peers[k] != 0) d += u_peers[k] * (K() * (mse() ? c.x[k] : c.q[k]) - all);
    return d;
  }

  NN_DEVICE void run_terms(float (&sums)[3 * kK], bool last) {
    float total = 0;
    steps(true, [&](auto&, int chunk, int at, float (&x)[kRows][kE]) {
      NN_UNROLL
      for (int e = 0; e < kE; ++e)
        if (source.inside(chunk, at + e)) add_terms(class_of(x, e), sums, total);
      this->done_with(chunk, at, last);
    });
    add_total(sums, total);
  }

  NN_DEVICE void run_gradient() {
    steps(false, [&](auto& held, int chunk, int at, float (&x)[kRows][kE]) {
      NN_UNROLL
      for (int e = 0; e < kE; ++e) {
        const Class c = class_of(x, e);
        NN_UNROLL
        for (int k = 0; k < kK; ++k)
          if (k < K()) x[k][e] = this->poisoned(k) ? not_a_number() : slope(c, k);
      }
      if (source.holds(chunk, y)) this->subtract_label(chunk, at, x);
      source.put(held, chunk, at, x);
      this->done_with(chunk, at, true);
    });
  }

  NN_DEVICE void add_total(float (&sums)[3 * kK], float total) const {
    NN_UNROLL
    for (int k = 0; k < kK; ++k) sums[kK + k] += total;
  }

  // The terms of student k, from the row's sums.
  NN_DEVICE void terms(int k, const float (&sums)[3 * kK], float (&term)[3]) const {
    const float squared = p.temperature * p.temperature;
    term[0] = term[1] = term[2] = 0;
    if (labelled) {
      term[0] = not_a_number();
      if (!bad_label && lives(k)) {
        const Rows& rows = p.student[k];
        const float x = element_at(rows.data + n * rows.row_bytes + y * size_of(rows.dtype), rows.dtype);
        term[0] = log_plain[k] * kLn2 - (x - top[k]);
      }
    }
    if (has_teacher()) term[1] = mse() ? sums[k] / p.C : lives(k) && lives(kK) ? sums[k] * squared : not_a_number();
    if (K() > 1) {
      term[2] = mse() ? sums[kK + k] / p.C : all_live() ? sums[kK + k] * squared : not_a_number();
      term[2] /= pairs();
    }
  }

  // What a row leaves but for its gradient: statistics, terms, and what these count in the means.
  template <class Weight>
  NN_DEVICE void keep(const float (&sums)[3 * kK], Weight weight, float* counted) const {
    if (p.stats && group.leader()) this->keep_statistics();
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

  // Everything that the call wants of this row. weight(term, k): what it counts in a mean; counted: where that goes.
  template <class Weight>
  NN_DEVICE void run(Weight weight, float* counted) {
    NN_UNROLL
    for (int k = 0; k < kK; ++k) expectation[k] = 0;
    if constexpr (Source::kStaged) source.arrive();
    if (p.from_stats) {
      this->load_statistics();
    } else if constexpr (Source::kRereads) {
      this->template statistics<false>();
      if (!all_live() || !teacher_lives()) {
        group.cluster_barrier();  // others may still read the statistics
        this->template statistics<true>();
      }
    } else {
      this->template statistics<true>();
    }
    bool any_poisoned = false;
    NN_UNROLL
    for (int k = 0; k < kK; ++k) any_poisoned |= k < K() && this->poisoned(k);
    float sums[3 * kK] = {};
    bool gradient = p.dstudent, finite = false;
    if (kKl && Source::kHot && group.all(all_live() && teacher_lives() && !any_poisoned && source.tame())) {
      if constexpr (kKl && Source::kHot) {
        if (plain) Source::kRereads && alike() ? run_kl<true, true>(sums) : run_kl<true, false>(sums);
        else Source::kRereads && alike() ? run_kl<false, true>(sums) : run_kl<false, false>(sums);
      }
      gradient = false, finite = true;
      if (!p.from_stats) group.sum(sums);
      NN_UNROLL
      for (int i = 0; Source::kRereads && i < 2 * kK; ++i) finite &= i % kK >= K() || sums[i] - sums[i] == 0;
    }
    if (!p.from_stats && !group.all(finite)) {
      NN_UNROLL
      for (int i = 0; i < 3 * kK; ++i) sums[i] = 0;
      if constexpr (Source::kStaged)
        if (source.next_is_staged) source.stage_again();
      run_terms(sums, !gradient);
      if constexpr (kKl && Source::kHot && Source::kRereads) group.cluster_barrier();  // others may still read run_kl's
      group.sum(sums);
      if (!kKl && has_teacher() && !mse()) {
        NN_UNROLL
        for (int k = 0; k < kK; ++k) expectation[k] = p.divergence == kReverseKl ? sums[k] : sums[2 * kK + k];
      }
    }
    if constexpr (Source::kRereads) source.calm = finite;
    if (!p.from_stats && source.active()) keep(sums, weight, counted);
    if (gradient) run_gradient();
  }
};

}  // namespace nanonet::cuda
