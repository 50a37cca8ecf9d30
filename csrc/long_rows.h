// The fused path where a row fills vectors: lanes are classes, one row (of each tensor) at a time. Divergences whose
// gradient is not linear in e (general: all but kl and cross_entropy) take it from e and the logits in a second sweep.
#pragma once

#include "long_gradient.h"

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
  F tops[R];              // of the last chunk whose maxima were looked for
  bool deep = false;      // some class lies too far below its chunk's maximum for exp_near: the rest is masked
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

  // Where the chunk is -inf throughout, anything finite will do.
  static F reference(F top) { return top == -__builtin_huge_valf() ? F(0) : top; }

  // A chunk's sums, and its exponentials relative to `tops`. kNear: false where that is too far from some class.
  template <bool kKeep, bool kNear, class T>
  bool sweep_from(int64_t chunk, const T* const* x) {
    F* at[R];
    Vec<F> top[R];
    for (int r = 0; r < R; ++r) at[r] = e[r] + chunk * kChunk, top[r] = splat(reference(tops[r]));
    Sums<F, K, HasTeacher> sums;
    const bool swept = sweep<F, T, K, HasTeacher, kKeep, kNear>(
        x, at, padded<F>(classes(chunk)) / L, top, c, power > 1 ? power : 0, F(has_log_p(p)), sums);
    if (!swept) return false;
    double* out = s.sums + chunk * (R + 2 * K + K * K);
    for (int r = 0; r < R; ++r) out[r] = sum_lanes(sums.S[r]), s.tops[r * s.table() + chunk] = tops[r];
    for (int k = 0; k < K; ++k) {
      out[R + k] = power > 1 ? sum_lanes(sums.S1[k]) : out[k];
      if (HasTeacher) out[R + K + k] = sum_lanes(sums.T[k]);
      for (int j = 0; j < K; ++j)
        if (j != k) out[R + 2 * K + j * K + k] = sum_lanes(sums.P[j][k]);
    }
    return true;
  }

  // One pass: the logits as they lie, relative to the maxima of an earlier chunk. False where sweep_staged has to take two.
  template <bool kKeep>
  bool sweep_in_place(int64_t chunk) {
    if (chunk == 0 || deep || classes(chunk) % L != 0) return false;
    return with_type(*source[0], n, chunk * kChunk, [&]<class T>(const T* first) {
      if constexpr (std::is_same_v<T, F> || (sizeof(F) == 4 && std::is_same_v<T, Bfloat16>)) {
        const T* x[R] = {first};
        for (int r = 1; r < R; ++r) {
          if (source[r]->dtype != source[0]->dtype) return false;
          x[r] = (const T*)source[r]->row(n) + chunk * kChunk;
        }
        return sweep_from<kKeep, true>(chunk, x);
      } else {
        return false;
      }
    });
  }

  // The maxima first, then the sums; pads that weigh nothing are as low as exp_near allows.
  template <bool kKeep>
  void sweep_staged(int64_t chunk) {
    constexpr F kLargest = F(1 << 20), kLowest = -__builtin_huge_valf();  // below it, maximum plus depth loses nothing
    const F* x[R];
    Chunk<F> here[R];
    for (int r = 0; r < R; ++r) {
      here[r] = with_type(*source[r], n, chunk * kChunk, [&](auto* from) __attribute__((always_inline)) {
        return chunk_of<F>(from, classes(chunk), s.staged + r * s.chunk_stride);
      });
      x[r] = here[r].x, tops[r] = here[r].top;
    }
    const auto pad = [&](bool near) {
      for (const Chunk<F>& of : here)
        for (F* at = of.pads[0]; at < of.pads[1]; ++at)
          *at = near && kLargest > of.top && of.top > -kLargest ? of.top + F(kNearLowest + 2) / c : kLowest;
    };
    pad(true);
    if (!deep && sweep_from<kKeep, true>(chunk, x)) return;
    deep = true;
    pad(false);
    sweep_from<kKeep, false>(chunk, x);
  }

  template <bool kKeep>
  void sweep_chunk(int64_t chunk) {
    if (!sweep_in_place<kKeep>(chunk)) sweep_staged<kKeep>(chunk);
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

  const F* logits(int r, int64_t from, int64_t to) {
    return staged<F>(*source[r], n, from, to - from, s.staged + r * s.chunk_stride, F(0));
  }

  // The last student's take the place of the teacher's e, which nobody needs then.
  F* slopes_of(int k) const { return s.exps + (k < K - 1 ? R + k : K) * s.row_stride; }

  // general: D(p, q_k) of every student, the sums of its slopes and, where a gradient is wanted, the slopes.
  void divergences(const double* S, double* of_teacher, bool keep) {
    double value[K] = {};
    for (int64_t chunk = 0; chunk < s.chunks; ++chunk) {
      const int64_t from = chunk * kChunk, end = classes(chunk);
      const auto view = [&](int r) -> ChunkView<F> {
        const F* x = needs_logits(p.divergence) ? logits(r, from, from + end) : nullptr;
        return {x, e[r] + from, top[r], log_S[r], F(1 / p.temperature), s.factors[r * s.table() + chunk] * F(1 / S[r])};
      };
      const ChunkView<F> teacher = view(R - 1);
      for (int k = 0; k < K; ++k) {
        const PairSums sums = pair_sums(p, teacher, view(k), padded<F>(end), keep ? slopes_of(k) + from : nullptr);
        value[k] += sums.value, slopes[k] += sums.slopes;
      }
    }
    for (int k = 0; k < K; ++k) of_teacher[k] = value[k] * p.temperature * p.temperature;
  }

  template <bool kGradient>
  void run() {
    const bool keep = kGradient || general();
    for (int64_t chunk = 0; chunk < s.chunks; ++chunk) keep ? sweep_chunk<true>(chunk) : sweep_chunk<false>(chunk);
    double highest[R], S[R], S1[K], T[K], P[K][K], below[K], log_sum[R], log_S1[K], ce[K], teacher[K], peers[K];
    combine(highest, S, S1, T, P);
    for (int k = 0; k < K; ++k) below[k] = power > 0 ? double(element<F>(*source[k], n, y)) - highest[k] : 0;
    finish<K, HasTeacher, double>(S, S1, T, P, below, p, log_sum, log_S1, ce, teacher, peers);
    for (int r = 0; r < R; ++r) top[r] = F(highest[r]), log_S[r] = F(log_sum[r]);
    if (general()) divergences(S, teacher, kGradient);
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
    if constexpr (kGradient) {
      F scale[R], scale1[K];
      for (int r = 0; r < R; ++r) scale[r] = F(1 / S[r]);
      for (int k = 0; k < K; ++k) scale1[k] = F(1 / S1[k]);
      write_gradient(scale, scale1, false);
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
    write_gradient(scale, scale1, true);
  }

  void write_gradient(const F* scale, const F* scale1, bool again) {
    with_output<F>(dstudent_of(p, k0, n), p.student->dtype, [&](auto* out) {
      using Gradient = LongGradient<F, std::remove_pointer_t<decltype(out)>, K, HasTeacher, HasTeacher>;
      using Linear = LongGradient<F, std::remove_pointer_t<decltype(out)>, K, HasTeacher, false>;
      general() ? Gradient(*this, scale, scale1).run(again) : Linear(*this, scale, scale1).run(again);
    });
  }
};

}  // namespace nanonet::NANONET_ISA
