// The loss of a range of rows against a teacher's k likeliest classes. Up to four students, whose rows are all alike, in
// one go; else ce and peers as without a teacher (distill.h), and to their gradient that of the teacher's term.
#pragma once

#include "distill.h"
#include "topk_row.h"

namespace nanonet::NANONET_ISA {

// One row of K students of a narrow dtype as F, with its values: what two passes add up is rounded once.
template <class F>
struct WideRow {
  const Problem& p;
  bool wanted;
  int64_t stride, bytes = 0;
  F *student, *dstudent, *upstream, *terms, *weight;  // (K,stride), (K,C), (3,K), (3,K), (K)
  Rows* rows;

  WideRow(const Problem& p, char* memory)
      : p(p), wanted(size_of(p.student->dtype) < int64_t(sizeof(F))), stride(padded<F>(p.C)) {
    const auto take = [&](int64_t elements, int64_t size) {
      char* at = memory + bytes;
      bytes += wanted ? (elements * size + 63) / 64 * 64 : 0;
      return at;
    };
    student = (F*)take(p.K * stride, sizeof(F)), dstudent = (F*)take(p.K * stride, sizeof(F));
    upstream = (F*)take(3 * p.K, sizeof(F)), terms = (F*)take(3 * p.K, sizeof(F)), weight = (F*)take(p.K, sizeof(F));
    rows = (Rows*)take(p.K, sizeof(Rows));
  }

  void take_place_in(Problem& one) const {
    constexpr Dtype dtype = sizeof(F) == 4 ? Dtype::kFloat32 : Dtype::kFloat64;
    for (int64_t k = 0; k < p.K; ++k) rows[k] = {(const char*)(student + k * stride), 0, dtype};
    one.N = 1, one.student = rows, one.terms = terms, one.dstudent = (char*)dstudent;
    if (p.upstream) one.upstream = upstream;
    if (p.row_weight) one.row_weight = weight;
  }

  void take_row(Problem& one, int64_t n) const {
    if (p.label) one.label = p.label + n;
    for (int64_t k = 0; k < p.K; ++k) {
      const F* x = staged<F>(p.student[k], n, 0, p.C, student + k * stride, F(0));
      if (x != student + k * stride) std::memcpy(student + k * stride, x, size_t(p.C) * sizeof(F));
      if (p.row_weight) weight[k] = ((const F*)p.row_weight)[k * p.N + n];
      for (int term = 0; p.upstream && term < 3; ++term) upstream[term * p.K + k] = upstream_of<F>(p, term, k, n);
    }
  }

  void give_row(int64_t n) const {
    for (int64_t k = 0; k < p.K; ++k) {
      for (int term = 0; term < 3; ++term) term_of<F>(p, term, k, n) = terms[term * p.K + k];
      if (p.upstream) put(dstudent_of(p, k, n), p.student->dtype, dstudent + k * p.C, p.C);
    }
  }
};

template <class F>
struct TopRange {
  const Problem& p;
  Problem plain;  // added to: its gradient stays in the caches
  WideRow<F> wide;
  Range<F> range;
  TopClasses<F> classes;

  TopRange(const Problem& p, char* memory)
      : p(p),
        plain(without_teacher(p)),
        wide(p, memory + Range<F>::bytes(p) + TopClasses<F>(p, nullptr).bytes),
        range(plain, memory),
        classes(p, memory + Range<F>::bytes(p)) {
    if (wide.wanted) wide.take_place_in(plain);
  }

  static int64_t bytes(const Problem& p) {
    return Range<F>::bytes(p) + TopClasses<F>(p, nullptr).bytes + WideRow<F>(p, nullptr).bytes;
  }

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
    const int64_t row = wide.wanted ? 0 : n;
    if (wide.wanted) wide.take_row(plain, n);
    range.run(pass, row, row + 1);
    Problem alone = plain;
    alone.divergence = p.divergence, alone.beta = p.beta;
    for (int64_t k = 0; k < p.K; ++k)
      if (weighs(k, n))
        TopRow<F, 1>(alone, range.s, k, row, classes, true).run(true, p.upstream && upstream_of<F>(p, 1, k, n) != 0);
    if (wide.wanted) wide.give_row(n);
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
