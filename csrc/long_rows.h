// The fused path where a row fills vectors: lanes are classes, one row (of each tensor) at a time. Divergences whose
// gradient is not linear in e (general: all but kl and cross_entropy) take it from e and the logits in a second sweep.
#pragma once

#include "pairs.h"

namespace nanonet::NANONET_ISA {

// Students k0 .. k0+K-1 (and the teacher) of row n.
template <class F, int K, bool HasTeacher>
struct LongRow {
  static constexpr int R = K + HasTeacher;
  static constexpr int64_t L = kLanes<F>;
  const Problem& p;
  Scratch<F>& s;
  int64_t k0, n, y;
  int power;  // of the label's softmax; 0: unlabelled
  F c;
  const Rows* source[R];
  F* e[R];
  F top[R], log_S[R];
  double slopes[K] = {};  // general: sums over the row

  LongRow(const Problem& p, Scratch<F>& s, int64_t k0, int64_t n)
      : p(p), s(s), k0(k0), n(n), y(label_of(p, n)), c(exponent_factor<F>(p.temperature)) {
    power = y == kUnlabelled ? 0 : power_of(p.temperature);
    for (int r = 0; r < R; ++r) {
      source[r] = r < K ? p.student + k0 + r : p.teacher;
      e[r] = s.exps + r * s.row_stride;
    }
  }

  int64_t classes(int64_t chunk) const { return p.C - chunk * kChunk < kChunk ? p.C - chunk * kChunk : kChunk; }

  Chunk<F> chunk_at(int r, int64_t chunk) {
    return with_type(*source[r], n, chunk * kChunk, [&](auto* x) __attribute__((always_inline)) {
      return chunk_of<F>(x, classes(chunk), s.staged + r * s.chunk_stride);
    });
  }

  // Whether no exponential of the row vanishes. Then the pads, which hold a value of the row so far, may be as low as
  // the path allows, and weigh nothing: they are equal in all rows.
  bool near(const Chunk<F>& chunk) const {
    constexpr F kLargest = F(1 << 20);  // below it, maximum plus depth loses nothing
    return (chunk.low - chunk.top) * c >= Exp2<F>::lowest && kLargest > chunk.top && chunk.low > -kLargest;
  }

  // Where the chunk is -inf throughout, anything finite will do.
  static F reference(F top) { return top == -__builtin_huge_valf() ? F(0) : top; }

  template <bool kKeep>
  void sweep_chunk(int64_t chunk) {
    const int64_t count = padded<F>(classes(chunk)) / L;
    const F *x[R], *last[R];
    F* at[R];
    Chunk<F> here[R];
    Ahead<R> ahead;
    ahead.bytes = L * size_of(source[0]->dtype);
    Vec<F> top[R];
    bool all_near = true;
    for (int r = 0; r < R; ++r) {
      here[r] = chunk_at(r, chunk);
      x[r] = here[r].x;
      last[r] = here[r].last;
      at[r] = e[r] + chunk * kChunk;
      ahead.at[r] = source[r]->row(n) + (chunk + 1) * kChunk * size_of(source[r]->dtype);
      s.tops[r * s.table() + chunk] = here[r].top;
      top[r] = splat(reference(here[r].top));
      all_near &= near(here[r]);
    }
    const F depth = all_near ? Exp2<F>::lowest / c : -__builtin_huge_valf();
    for (const Chunk<F>& chunk : here)
      for (F* pad = chunk.pads[0]; pad < chunk.pads[1]; ++pad) *pad = chunk.top + depth;
    Sums<F, K, HasTeacher> sums;
    const auto run = all_near ? sweep<F, K, HasTeacher, kKeep, true> : sweep<F, K, HasTeacher, kKeep, false>;
    run(x, last, ahead, at, count, top, c, power > 1 ? power : 0, F(has_log_p(p)), sums);
    double* out = s.sums + chunk * (R + 2 * K + K * K);
    for (int r = 0; r < R; ++r) out[r] = sum_lanes(sums.S[r]);
    for (int k = 0; k < K; ++k) {
      out[R + k] = power > 1 ? sum_lanes(sums.S1[k]) : out[k];
      if (HasTeacher) out[R + K + k] = sum_lanes(sums.T[k]);
      for (int j = 0; j < K; ++j)
        if (j != k) out[R + 2 * K + j * K + k] = sum_lanes(sums.P[j][k]);
    }
  }

