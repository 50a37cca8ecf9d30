// The state of a row while it is processed: its upstream gradients, its softmax statistics, and whether they are valid.
//
// A Source holds the row's logits: each() visits the thread's chunks; of a chunk's kClasses, load() returns kElements
// at a time for every student and the teacher (index kK; 0 without one), and put() stores as many of a gradient. A
// Group (groups.cuh) is the threads that share the row.
#pragma once

#include "groups.cuh"

namespace nanonet::cuda {

constexpr float kLn2 = 0.6931471805599453f;

template <int kK, bool kKlSlopes, class Group, class Source>
struct RowState {
  static constexpr int kRows = kK + 1, kE = Source::kElements;
  static constexpr float kAbsent = 300;  // log-sum-exp of an absent row: it makes its probabilities 0
  const Call& p;
  Group& group;
  Source& source;
  const int64_t n;

  int y;  // -1: unlabelled, or not a class
  bool labelled, bad_label, separate_ce;  // separate_ce: ce needs a softmax other than that at the temperature
  float u_ce[kK], u_teacher[kK], u_peers[kK];  // upstream gradients, times the constants of the terms' gradients
  float max[kRows], lse_tau[kRows], lse_1[kRows];  // maximum; base-2 log-sum-exp below it
  float slope_sum[kK];  // sum over the classes of ClassShare::slope, unless kKlSlopes
  uint32_t valid_rows;  // bit r: row r has a softmax

  // A constant in the kernels with an exact number of students: their loops have no bounds checks.
  NN_DEVICE int K() const { return kKlSlopes && Source::kExact ? kK : p.K; }
  NN_DEVICE bool has_teacher() const { return p.teacher.data != nullptr; }
  NN_DEVICE bool present(int r) const { return r < K() || (r == kK && has_teacher()); }
  NN_DEVICE bool valid(int r) const { return valid_rows >> r & 1; }
  NN_DEVICE bool mse() const { return !kKlSlopes && p.divergence == kMse; }
  NN_DEVICE float pairs() const { return K() > 1 ? float(K() - 1) : 1.0f; }

  NN_DEVICE RowState(const Call& p, Group& group, Source& source, int64_t n)
      : p(p), group(group), source(source), n(n) {
    const int64_t label = p.label ? p.label[n * p.label_stride] : kUnlabelled;
    labelled = label != kUnlabelled;
    bad_label = labelled && (label < 0 || label >= p.C);
    y = labelled && !bad_label ? int(label) : -1;
    separate_ce = p.temperature != 1 && (labelled || (p.stats && !p.from_stats));
  }

  // u(i, k): upstream gradient of term i of student k.
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

  // body(vectors, chunk, at, x) for every step of the thread's chunks: x (kRows,kE), the classes from `at` on.
  template <class Body>
  NN_DEVICE void steps(bool backwards, Body body) const {
    source.each(backwards, [&](int chunk) {
      typename Source::Vectors vectors;
      const auto step = [&](int at) {
        float x[kRows][kE];
        source.load(vectors, chunk, at, x);
        body(vectors, chunk, at, x);
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

  // Maximum and log-sum-exp in one sweep: sums are relative to the maximum so far and rescaled when it rises.
  //
  // Careful: the exponent is (x - max) c. Otherwise it is the single operation x c - R, with R = max c rounded; the
  // error of R is common to all terms and corrected at the end. Then a row whose maximum is below kFloor, or so large
  // that the error of R is large, counts as invalid.
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
        const float before = found[r].max;
        float now = before;
        NN_UNROLL
        for (int e = 0; e < kE; ++e) now = fmaxf(now, x[r][e]);
        found[r].max = now;
        const auto add = [&](float& sum, float c) {
          const float R = __fmul_rn(now, c);
          sum *= exp2_fast(kCareful ? (before - now) * c : __fmul_rn(before, c) - R);
          NN_UNROLL
          for (int e = 0; e < kE; ++e) sum += exp2_fast(kCareful ? (x[r][e] - now) * c : fmaf(x[r][e], c, -R));
        };
        add(found[r].sum_tau, per_logit.tau);
        if (separate_ce) add(found[r].sum_1, per_logit.one);
      }
    });
    NN_UNROLL
    for (int r = 0; !kCareful && r < kRows; ++r) {
      const auto error = [&](float c) { return exp2_fast(-fmaf(found[r].max, c, -__fmul_rn(found[r].max, c))); };
      found[r].sum_tau *= error(per_logit.tau);
      if (separate_ce) found[r].sum_1 *= error(per_logit.one);
    }
    group.merge(found, per_logit);
    valid_rows = 0;
    NN_UNROLL
    for (int r = 0; r < kRows; ++r) {
      max[r] = kCareful || found[r].max > kFloor ? found[r].max : not_a_number();
      lse_tau[r] = log2f(found[r].sum_tau);
      lse_1[r] = separate_ce ? log2f(found[r].sum_1) : lse_tau[r];
      validate(r);
    }
  }

