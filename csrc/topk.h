// The loss of a range of rows against a teacher's k likeliest classes. Up to four students, whose rows are all alike, in
// one go; else ce and peers as without a teacher (distill.h), and to their gradient that of the teacher's term.
#pragma once

#include "distill.h"
#include "topk_row.h"

namespace nanonet::NANONET_ISA {

template <class F>
struct TopRange {
  const Problem& p;
  Problem plain;  // added to: its gradient stays in the caches
  Range<F> range;
  TopClasses<F> classes;

  TopRange(const Problem& p, char* memory)
      : p(p), plain(without_teacher(p)), range(plain, memory), classes(p, memory + Range<F>::bytes(p)) {}

  static int64_t bytes(const Problem& p) { return Range<F>::bytes(p) + TopClasses<F>(p, nullptr).bytes; }

  static Problem without_teacher(Problem p) {
    p.teacher = nullptr, p.stats = nullptr, p.divergence = kKl, p.beta = 0, p.stream = false;
    return p;
  }

  bool weighs(int64_t k, int64_t n) const { return !p.row_weight || ((const F*)p.row_weight)[k * p.N + n] != 0; }

  // Whether no student's row is masked, in whole or in part.
  bool alike(int64_t n) const {
    if (p.K > kMaxFused || (label_of(p, n) != kUnlabelled && power_of(p.temperature) == 0)) return false;
    for (int64_t k = 0; k < p.K; ++k) {
      if (!weighs(k, n)) return false;
      if (!p.upstream) continue;
      if (upstream_of<F>(p, 1, k, n) == 0 || (p.K > 1 && upstream_of<F>(p, 2, k, n) == 0)) return false;
    }
    return true;
  }

  void apart(Pass pass, int64_t n) {
    range.run(pass, n, n + 1);
    for (int64_t k = 0; k < p.K; ++k) {
      if (!weighs(k, n)) continue;
      Problem alone = plain;
      alone.divergence = p.divergence, alone.beta = p.beta;
      TopRow<F, 1>(alone, range.s, k, n, classes, true).run(true, p.upstream && upstream_of<F>(p, 1, k, n) != 0);
    }
  }

  void together(int64_t n) {
    switch (p.K) {
      case 1: return TopRow<F, 1>(p, range.s, 0, n, classes, false).run(false, p.upstream);
      case 2: return TopRow<F, 2>(p, range.s, 0, n, classes, false).run(false, p.upstream);
      case 3: return TopRow<F, 3>(p, range.s, 0, n, classes, false).run(false, p.upstream);
      default: return TopRow<F, 4>(p, range.s, 0, n, classes, false).run(false, p.upstream);
    }
  }

  void run(Pass pass, int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) {
      classes.take_row(p, n);
      alike(n) ? together(n) : apart(pass, n);
    }
    if (p.stream) stream_fence();
  }
};

}  // namespace nanonet::NANONET_ISA
