// The students and the teacher of one row n in chunks of the first-level cache, for any number of students. A first sweep
// leaves e = e^((x - top of the chunk)/tau) of every row in scratch, so that each class costs one exponential; what comes
// after takes q = e scale and log q = (x - top)/tau - log S from it and from the logits.
#pragma once

#include "pairs.h"

namespace nanonet::NANONET_ISA {

template <class F>
NN_INLINE F top_of(const F* x, int64_t count) {
  Vec<F> top[2] = {load(x), load(x)};
  for (int64_t i = 0; i < count; ++i) top[i & 1] = larger<F>(load(x + i * kLanes<F>), top[i & 1]);
  return max_lanes(larger<F>(top[0], top[1]));
}

template <class F>
struct ChunkedRow {
  static constexpr int64_t L = kLanes<F>;
  using V = Vec<F>;

  // A row's statistics in double, as stats hold them; and the chunk of it that is at hand.
  struct Row {
    double top, log_S, log_S1, slopes;
    const F *x, *e;
    F scale;  // q = e scale
  };

  using View = ChunkView<F>;

  const Problem& p;
  Scratch<F>& s;
  const int64_t n, y;
  Row* const rows;  // (K+1), the teacher's last
  const bool has_teacher, mse;
  const int64_t R;

  ChunkedRow(const Problem& p, Scratch<F>& s, int64_t n, Row* rows)
      : p(p),
        s(s),
        n(n),
        y(label_of(p, n)),
        rows(rows),
        has_teacher(p.teacher),
        mse(p.divergence == kMse),
        R(p.K + has_teacher) {}

  bool soft(int64_t k) const { return !p.row_weight || ((const F*)p.row_weight)[k * p.N + n] != 0; }
  bool labelled() const { return y != kUnlabelled; }
  const Rows& source(int64_t r) const { return r < p.K ? p.student[r] : *p.teacher; }
  int64_t classes(int64_t chunk) const { return p.C - chunk * kChunk < kChunk ? p.C - chunk * kChunk : kChunk; }
  F* value(int which) const { return s.values + which * s.chunk_stride; }

  template <class Body>
  NN_INLINE void each(int64_t chunk, Body body) const {
    const int64_t end = padded<F>(classes(chunk));
    for (int64_t i = 0; i < end; i += L) body(i);
  }

  // Sum over the chunk of body(i), a vector of terms.
  template <class Body>
  NN_INLINE double sum(int64_t chunk, Body body) const {
    V total = {};
    each(chunk, [&](int64_t i) __attribute__((always_inline)) { total += body(i); });
    return double(sum_lanes(total));
  }

  const F* stage(int64_t r, int64_t chunk) {
    const F pad = mse ? F(0) : F(-__builtin_huge_valf());
    return staged<F>(source(r), n, chunk * kChunk, classes(chunk), s.staged + r * s.chunk_stride, pad);
  }

  // Sum of e^((x - top) c) over a chunk, its terms to `out` unless that is null.
  template <bool kKeep>
  double exponentials(int64_t chunk, const F* x, F top, F c, F* out) const {
    Wide<F> total = {};
    const int64_t end = padded<F>(classes(chunk));
    for (int64_t run = 0; run < end; run += kRun * L) {
      V in_run = {};
      const int64_t stop = run + kRun * L < end ? run + kRun * L : end;
      for (int64_t i = run; i < stop; i += L) {
        const V e = exp_scaled<F>(load(x + i) - top, c);
        if constexpr (kKeep) store(out + i, e);
        in_run += e;
      }
      total += widen<F>(in_run);
    }
    return double(sum_lanes(total));
  }

  // Fills e, and the factors that bring each chunk's to the row's maximum and its sum to 1.
  void softmax(int64_t r) {
    const F c = exponent_factor<F>(p.temperature), lowest = -__builtin_huge_valf();
    F *tops = s.tops + r * s.table(), *factors = s.factors + r * s.table();
    F top = lowest;
    for (int64_t chunk = 0; chunk < s.chunks; ++chunk) {
      const F* x = staged<F>(source(r), n, chunk * kChunk, classes(chunk), s.staged + r * s.chunk_stride, lowest);
      tops[chunk] = top_of(x, padded<F>(classes(chunk)) / L);
      top = top > tops[chunk] ? top : tops[chunk];
      // where a chunk is -inf throughout, anything finite will do
      const F reference = tops[chunk] == lowest ? F(0) : tops[chunk];
      s.sums[chunk] = exponentials<true>(chunk, x, reference, c, s.exps + r * s.row_stride + chunk * kChunk);
    }
    for (int64_t i = 0; i < s.table(); i += L) store(factors + i, exp_scaled<F>(load(tops + i) - top, c));
    double S = 0;
    for (int64_t chunk = 0; chunk < s.chunks; ++chunk) S += factors[chunk] * s.sums[chunk];
    for (int64_t i = 0; i < s.table(); i += L) store(factors + i, load(factors + i) * F(1 / S));
    rows[r] = {double(top), log_of(S), 0, 0, nullptr, nullptr, 0};
    if (r == p.K || !labelled()) return;
    rows[r].log_S1 = p.temperature == 1 ? rows[r].log_S : log_of(sum_at_1(r, top));
  }

  double sum_at_1(int64_t r, F top) {
    double S = 0;
    for (int64_t chunk = 0; chunk < s.chunks; ++chunk) {
      const F* x = staged<F>(source(r), n, chunk * kChunk, classes(chunk), s.staged + r * s.chunk_stride,
                             F(-__builtin_huge_valf()));
      S += exponentials<false>(chunk, x, top, exponent_factor<F>(1.0), nullptr);
    }
    return S;
  }

  // Has every row's x and e of the chunk at hand.
  void enter(int64_t chunk, bool from_stats) {
    for (int64_t r = 0; r < R; ++r) {
      Row& row = rows[r];
      row.x = stage(r, chunk);
      if (mse) continue;
      F* e = s.exps + r * s.row_stride + chunk * kChunk;
      row.e = e;
      row.scale = from_stats ? F(__builtin_exp(-row.log_S)) : s.factors[r * s.table() + chunk];
      if (from_stats) exponentials<true>(chunk, row.x, F(row.top), exponent_factor<F>(p.temperature), e);
    }
  }

  View view(int64_t r) const {
    const Row& row = rows[r];
    return {row.x, row.e, F(row.top), F(row.log_S), F(1 / p.temperature), row.scale};
  }

  void load_stats() {
    for (int64_t r = 0; r < R; ++r) {
      const F* stats = stats_of<F>(p, r, n);
      rows[r] = {double(stats[0]), double(stats[1]), double(stats[2]), double(stats[3]), nullptr, nullptr, 0};
    }
  }
};

}  // namespace nanonet::NANONET_ISA