  // Brings the chunks' sums to the row's maximum; fills the factors that do the same to e.
  void combine(double* top, double* S, double* S1, double* T, double (*P)[K]) {
    const int64_t table = s.table();
    const F plain = exponent_factor<F>(1.0);
    for (int r = 0; r < R; ++r) {
      F highest = s.tops[r * table];
      for (int64_t i = 1; i < s.chunks; ++i) highest = s.tops[r * table + i] > highest ? s.tops[r * table + i] : highest;
      top[r] = highest;
      for (int64_t i = 0; i < table; i += L) {
        const Vec<F> below = load(s.tops + r * table + i) - highest;
        store(s.factors + r * table + i, exp_scaled<F>(below, c));
        if (r < K && power > 0) store(s.factors + (R + r) * table + i, exp_scaled<F>(below, plain));
      }
      S[r] = 0;
    }
    for (int k = 0; k < K; ++k) {
      S1[k] = T[k] = 0;
      for (int j = 0; j < K; ++j) P[j][k] = 0;
    }
    for (int64_t i = 0; i < s.chunks; ++i) {
      const double* in = s.sums + i * (R + 2 * K + K * K);
      double factor[R], below[R];
      for (int r = 0; r < R; ++r) {
        factor[r] = s.factors[r * table + i];
        below[r] = reference(s.tops[r * table + i]) - top[r];
        S[r] += factor[r] * in[r];
      }
      for (int k = 0; k < K; ++k) {
        if (power > 0) S1[k] += s.factors[(R + k) * table + i] * in[R + k];
        if (HasTeacher && factor[R - 1] != 0)
          T[k] += factor[R - 1] * (in[R + K + k] + in[R - 1] * (has_log_p(p) * below[R - 1] - below[k]));
        for (int j = 0; j < K; ++j)
          if (j != k && factor[j] != 0)
            P[j][k] += factor[j] * (in[R + 2 * K + j * K + k] + in[j] * (below[j] - below[k]));
      }
    }
  }

  bool general() const { return HasTeacher && !has_kl_slopes(p.divergence); }

  const F* logits(int r, int64_t chunk, F pad) {
    return staged<F>(*source[r], n, chunk * kChunk, classes(chunk), s.staged + r * s.chunk_stride, pad);
  }

  // x: the chunk's logits; their pads count only where e of a pad is not 0, so they must be finite then.
  ChunkView<F> view(int r, int64_t chunk, const F* x, F scale) const {
    return {x, e[r] + chunk * kChunk, top[r], log_S[r], F(1 / p.temperature), scale};
  }

  // general: D(p, q_k) of every student, and the sums of its slopes.
  void divergences(const double* S, double* of_teacher) {
    double value[K] = {};
    for (int64_t chunk = 0; chunk < s.chunks; ++chunk) {
      const auto view_of = [&](int r) {
        const F* x = needs_logits(p.divergence) ? logits(r, chunk, F(0)) : nullptr;
        return view(r, chunk, x, s.factors[r * s.table() + chunk] * F(1 / S[r]));
      };
      const ChunkView<F> teacher = view_of(R - 1);
      for (int k = 0; k < K; ++k) {
        const PairSums sums = pair_sums(p, teacher, view_of(k), padded<F>(classes(chunk)));
        value[k] += sums.value, slopes[k] += sums.slopes;
      }
    }
    for (int k = 0; k < K; ++k) of_teacher[k] = value[k] * p.temperature * p.temperature;
  }

  template <bool kKeep>
  void run() {
    for (int64_t chunk = 0; chunk < s.chunks; ++chunk)
      kKeep || general() ? sweep_chunk<true>(chunk) : sweep_chunk<false>(chunk);
    double highest[R], S[R], S1[K], T[K], P[K][K], below[K], log_sum[R], log_S1[K], ce[K], teacher[K], peers[K];
    combine(highest, S, S1, T, P);
    for (int k = 0; k < K; ++k) below[k] = power > 0 ? double(element<F>(*source[k], n, y)) - highest[k] : 0;
    finish<K, HasTeacher, double>(S, S1, T, P, below, p, log_sum, log_S1, ce, teacher, peers);
    for (int r = 0; r < R; ++r) top[r] = F(highest[r]), log_S[r] = F(log_sum[r]);
    if (general()) divergences(S, teacher);
    for (int k = 0; k < K; ++k) {
      term_of<F>(p, 0, k0 + k, n) = power > 0 ? F(ce[k]) : F(0);
      term_of<F>(p, 1, k0 + k, n) = F(teacher[k]);
      term_of<F>(p, 2, k0 + k, n) = F(peers[k]);
    }
    if (p.stats) {
      for (int r = 0; r < R; ++r) {
        F* stats = stats_of<F>(p, r < K ? k0 + r : p.K, n);
        stats[0] = top[r];
        stats[1] = log_S[r];
        stats[2] = r < K && power > 0 ? F(log_S1[r]) : F(0);
        stats[3] = r < K ? F(slopes[r]) : F(0);
      }
    }
    if constexpr (kKeep) {
      F scale[R], scale1[K];
      for (int r = 0; r < R; ++r) scale[r] = F(1 / S[r]);
      for (int k = 0; k < K; ++k) scale1[k] = F(1 / S1[k]);
      general() ? write_gradient<HasTeacher>(scale, scale1, false) : write_gradient<false>(scale, scale1, false);
    }
  }

