// What is known of a row while it is worked on, wherever it lies and whoever shares it: what arrives from above, its
// softmax statistics, and whether they are fit for use.
//
// A Source holds the row: each() visits the thread's chunks; of a chunk's kClasses, load() gives kElements at a time, of
// every student and of the teacher (index kK), and put() takes as many of a gradient. A Group (groups.cuh) is the threads
// that share the row.
#pragma once

#include "groups.cuh"

namespace nanonet::cuda {

constexpr float kLn2 = 0.6931471805599453f;

template <int kK, bool kKl, class Group, class Source>
struct RowState {
  static constexpr int kRows = kK + 1, kE = Source::kElements;
  static constexpr float kAbsent = 300;  // log S of a row that is not there: it has a probability of 0
  const Call& p;
  Group& group;
  Source& source;
  const int64_t n;

  int y;  // -1: none, or no class
  bool labelled, bad_label, plain;  // plain: the temperature's softmax is not that of ce
  float u_ce[kK], u_teacher[kK], u_peers[kK];  // upstream gradients of the terms, with the constants of their slopes
  float top[kRows], log_soft[kRows], log_plain[kRows];  // logarithms to base 2
  float expectation[kK];
  uint32_t live;  // bit r: row r has a softmax
  bool any_poisoned = false;

  // Known at compile time on the hot path, where loops over students have no bounds to check.
  NN_DEVICE int K() const { return kKl && Source::kExact ? kK : p.K; }
  NN_DEVICE bool has_teacher() const { return p.teacher.data != nullptr; }
  NN_DEVICE bool present(int r) const { return r < K() || (r == kK && has_teacher()); }
  NN_DEVICE bool lives(int r) const { return live >> r & 1; }
  NN_DEVICE bool mse() const { return !kKl && p.divergence == kMse; }
  NN_DEVICE float pairs() const { return K() > 1 ? float(K() - 1) : 1.0f; }

  NN_DEVICE RowState(const Call& p, Group& group, Source& source, int64_t n)
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
      const auto step = [&](int at) {
        float x[kRows][kE];
        source.load(held, chunk, at, x);
        body(held, chunk, at, x);
      };
      if constexpr (kE == Source::kClasses) {
        step(0);
      } else {
        NN_NO_UNROLL
        for (int at = 0; at < Source::kClasses; at += kE) step(at);
      }
    });
  }

  NN_DEVICE Exponents exponents() const { return {kLog2e / p.temperature, kLog2e}; }

  // One sweep: a part's sums stand below the highest logit that it has seen, from the lowest finite one on, so that a
  // difference is NaN in rows alone that hold NaN or +inf.
  NN_DEVICE void statistics() {
    const Exponents per_logit = exponents();
    Statistics found[kRows];
    NN_UNROLL
    for (int r = 0; r < kRows; ++r) found[r] = {kLowest, 0, 0};
    steps(false, [&](auto&, int, int, float (&x)[kRows][kE]) {
      NN_UNROLL
      for (int r = 0; r < kRows; ++r) {
        if (!present(r)) continue;
        float higher = found[r].top;
        NN_UNROLL
        for (int e = 0; e < kE; ++e) higher = fmaxf(higher, x[r][e]);
        const float up = found[r].top - higher;
        found[r].top = higher;
        found[r].soft *= exp2_fast(up * per_logit.soft);
        NN_UNROLL
        for (int e = 0; e < kE; ++e) found[r].soft += exp2_fast((x[r][e] - higher) * per_logit.soft);
        if (!plain) continue;
        found[r].plain *= exp2_fast(up * per_logit.plain);
        NN_UNROLL
        for (int e = 0; e < kE; ++e) found[r].plain += exp2_fast((x[r][e] - higher) * per_logit.plain);
      }
    });
    group.merge(found, per_logit);
    live = 0;
    NN_UNROLL
    for (int r = 0; r < kRows; ++r) {
      top[r] = found[r].top;
      log_soft[r] = log2f(found[r].soft);
      log_plain[r] = plain ? log2f(found[r].plain) : log_soft[r];
      check(r);
    }
  }

  // From what distill_terms kept of the row.
  NN_DEVICE void load_statistics() {
    live = 0;
    NN_UNROLL
    for (int r = 0; r < kRows; ++r) {
      const float* kept = p.stats + ((r < K() ? r : K()) * p.N + n) * kStats;
      const bool there = present(r);
      top[r] = there ? kept[0] : 0;
      log_soft[r] = there ? kept[1] * kLog2e : 0;
      log_plain[r] = there ? kept[2] * kLog2e : 0;
      if (!kKl && r < kK) expectation[r < kK ? r : 0] = there ? kept[3] : 0;
      check(r);
    }
  }

  NN_DEVICE void keep_statistics() const {
    NN_UNROLL
    for (int r = 0; r < kRows; ++r) {
      if (r >= K() && r != kK) continue;
      float* kept = p.stats + ((r < K() ? r : K()) * p.N + n) * kStats;
      const bool there = present(r);
      kept[0] = there ? top[r] : 0;
      kept[1] = !there ? 0 : lives(r) ? log_soft[r] * kLn2 : not_a_number();
      kept[2] = !there ? 0 : lives(r) ? log_plain[r] * kLn2 : not_a_number();
      kept[3] = !kKl && r < kK && there ? expectation[r < kK ? r : 0] : 0;
    }
  }

  NN_DEVICE void check(int r) {
    if (!present(r)) top[r] = 0, log_soft[r] = log_plain[r] = kAbsent;
    else if (top[r] - top[r] == 0 && log_soft[r] - log_soft[r] == 0) live |= 1u << r;
    else top[r] = log_soft[r] = log_plain[r] = 0;
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
};

}  // namespace nanonet::cuda