  NN_DEVICE float* stats_of(int r) const { return p.stats + ((r < K() ? r : K()) * p.N + n) * kStats; }

  // What store_statistics() wrote in the forward.
  NN_DEVICE void load_statistics() {
    valid_rows = 0;
    NN_UNROLL
    for (int r = 0; r < kRows; ++r) {
      const float* stats = stats_of(r);
      const bool there = present(r);
      max[r] = there ? stats[0] : 0;
      lse_tau[r] = there ? stats[1] * kLog2e : 0;
      lse_1[r] = there ? stats[2] * kLog2e : 0;
      if (!kKlSlopes && r < kK) slope_sum[r < kK ? r : 0] = there ? stats[3] : 0;
      validate(r);
    }
  }

  NN_DEVICE void store_statistics() const {
    NN_UNROLL
    for (int r = 0; r < kRows; ++r) {
      if (r >= K() && r != kK) continue;
      float* stats = stats_of(r);
      const bool there = present(r);
      stats[0] = there ? max[r] : 0;
      stats[1] = !there ? 0 : valid(r) ? lse_tau[r] * kLn2 : not_a_number();
      stats[2] = !there ? 0 : valid(r) ? lse_1[r] * kLn2 : not_a_number();
      stats[3] = !kKlSlopes && r < kK && there ? slope_sum[r < kK ? r : 0] : 0;
    }
  }

  // Sets the row's bit of valid_rows. Absent and invalid rows get finite statistics.
  NN_DEVICE void validate(int r) {
    if (!present(r)) max[r] = 0, lse_tau[r] = lse_1[r] = kAbsent;
    else if (max[r] - max[r] == 0 && lse_tau[r] - lse_tau[r] == 0 && lse_1[r] - lse_1[r] == 0) valid_rows |= 1u << r;
    else max[r] = lse_tau[r] = lse_1[r] = 0;
  }

  // Whether the gradient of student k depends on a row without a softmax, or on a label that is not a class.
  NN_DEVICE bool invalid_gradient(int k) const {
    bool any = u_ce[k] != 0 && (bad_label || !valid(k));
    if (!mse()) {
      any |= u_teacher[k] != 0 && !(valid(k) && valid(kK));
      any |= u_peers[k] != 0 && !all_valid();
    }
    return any;
  }

  NN_DEVICE bool all_valid() const {
    const uint32_t students = (1u << K()) - 1;
    return (valid_rows & students) == students;
  }
  NN_DEVICE bool teacher_valid() const { return !has_teacher() || valid(kK); }

  // Called after each step of a sweep. The row's last one (`last`) makes room for the next row, chunk by chunk.
  NN_DEVICE void step_done(int chunk, int at, bool last) const {
    if constexpr (Source::kStaged)
      if (last && at + kE == Source::kClasses) source.prefetch_next(chunk);
  }

  // Subtracts the one-hot label of ce.
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
