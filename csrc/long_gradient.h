// The gradient of one long row, in spans of classes whose exponentials have one reference.
#pragma once

#include "pairs.h"

namespace nanonet::NANONET_ISA {

template <class F, int K, bool HasTeacher>
struct LongRow;

// T: what it is written as. kGeneral: the teacher's term by its slopes, not by e.
template <class F, class T, int K, bool HasTeacher, bool kGeneral>
struct LongGradient {
  static constexpr int R = K + HasTeacher, kStreams = kGeneral ? 2 * K : R;
  static constexpr int64_t L = kLanes<F>, kBytes = L * int64_t(sizeof(T));
  LongRow<F, K, HasTeacher>& row;
  const Problem& p;
  Scratch<F>& s;
  const F *scale, *scale1;
  Slopes<F, K, HasTeacher, kGeneral> factors;
  F u_ce[K];
  T* out[K];
  int power = 0;  // 0: no gradient of ce
  bool stream;
  int64_t first = 0;  // classes before the first vector that is aligned

  LongGradient(LongRow<F, K, HasTeacher>& row, const F* scale, const F* scale1)
      : row(row), p(row.p), s(row.s), scale(scale), scale1(scale1), stream(p.stream) {
    const F tau = F(p.temperature);
    for (int k = 0; k < K; ++k) {
      const int64_t student = row.k0 + k;
      u_ce[k] = row.power > 0 ? upstream_of<F>(p, 0, student, row.n) : F(0);
      if (u_ce[k] != 0) power = row.power;
      factors.ce[k] = splat(u_ce[k]);
      factors.teacher[k] = splat(upstream_of<F>(p, 1, student, row.n) * tau);
      factors.peers[k] = splat(K > 1 ? upstream_of<F>(p, 2, student, row.n) * tau / F(K > 1 ? K - 1 : 1) : F(0));
      factors.sum[k] = splat(F(row.slopes[k]));
      out[k] = (T*)dstudent_of(p, student, row.n);
      stream &= (uintptr_t(out[k]) - uintptr_t(out[0])) % kBytes == 0;
    }
    if (stream) first = int64_t(-uintptr_t(out[0]) % kBytes / sizeof(T));
  }

  // again: the exponentials are made from the logits, a chunk at a time; else they stand in row.e.
  void run(bool again) {
    int64_t to;
    for (int64_t from = 0; from < p.C; from = to) {
      const F* e[kStreams];
      if (again) {
        to = from == 0 && first > 0 ? first : from + kChunk;
        to = to < p.C ? to : p.C;
        make(from, to);
      } else {
        to = alike_until(from);
      }
      for (int r = 0; r < R; ++r) {
        const F* factor = s.factors + r * s.table() + from / kChunk;
        e[r < kStreams ? r : 0] = row.e[r] + (again ? 0 : from);
        factors.scale[r] = splat(again ? scale[r] : *factor * scale[r]);
        if (r < K && power > 0) factors.scale1[r] = splat(again ? scale1[r] : factor[R * s.table()] * scale1[r]);
      }
      for (int k = 0; kGeneral && k < K; ++k) e[K + k] = again ? s.values + k * s.chunk_stride : row.slopes_of(k) + from;
      factors.combine(power);
      write(e, from, to);
    }
  }

  // The end of the chunks that share the reference of the one that begins at `from`.
  int64_t alike_until(int64_t from) const {
    const int64_t begin = from / kChunk;
    for (int64_t chunk = begin + 1; chunk < s.chunks; ++chunk)
      for (int r = 0; r < R; ++r)
        if (!(s.tops[r * s.table() + chunk] == s.tops[r * s.table() + begin])) return chunk * kChunk;
    return p.C;
  }

  // The exponentials of some classes relative to the row's maximum, and the slopes.
  void make(int64_t from, int64_t to) {
    const int64_t count = to - from;
    const F c = row.c;
    for (int r = 0; r < R; ++r) {
      const Vec<F> top = splat(row.top[r]);
      F* const e = row.e[r];
      with_type(*row.source[r], row.n, from, [&](auto* x) __attribute__((always_inline)) {
        F tail[L];
        int64_t i = 0;
        for (; i + L <= count; i += L) {
          prefetch(x + i);
          store(e + i, exp_scaled<F>(Cast<F, std::remove_cvref_t<decltype(*x)>>::from(x + i) - top, c));
        }
        if (i == count) return;
        stage_tail(x + i, count - i, tail, F(-__builtin_huge_valf()));
        store(e + i, exp_scaled<F>(load(tail) - top, c));
      });
    }
    if constexpr (kGeneral) {
      const auto view = [&](int r) -> ChunkView<F> {
        const F* x = needs_logits(p.divergence) ? row.logits(r, from, to) : nullptr;
        return {x, row.e[r], row.top[r], row.log_S[r], F(1 / p.temperature), scale[r]};
      };
      const ChunkView<F> teacher = view(K);
      for (int k = 0; k < K; ++k) pair_sums(p, teacher, view(k), padded<F>(count), s.values + k * s.chunk_stride);
    }
  }

  // Classes [from, to), of which e holds the first in its first place.
  void write(const F* const* e, int64_t from, int64_t to) {
    const int64_t aligned = from + (stream ? (first - from) & (L - 1) : 0);
    int64_t at = aligned < to ? aligned : to;
    part(e, from, from, at);
    const int64_t whole = (to - at) / L * L;
    if (whole > 0) {
      const F* of[kStreams];
      T* here[K];
      for (int i = 0; i < kStreams; ++i) of[i] = e[i] + (at - from);
      for (int k = 0; k < K; ++k) here[k] = out[k] + at;
      stream ? gradient<true>(of, here, whole / L, power, factors) : gradient(of, here, whole / L, power, factors);
    }
    part(e, from, at + whole, to);
    if (power > 0 && from <= row.y && row.y < to) part(e, from, row.y, row.y + 1, true);
  }

  // Less than a vector; `label`: its one-hot.
  void part(const F* const* e, int64_t from, int64_t begin, int64_t end, bool label = false) {
    if (begin == end) return;
    F values[K][L], *here[K];
    const F* of[kStreams];
    for (int i = 0; i < kStreams; ++i) of[i] = e[i] + (begin - from);
    for (int k = 0; k < K; ++k) here[k] = values[k];
    gradient(of, here, 1, power, factors);
    for (int k = 0; k < K; ++k) {
      if (label) values[k][0] -= u_ce[k];
      put(out[k] + begin, values[k], end - begin);
    }
  }
};

}  // namespace nanonet::NANONET_ISA