  // dstudent from the statistics of an earlier forward.
  void run_backward() {
    F scale[R], scale1[K];
    for (int r = 0; r < R; ++r) {
      const F* stats = stats_of<F>(p, r < K ? k0 + r : p.K, n);
      top[r] = stats[0], log_S[r] = stats[1];
      scale[r] = F(__builtin_exp(-double(log_S[r])));
      if (r < K) scale1[r] = F(__builtin_exp(-double(stats[2]))), slopes[r] = stats[3];
    }
    general() ? write_gradient<HasTeacher>(scale, scale1, true) : write_gradient<false>(scale, scale1, true);
  }

  void exponentials(int64_t chunk, const F* const* x) {
    const int64_t count = padded<F>(classes(chunk)) / L;
    for (int r = 0; r < R; ++r) {
      const Vec<F> highest = splat(top[r]);
      F* at = e[r] + chunk * kChunk;
      for (int64_t i = 0; i < count; ++i) store(at + i * L, exp_scaled<F>(load(x[r] + i * L) - highest, c));
    }
  }

  template <bool kGeneral>
  void write_gradient(const F* scale, const F* scale1, bool from_stats) {
    constexpr int kStreams = kGeneral ? 2 * K : R;
    Slopes<F, K, HasTeacher, kGeneral> factors;
    const F tau = F(p.temperature);
    F u_ce[K];
    int64_t done[K] = {};
    const bool direct = !p.stream && size_of(p.student->dtype) == sizeof(F);
    bool any_ce = false;
    for (int k = 0; k < K; ++k) {
      u_ce[k] = power > 0 ? upstream_of<F>(p, 0, k0 + k, n) : F(0);
      any_ce |= u_ce[k] != 0;
      factors.ce[k] = splat(u_ce[k]);
      factors.teacher[k] = splat(upstream_of<F>(p, 1, k0 + k, n) * tau);
      factors.peers[k] = splat(K > 1 ? upstream_of<F>(p, 2, k0 + k, n) * tau / F(K > 1 ? K - 1 : 1) : F(0));
    }
    for (int64_t chunk = 0; chunk < s.chunks; ++chunk) {
      const int64_t begin = chunk * kChunk, end = begin + classes(chunk);
      const F *from[kStreams], *x[R];
      for (int r = 0; r < R && (from_stats || (kGeneral && needs_logits(p.divergence))); ++r)
        x[r] = logits(r, chunk, from_stats ? F(-__builtin_huge_valf()) : F(0));
      if (from_stats) exponentials(chunk, x);
      for (int r = 0; r < R; ++r) {
        from[r] = e[r] + begin;
        const F* factor = s.factors + r * s.table() + chunk;
        factors.scale[r] = splat(from_stats ? scale[r] : *factor * scale[r]);
        if (r < K && any_ce) factors.scale1[r] = splat(from_stats ? scale1[r] : factor[R * s.table()] * scale1[r]);
      }
      for (int k = 0; kGeneral && k < K; ++k) {
        const ChunkView<F> teacher = view(K, chunk, x[K], factors.scale[K][0]);
        F* of_teacher = s.values + k * s.chunk_stride;
        const ChunkView<F> student = view(k, chunk, x[k], factors.scale[k][0]);
        pair_gradient(p, teacher, student, F(slopes[k]), padded<F>(end - begin), of_teacher);
        from[K + k] = of_teacher;
      }
      factors.combine(any_ce ? power : 0);
      // whole vectors go straight to where they belong, where that is an array of F and not streamed
      const int64_t whole = direct ? (end - begin) / L * L : 0, rest = padded<F>(end - begin) - whole;
      F *out[K], *staged_out[K];
      for (int k = 0; k < K; ++k) {
        out[k] = (F*)dstudent_of(p, k0 + k, n) + begin;
        staged_out[k] = e[k] + begin + whole;
      }
      if (whole > 0) gradient(from, out, whole / L, any_ce ? power : 0, factors);
      for (const F*& stream : from) stream += whole;
      if (rest > 0) gradient(from, staged_out, rest / L, any_ce ? power : 0, factors);
      for (int k = 0; k < K; ++k) {
        if (any_ce && begin <= y && y < end) (y < begin + whole ? out[k] - begin : e[k])[y] -= u_ce[k];
        if (direct) done[k] = begin + whole;
        done[k] = put(dstudent_of(p, k0 + k, n), p.student->dtype, e[k], done[k], end, p.stream, end == p.C);
      }
    }
  }
};

}  // namespace nanonet::NANONET_ISA
