// The loss of one row: statistics, terms and gradient of K students, wherever the row lies and whoever shares it.
//
// With d = min(x - top, 0): log q = d/tau - log S, q = e^(log q). The minimum is free of NaN, so a row that holds NaN (or
// nothing above -inf) goes through as junk that is finite; what it may reach is made NaN at the end, and nothing else.
//
// A Source holds the row: each() visits the thread's chunks; of a chunk's kClasses, load() gives kElements at a time, of
// every student and of the teacher (index kK), and put() takes as many of a gradient. A Group (groups.cuh) is the threads
// that share the row.
#pragma once

#include "groups.cuh"

namespace nanonet::cuda {

template <int kK, bool kKl, class Group, class Source>
struct Row {
  static constexpr int kRows = kK + 1, kE = Source::kElements;
  const Call& p;
  const Group& group;
  Source& source;
  const int64_t n;

  int y;  // -1: none, or no class
  bool labelled, bad_label, plain;  // plain: the temperature's softmax is not that of ce
  float u_ce[kK], u_teacher[kK], u_peers[kK];  // upstream gradients of the terms, with the constants of their slopes
  float top[kRows], log_soft[kRows], log_plain[kRows], expectation[kK];
  uint32_t live;  // bit r: row r has a softmax
  bool any_poisoned = false;

  // Few students are known at compile time on the hot path, and loops over them have no bounds to check.
  NN_DEVICE int K() const { return kKl && kK <= 4 ? kK : p.K; }
  NN_DEVICE bool has_teacher() const { return p.teacher.data != nullptr; }
  NN_DEVICE bool present(int r) const { return r < K() || (r == kK && has_teacher()); }
  NN_DEVICE bool lives(int r) const { return live >> r & 1; }
  NN_DEVICE bool mse() const { return !kKl && p.divergence == kMse; }
  NN_DEVICE float pairs() const { return K() > 1 ? float(K() - 1) : 1.0f; }

  NN_DEVICE Row(const Call& p, const Group& group, Source& source, int64_t n)
      : p(p), group(group), source(source), n(n) {
    const int64_t label = p.label ? p.label[n * p.label_stride] : kUnlabelled;
    labelled = label != kUnlabelled;
    bad_label = labelled && (label < 0 || label >= p.C);
    y = labelled && !bad_label ? int(label) : -1;
    plain = p.temperature != 1 && (labelled || (p.stats && !p.from_stats));
  }

  // u(term, k): what arrives for a term.
  template <class Upstream>
  NN_DEVICE void set_upstream(Upstream u) {
    const float scale = mse() ? 2.0f / p.C : p.temperature;
    NN_UNROLL
    for (int k = 0; k < kK; ++k) {
      const bool one = k < K();
      u_ce[k] = one && labelled ? u(0, k) : 0;
      u_teacher[k] = one && has_teacher() ? u(1, k) * scale : 0;
      u_peers[k] = one && K() > 1 ? u(2, k) * (scale / pairs()) : 0;
    }
  }

  // body(held, chunk, at, x) for every step of the thread's chunks: x (kRows,kE), classes from `at` on.
  template <class Body>
  NN_DEVICE void steps(bool backwards, Body body) const {
    source.each(backwards, [&](int chunk) {
      typename Source::Held held;
      NN_NO_UNROLL
      for (int at = 0; at < Source::kClasses; at += kE) {
        float x[kRows][kE];
        source.load(held, chunk, at, x);
        body(held, chunk, at, x);
      }
    });
  }

  NN_DEVICE Exponents exponents() const { return {kLog2e / p.temperature, kLog2e}; }

  // One sweep: a part's sums stand below the highest logit that it has seen.
  NN_DEVICE void statistics() {
    const Exponents per_logit = exponents();
    Statistics found[kRows];
    NN_UNROLL
    for (int r = 0; r < kRows; ++r) found[r] = {-infinity(), 0, 0};
    steps(false, [&](auto&, int, int, float (&x)[kRows][kE]) {
      NN_UNROLL
      for (int r = 0; r < kRows; ++r) {
        if (!present(r)) continue;
        float higher = found[r].top;
        NN_UNROLL
        for (int e = 0; e < kE; ++e) higher = fmaxf(higher, x[r][e]);
        const float base = higher == -infinity() ? 0 : higher;
        const float before = factor(found[r].top, higher, per_logit.soft);
        found[r].soft *= before;
        NN_UNROLL
        for (int e = 0; e < kE; ++e) found[r].soft += exp2_fast((x[r][e] - base) * per_logit.soft);
        if (plain) {
          found[r].plain *= factor(found[r].top, higher, per_logit.plain);
          NN_UNROLL
          for (int e = 0; e < kE; ++e) found[r].plain += exp2_fast((x[r][e] - base) * per_logit.plain);
        }
        found[r].top = higher;
      }
    });
    group.merge(found, per_logit);
    live = 0;
    NN_UNROLL
    for (int r = 0; r < kRows; ++r) {
      top[r] = found[r].top;
      log_soft[r] = logf(found[r].soft);
      log_plain[r] = plain ? logf(found[r].plain) : log_soft[r];
      check(r);
    }
  }

