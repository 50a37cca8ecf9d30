// The loss of a range of rows: which path each row takes. Included once per instruction set, by ranges.cpp.
//
//   packed rows   kl and cross_entropy of few classes: kLanes rows at once
//   long row      up to four students, the same terms for each of them, any divergence but mse
//   any row       the rest
// The choice depends on the row alone, never on its neighbours or on the split over threads.
#pragma once

#include "any_rows.h"
#include "long_rows.h"
#include "packed_rows.h"
#include "ranges.h"

namespace nanonet::NANONET_ISA {

enum class Path { kNothing, kLabelAlone, kFused, kAny };

template <class F>
struct Range {
  static constexpr int64_t L = kLanes<F>;
  const Problem& p;
  Scratch<F> s;
  typename AnyRow<F>::Row* rows;  // (K+1)
  double* sums;                   // (2,K)
  bool fused;                     // as far as the whole problem decides

  Range(const Problem& p, void* memory) : p(p), s(p, (char*)memory) {
    rows = (typename AnyRow<F>::Row*)((char*)memory + s.bytes);
    sums = (double*)(rows + p.K + 1);
    fused = p.divergence != kMse && p.K <= kMaxFused;
  }

  static int64_t bytes(const Problem& p) {
    return Scratch<F>(p, nullptr).bytes + (p.K + 1) * int64_t(sizeof(typename AnyRow<F>::Row)) + 2 * p.K * 8;
  }

  // How many of the K values a term has for row n are not 0.
  int64_t present(const void* values, int term, int64_t n) const {
    int64_t count = 0;
    for (int64_t k = 0; k < p.K; ++k) count += ((const F*)values)[(term * p.K + k) * p.N + n] != 0;
    return count;
  }

  Path path(Pass pass, int64_t n) const {
    const bool labelled = label_of(p, n) != kUnlabelled;
    const bool any_soft = p.teacher || p.K > 1;
    const int64_t weighted = p.row_weight ? present(p.row_weight, 0, n) : p.K;
    bool alike = !any_soft || weighted == p.K;
    bool alone = any_soft && weighted == 0;
    if (p.upstream) {
      const int64_t teacher = p.teacher ? present(p.upstream, 1, n) : 0;
      const int64_t peers = p.K > 1 ? present(p.upstream, 2, n) : 0;
      alike &= teacher == (p.teacher ? p.K : 0) && peers == (p.K > 1 ? p.K : 0);
      alone |= pass == Pass::kBackward && teacher + peers == 0;
      alone |= !any_soft && (!labelled || present(p.upstream, 0, n) == 0);
    }
    if (alone && !labelled) return Path::kNothing;
    if (labelled && power_of(p.temperature) == 0) return Path::kAny;
    if (alone) return Path::kLabelAlone;
    return (fused || !any_soft) && alike ? Path::kFused : Path::kAny;
  }

  template <int K, bool HasTeacher>
  void long_row(Pass pass, int64_t k0, int64_t n) {
    LongRow<F, K, HasTeacher> row(p, s, k0, n);
    if (pass == Pass::kBackward) return row.run_backward();
    if (p.upstream) return row.template run<true>();
    row.template run<false>();
  }

  template <int K, bool HasTeacher>
  void packed_rows(Pass pass, const int64_t* n, int64_t count) {
    PackedRows<F, K, HasTeacher> block(p, s, n, count);
    if (pass == Pass::kBackward) return block.run_backward();
    if (p.upstream) return block.template run<true>();
    block.template run<false>();
  }

  // Calls body.operator()<K, HasTeacher>() for the problem's K and teacher.
  template <class Body>
  void with_shape(Body body) {
    const bool teacher = p.teacher;
    switch (p.K) {
      case 1: return teacher ? body.template operator()<1, true>() : body.template operator()<1, false>();
      case 2: return teacher ? body.template operator()<2, true>() : body.template operator()<2, false>();
      case 3: return teacher ? body.template operator()<3, true>() : body.template operator()<3, false>();
      default: return teacher ? body.template operator()<4, true>() : body.template operator()<4, false>();
    }
  }

  void nothing(Pass pass, int64_t n) {
    const int64_t bytes = p.C * size_of(p.student->dtype);
    for (int64_t k = 0; k < p.K; ++k) {
      if (pass != Pass::kBackward)
        for (int term = 0; term < 3; ++term) term_of<F>(p, term, k, n) = 0;
      if (p.upstream) std::memset(dstudent_of(p, k, n), 0, size_t(bytes));
    }
  }

  void any_row(Pass pass, int64_t n) {
    AnyRow<F> row(p, s, n, rows);
    pass == Pass::kBackward ? row.load_stats() : row.run_terms(sums);
    if (p.upstream) row.run_gradient(pass == Pass::kBackward);
  }

  void run(Pass pass, int64_t begin, int64_t end) {
    int64_t waiting[L], count = 0;
    const auto flush = [&] {
      if (count > 0) with_shape([&]<int K, bool HasTeacher>() { packed_rows<K, HasTeacher>(pass, waiting, count); });
      count = 0;
    };
    for (int64_t n = begin; n < end; ++n) {
      switch (path(pass, n)) {
        case Path::kNothing: nothing(pass, n); break;
        case Path::kLabelAlone:
          for (int64_t k = 0; k < p.K; ++k) long_row<1, false>(pass, k, n);
          break;
        case Path::kAny: any_row(pass, n); break;
        case Path::kFused:
          if (p.C <= kPackedClasses && (has_kl_slopes(p.divergence) || !p.teacher)) {
            waiting[count++] = n;
            if (count == L) flush();
          } else {
            with_shape([&]<int K, bool HasTeacher>() { long_row<K, HasTeacher>(pass, 0, n); });
          }
      }
    }
    flush();
    if (p.stream) stream_fence();
  }
};

}  // namespace nanonet::NANONET_ISA
