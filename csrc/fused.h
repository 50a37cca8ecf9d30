// The headline path: KL from the teacher and among up to four students, with one exponential an element.
//
// A block is a set of rows, the R = K (+1) of one n, cut into chunks that stay in the first-level cache. The same
// two block functions serve long rows (lanes are classes of one row) and short ones (lanes are rows, `packed.h`):
// each value of a row stands in a vector, and the sums over classes are left in the lanes.
//
//   sweep     u = x - top, e = e^(u/tau), and per chunk S = sum e, S1 = sum e^tau (tau a small integer: softmax at
//             temperature 1), T_k = sum e_t (u_t - u_k), P_jk = sum e_j (u_j - u_k)
//   gradient  q = e scale, ds_k = u_ce softmax(s_k) + u_t (q_k - p) + u_p (K q_k - sum_j q_j)
//
// e stays in scratch, relative to the chunk's own maximum: `scale` brings it to the row's, so no pass is spent on
// finding the maximum first. The pairs are summed one by one, since each costs two multiply-adds between values in
// registers and loses nothing where students agree; beyond four students `general.h` has the O(K) form.
#pragma once

#include "exp_log.h"
#include "rows.h"

namespace nanonet::NANONET_ISA {

constexpr int64_t kChunk = 1024;     // classes: (K+1) rows and their exponentials in 48 KB for K = 4
constexpr int64_t kMaxFused = 4;     // students: pair sums stay in registers
constexpr int64_t kMaxPower = 8;     // largest temperature whose softmax at 1 is taken as a power

template <class F, int K, bool HasTeacher>
struct Sums {
  static constexpr int R = K + HasTeacher;
  Wide<F> S[R], S1[K];
  Vec<F> T[K], P[K][K];
};

// What the next chunk will read, for the prefetcher: `bytes` from `at` on for each vector of this one.
struct Ahead {
  const char* at;
  int64_t bytes;
};

// R rows of `count` vectors, the last run of each at last[r]. e: R arrays. power 0: no S1. After a run of additions
// a sum goes to double: students 1e-3 apart keep 1% of their divergence.
template <class F, int K, bool HasTeacher, bool kKeep>
__attribute__((noinline)) void sweep(const F* const* x, const F* const* last, const Ahead* ahead, F* const* e,
                                     int64_t count, const Vec<F>* top, Factor<F> c, int power,
                                     Sums<F, K, HasTeacher>& sums) {
  constexpr int R = K + HasTeacher;
  constexpr int64_t L = kLanes<F>;
  using V = Vec<F>;
  V T[K] = {}, P[K][K] = {};
  for (int r = 0; r < R; ++r) sums.S[r] = Wide<F>{};
  for (int k = 0; k < K; ++k) sums.S1[k] = Wide<F>{};
  for (int64_t run = 0; run < count; run += kRun) {
    const int64_t end = run + kRun < count ? kRun : count - run;
    const F* from[R];
    for (int r = 0; r < R; ++r) from[r] = run + kRun < count ? x[r] + run * L : last[r];
    V S[R] = {}, S1[K] = {};
    for (int64_t i = 0; i < end; ++i) {
      V u[R], v[R];
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        u[r] = load(from[r] + i * L) - top[r];
        v[r] = exp_scaled<F>(u[r], c);
        S[r] += v[r];
        if constexpr (kKeep) store(e[r] + (run + i) * L, v[r]);
        __builtin_prefetch(ahead[r].at + (run + i) * ahead[r].bytes, 0, 0);
      }
      if (power > 0) {
#pragma GCC unroll 8
        for (int k = 0; k < K; ++k) {
          V plain = v[k];
          for (int i = 1; i < power; ++i) plain *= v[k];
          S1[k] += plain;
        }
      }
      // 0 * (-inf) is 0: what has no weight is masked, not multiplied.
      if constexpr (HasTeacher) {
#pragma GCC unroll 8
        for (int k = 0; k < K; ++k) T[k] += v[K] * (v[K] == 0 ? V{} : u[K] - u[k]);
      }
#pragma GCC unroll 8
      for (int j = 0; j < K; ++j) {
#pragma GCC unroll 8
        for (int k = 0; k < K; ++k)
          if (j != k) P[j][k] += v[j] * (v[j] == 0 ? V{} : u[j] - u[k]);
      }
    }
    for (int r = 0; r < R; ++r) sums.S[r] += widen<F>(S[r]);
    for (int k = 0; k < K; ++k) sums.S1[k] += widen<F>(S1[k]);
  }
  for (int k = 0; k < K; ++k) {
    sums.T[k] = T[k];
    for (int j = 0; j < K; ++j) sums.P[j][k] = P[j][k];
  }
}

// What turns e into the probabilities of a chunk, and the upstream gradients of the row.
template <class F, int K, bool HasTeacher>
struct Slopes {
  static constexpr int R = K + HasTeacher;
  Vec<F> scale[R], scale1[K];          // 1/S and 1/S1, brought to the chunk's maximum
  Vec<F> ce[K], teacher[K], peers[K];  // u_ce, u_t tau, u_p tau/(K-1)
};

// The gradient without the one-hot of the label; `out` may be the students' e.
template <class F, int K, bool HasTeacher>
__attribute__((noinline)) void gradient(const F* const* e, F* const* out, int64_t count, int power,
                                        const Slopes<F, K, HasTeacher>& s) {
  constexpr int R = K + HasTeacher;
  constexpr int64_t L = kLanes<F>;
  using V = Vec<F>;
  for (int64_t i = 0; i < count; ++i) {
    V v[R], q[R], total = {};
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      v[r] = load(e[r] + i * L);
      q[r] = v[r] * s.scale[r];
      if (r < K) total += q[r];
    }
#pragma GCC unroll 8
    for (int k = 0; k < K; ++k) {
      V ds = {};
      if (power > 0) {
        V plain = v[k];
        for (int i = 1; i < power; ++i) plain *= v[k];
        ds = s.ce[k] * (plain * s.scale1[k]);
      }
      if constexpr (HasTeacher) ds += s.teacher[k] * (q[k] - q[K]);
      if constexpr (K > 1) ds += s.peers[k] * (F(K) * q[k] - total);
      store(out[k] + i * L, ds);
    }
  }
}

// The terms of a row from its sums. D is double, or a vector of doubles with a row in each lane.
// below[k] is x_y - maximum, the label's logit; T and P are sums over u, not yet divided by tau.
template <int K, bool HasTeacher, class D>
NN_INLINE void finish(const D* S, const D* S1, const D* T, const D (*P)[K], const D* below, double temperature, D* log_S,
                      D* log_S1, D* ce, D* teacher, D* peers) {
  constexpr int R = K + HasTeacher;
  const double tau = temperature;
  for (int r = 0; r < R; ++r) log_S[r] = log_of(S[r]);
  for (int k = 0; k < K; ++k) {
    log_S1[k] = log_of(S1[k]);
    ce[k] = log_S1[k] - below[k];
    teacher[k] = peers[k] = D{};
    // KL = sum p (u_t - u_k)/tau + log S_k - log S_t
    if constexpr (HasTeacher) teacher[k] = tau * tau * (T[k] / S[K] / tau + (log_S[k] - log_S[K]));
    if constexpr (K > 1) {
      for (int j = 0; j < K; ++j)
        if (j != k) peers[k] += P[j][k] / S[j] / tau + (log_S[k] - log_S[j]);
      peers[k] *= tau * tau / (K - 1);
    }
  }
}

}  // namespace nanonet::NANONET_ISA