  // From what distill_terms kept of the row.
  NN_DEVICE void load_statistics() {
    live = 0;
    NN_UNROLL
    for (int r = 0; r < kRows; ++r) {
      if (!present(r)) continue;
      const float* kept = p.stats + ((r < K() ? r : K()) * p.N + n) * kStats;
      top[r] = kept[0], log_soft[r] = kept[1], log_plain[r] = kept[2];
      if (r < kK) expectation[r < kK ? r : 0] = kept[3];
      check(r);
    }
  }

  NN_DEVICE void check(int r) {
    if (top[r] - top[r] == 0 && log_soft[r] - log_soft[r] == 0) live |= 1u << r;
    else top[r] = log_soft[r] = log_plain[r] = 0;
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
      c.l[r] = fminf(x[r][e] - top[r], 0.0f) * per_tau - log_soft[r];
      c.q[r] = exp2_fast(c.l[r] * kLog2e);
    }
    return c;
  }

  // KL(q_j || q_k) of all pairs in O(K): with A = sum_j q_j l_j and Q = sum_j q_j the class adds A - Q l_k. l is centred
  // on the students' mean first: where they agree, like terms would else be subtracted.
  NN_DEVICE void add_peers_kl(const Class& c, float (&sums)[3 * kK], float& total) const {
    float centre = 0, Q = 0;
    NN_UNROLL
    for (int k = 0; k < kK; ++k)
      if (k < K()) centre += c.l[k], Q += c.q[k];
    centre *= 1.0f / K();
    centre = centre - centre == 0 ? centre : 0;  // a class at -inf: nothing to centre
    NN_UNROLL
    for (int k = 0; k < kK; ++k) {
      if (k >= K()) continue;
      const float l = c.l[k] - centre;
      if (c.q[k] != 0) total += c.q[k] * l;
      if (Q != 0) sums[kK + k] -= Q * l;
    }
  }

  // d = u_ce softmax + u_teacher tau (q - p) + u_peers tau/(K-1) (K q - Q); the one-hot of ce comes later.
  NN_DEVICE float slope_kl(const Class& c, int k, float Q) const {
    float d = u_ce[k] * (plain ? plain_probability(c, k) : c.q[k]);
    if (has_teacher()) d += u_teacher[k] * (c.q[k] - c.q[kK]);
    if (K() > 1) d += u_peers[k] * (K() * c.q[k] - Q);
    return d;
  }

  NN_DEVICE float plain_probability(const Class& c, int k) const {
    // from log q, so that no logit has to be kept: softmax = e^(tau log q + tau log S - log S_1)
    return exp2_fast((c.l[k] * p.temperature + (log_soft[k] * p.temperature - log_plain[k])) * kLog2e);
  }

  // log m of the mixture m = (p + q_k)/2
  NN_DEVICE float log_mean(const Class& c, int k) const {
    const float high = fmaxf(c.l[k], c.l[kK]), low = fminf(c.l[k], c.l[kK]);
    return high + log1pf(expf(low - high)) - 0.6931471805599453f;
  }

  NN_DEVICE static float times(float weight, float value) { return weight == 0 ? 0 : weight * value; }  // 0 (-inf) = 0

