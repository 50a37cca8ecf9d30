// What is known of a row while it is worked on, wherever it lies and whoever shares it: what arrives from above, its
// softmax statistics, and whether they are fit for use.
//
// A Source holds the row: each() visits the thread's chunks; of a chunk's kClasses, load() gives kElements at a time, of
// every student and of the teacher (index kK; 0 where there is none), and put() takes as many of a gradient. A Group
// (groups.cuh) is the threads that share the row.
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

  // One sweep: a part's sums stand below the highest logit that it has seen, and no lower than where they begin.
  //
  // Not careful, the exponent (x - top) c is x c - R in one operation, with R = top c rounded; what R is off by, all
  // terms alike, is made good at the end. A row whose top is below kFloor, or so high that R is off by much, has no
  // softmax then.
  template <bool kCareful>
  NN_DEVICE void statistics() {
    constexpr float kFloor = -0x1p20f;
    const Exponents per_logit = exponents();
    Statistics found[kRows];
    NN_UNROLL
    for (int r = 0; r < kRows; ++r) found[r] = {kCareful ? kLowest : kFloor, 0, 0};
    steps(false, [&](auto&, int, int, float (&x)[kRows][kE]) {
      NN_UNROLL
      for (int r = 0; r < kRows; ++r) {
        if (!present(r)) continue;
        const float before = found[r].top;
        float top = before;
        NN_UNROLL
        for (int e = 0; e < kE; ++e) top = fmaxf(top, x[r][e]);
        found[r].top = top;
        const auto add = [&](float& sum, float c) {
          const float R = __fmul_rn(top, c);
          sum *= exp2_fast(kCareful ? (before - top) * c : __fmul_rn(before, c) - R);
          NN_UNROLL
          for (int e = 0; e < kE; ++e) sum += exp2_fast(kCareful ? (x[r][e] - top) * c : fmaf(x[r][e], c, -R));
        };
        add(found[r].soft, per_logit.soft);
        if (plain) add(found[r].plain, per_logit.plain);
      }
    });
    NN_UNROLL
    for (int r = 0; !kCareful && r < kRows; ++r) {
      const auto off = [&](float c) { return exp2_fast(-fmaf(found[r].top, c, -__fmul_rn(found[r].top, c))); };
      found[r].soft *= off(per_logit.soft);
      if (plain) found[r].plain *= off(per_logit.plain);
    }
    group.merge(found, per_logit);
    live = 0;
    NN_UNROLL
    for (int r = 0; r < kRows; ++r) {
      top[r] = kCareful || found[r].top > kFloor ? found[r].top : not_a_number();
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
    else if (top[r] - top[r] == 0 && log_soft[r] - log_soft[r] == 0 && log_plain[r] - log_plain[r] == 0) live |= 1u << r;
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
  NN_DEVICE bool teacher_lives() const { return !has_teacher() || lives(kK); }

  // After a step of a row's last sweep, if it is: the next row may come.
  NN_DEVICE void done_with(int chunk, int at, bool last) const {
    if constexpr (Source::kStaged)
      if (last && at + kE == Source::kClasses) source.make_room(chunk);
  }

  // The one-hot of ce.
  template <class Chunk>
  NN_DEVICE void subtract_label(int chunk, int at, Chunk& d) const {
    NN_UNROLL
    for (int k = 0; k < kK; ++k) {
      NN_UNROLL
      for (int e = 0; e < kE; ++e) d[k][e] -= source.class_at(chunk, at + e) == y ? u_ce[k] : 0;
    }
  }
};

}  // namespace nanonet::cuda
