// A divergence over a chunk of classes: what DivergenceOf says of one class, summed, and the slopes one by one.
#pragma once

#include "scratch.h"

namespace nanonet::NANONET_ISA {

// A chunk of a row: its logits, and e^((x - some maximum)/tau), which `scale` brings to probabilities. By value: what a
// loop stores could be anything, as far as the compiler knows, and would be loaded again.
template <class F>
struct ChunkView {
  const F *x, *e;
  F top, log_S, per_tau, scale;
  NN_INLINE Vec<F> logit(int64_t i) const { return load(x + i); }
  NN_INLINE Vec<F> v(int64_t i) const { return (load(x + i) - top) * per_tau; }
  NN_INLINE Vec<F> log_q(int64_t i) const { return v(i) - log_S; }
  NN_INLINE Vec<F> q(int64_t i) const { return load(e + i) * scale; }
};

// tv needs the probabilities alone: its views may have no logits.
constexpr bool needs_logits(int64_t divergence) { return divergence != kTv; }

template <int64_t kDivergence, class F>
NN_INLINE auto share_at(const ChunkView<F>& teacher, const ChunkView<F>& student, int64_t i, F beta) {
  ClassPair<Vec<F>> pair = {{}, {}, teacher.q(i), student.q(i)};
  if constexpr (needs_logits(kDivergence)) pair.log_p = teacher.log_q(i), pair.log_q = student.log_q(i);
  return DivergenceOf<kDivergence>::share(pair, beta,
                                          [](Vec<F> x) __attribute__((always_inline)) { return log_of(x); });
}

struct PairSums {
  double value, slopes;
};

// Sums over `end` classes, a multiple of the lanes; each class's slope to `out` unless that is null, which may be an e of
// the two. Not for mse.
template <class F>
__attribute__((noinline)) PairSums pair_sums(const Problem& p, ChunkView<F> teacher, ChunkView<F> student, int64_t end,
                                             F* out = nullptr) {
  Vec<F> value = {}, slopes = {};
  with_divergence(p.divergence, [&]<int64_t kDivergence>() __attribute__((always_inline)) {
    const F beta = F(p.beta);
    for (int64_t i = 0; i < end; i += kLanes<F>) {
      const auto share = share_at<kDivergence>(teacher, student, i, beta);
      value += share.value, slopes += share.slope;
      if (out) store(out + i, share.slope);
    }
  });
  return {sum_lanes(widen<F>(value)), sum_lanes(widen<F>(slopes))};
}

}  // namespace nanonet::NANONET_ISA