  // Terms of the divergences off the hot path: sums of D, of the peers, of the gradient's expectation.
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
    if (mse()) to_teacher = c.x[k] - c.x[kK];
    else if (p.divergence == kReverseKl)
      to_teacher = times(c.q[k], c.l[k] - c.l[kK] - expectation[k]);
    else to_teacher = times(c.q[k], (c.l[k] - log_mean(c, k)) / 2 - expectation[k]);
    if (u_teacher[k] != 0) d += u_teacher[k] * to_teacher;
    if (u_peers[k] != 0) d += u_peers[k] * (K() * (mse() ? c.x[k] : c.q[k]) - all);
    return d;
  }

  // Whether the gradient of student k depends on a row that has no softmax, or on a label that is no class.
  NN_DEVICE bool poisoned(int k) const {
    bool any = u_ce[k] != 0 && (bad_label || !lives(k));
    if (!mse()) {
      any |= u_teacher[k] != 0 && !(lives(k) && lives(kK));
      any |= u_peers[k] != 0 && !all_live();
    }
    return any;
  }

  NN_DEVICE bool all_live() const {
    const uint32_t students = (1u << K()) - 1;
    return (live & students) == students;
  }

  // What only few classes need: the one-hot of ce, and NaN.
  template <class Chunk>
  NN_DEVICE void amend(int chunk, int at, Chunk& d) const {
    NN_UNROLL
    for (int k = 0; k < kK; ++k) {
      if (k >= K()) continue;
      const float nan = poisoned(k) ? not_a_number() : 0;
      NN_UNROLL
      for (int e = 0; e < kE; ++e) d[k][e] += nan - (source.class_at(chunk, at + e) == y ? u_ce[k] : 0);
    }
  }

  template <class Chunk>
  NN_DEVICE void put(typename Source::Held& held, int chunk, int at, Chunk& d) const {
    if (any_poisoned || source.holds(chunk, y)) amend(chunk, at, d);
    NN_UNROLL
    for (int k = 0; k < kK; ++k)
      if (k < K()) source.put(held, chunk, at, k, d[k]);
  }

  // Sums over the row: D (without its constants), peers, expectation, of each student. Backwards: what was read last is
  // nearest.
  NN_DEVICE void run_kl(float (&sums)[3 * kK]) {
    float total = 0;
    steps(true, [&](auto& held, int chunk, int at, float (&x)[kRows][kE]) {
      NN_UNROLL
      for (int e = 0; e < kE; ++e) {
        const Class c = class_of(x, e);
        float Q = 0;
        NN_UNROLL
        for (int k = 0; k < kK; ++k) {
          if (k >= K()) continue;
          Q += c.q[k];
          if (has_teacher() && c.q[kK] != 0) sums[k] += c.q[kK] * (c.l[kK] - c.l[k]);
        }
        if (K() > 1) add_peers_kl(c, sums, total);
        NN_UNROLL
        for (int k = 0; k < kK; ++k)
          if (k < K()) x[k][e] = slope_kl(c, k, Q);
      }
      if (p.dstudent) put(held, chunk, at, x);
    });
    add_total(sums, total);
  }

  NN_DEVICE void run_terms(float (&sums)[3 * kK]) {
    float total = 0;
    steps(true, [&](auto&, int chunk, int at, float (&x)[kRows][kE]) {
      NN_UNROLL
      for (int e = 0; e < kE; ++e)
        if (source.inside(chunk, at + e)) add_terms(class_of(x, e), sums, total);
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
          if (k < K()) x[k][e] = slope(c, k);
      }
      put(held, chunk, at, x);
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
        term[0] = log_plain[k] - (x - top[k]);
      }
    }
    if (has_teacher()) term[1] = mse() ? sums[k] / p.C : lives(k) && lives(kK) ? sums[k] * squared : not_a_number();
    if (K() > 1) {
      term[2] = mse() ? sums[kK + k] / p.C : all_live() ? sums[kK + k] * squared : not_a_number();
      term[2] /= pairs();
    }
  }

  NN_DEVICE void keep_statistics() const {
    NN_UNROLL
    for (int r = 0; r < kRows; ++r) {
      if (r >= K() && r != kK) continue;
      float* kept = p.stats + ((r < K() ? r : K()) * p.N + n) * kStats;
      const bool there = present(r);
      kept[0] = there ? top[r] : 0;
      kept[1] = !there ? 0 : lives(r) ? log_soft[r] : not_a_number();
      kept[2] = !there ? 0 : lives(r) ? log_plain[r] : not_a_number();
      kept[3] = r < kK && there ? expectation[r < kK ? r : 0] : 0;
    }
  }

  // Everything that the call wants of this row. weight(term, k): what it counts in a mean; counted: where that goes.
  template <class Weight>
  NN_DEVICE void run(Weight weight, float* counted) {
    NN_UNROLL
    for (int k = 0; k < kK; ++k) expectation[k] = 0;
    p.from_stats ? load_statistics() : statistics();
    NN_UNROLL
    for (int k = 0; k < kK; ++k) any_poisoned |= k < K() && poisoned(k);
    float sums[3 * kK] = {};
    if constexpr (kKl) run_kl(sums);
    else if (!p.from_stats) run_terms(sums);
    if (!p.from_stats) {
      group.sum(sums);
      if (!kKl && has_teacher() && !mse()) {
        NN_UNROLL
        for (int k = 0; k < kK; ++k) expectation[k] = p.divergence == kReverseKl ? sums[k] : sums[2 * kK + k];
      }
    }
    if constexpr (!kKl)
      if (p.dstudent) run_gradient();
    if (p.from_stats || !group.leader() || !source.active()) return;
    if (p.stats) keep_statistics();
    NN_UNROLL
    for (int k = 0; k < kK; ++k) {
      if (k >= K()) continue;
      float term[3];
      terms(k, sums, term);
      NN_UNROLL
      for (int i = 0; i < 3; ++i) {
        if (p.terms) p.terms[(i * K() + k) * p.N + n] = term[i];
        if (p.loss) counted[i * kK + k] = times(weight(i, k), term[i]);
      }
    }
  }
};

}  // namespace nanonet::cuda
