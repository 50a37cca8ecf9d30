// The headline path: KL or cross-entropy from the teacher and KL among up to four students, with one exponential an
// element. cross_entropy is KL without log p: the two differ by a factor of 1 or 0, `with_log_p`.
//
// A block is a set of rows, the R = K (+1) of one n, cut into chunks that stay in the first-level cache. The same
// two block functions serve long rows (lanes are classes of one row) and short ones (lanes are rows, packed_rows.h):
// each value of a row stands in a vector, and the sums over classes are left in the lanes.
//
//   sweep     u = x - top, e = e^(u/tau), and per chunk S = sum e, S1 = sum e^tau (tau a small integer: softmax at
//             temperature 1), T_k = sum e_t (u_t - u_k) (or without u_t), P_jk = sum e_j (u_j - u_k)
//   gradient  q = e scale, ds_k = u_ce softmax(s_k) + u_t (q_k - p) + u_p (K q_k - sum_j q_j)
//
// e stays in scratch, relative to the maximum of its chunk or of an earlier one that lies near enough: `scale` brings it
// to the row's, so no pass over the row is spent on finding the maximum first. The pairs are summed one by one, since each
// costs two multiply-adds between values in registers and loses nothing where students agree; beyond four students
// any_rows.h has the O(K) form.
#pragma once

#include "divergence.h"
#include "exp_log.h"
#include "rows.h"

namespace nanonet::NANONET_ISA {

constexpr int64_t kChunk = 1024;     // classes: (K+1) rows and their exponentials in 48 KB for K = 4
constexpr int64_t kMaxFused = 4;     // students: pair sums stay in registers
constexpr int64_t kMaxPower = 8;     // largest temperature whose softmax at 1 is taken as a power

NN_INLINE bool has_log_p(const Problem& p) { return p.divergence != kCrossEntropy; }

template <class F, int K, bool HasTeacher>
struct Sums {
  static constexpr int R = K + HasTeacher;
  Wide<F> S[R], S1[K];
  Vec<F> T[K], P[K][K];
};

constexpr int64_t kRun = 8;  // vectors

// R rows of `count` vectors of T; their exponentials to the R arrays e. power 0: no S1. After a run of additions a sum
// goes to double: students 1e-3 apart keep 1% of their divergence. kNear: every u is one of exp_near's, so that no
// exponential vanishes and nothing is masked; false, and sums of nothing, where one was not, such as a class at -inf.
template <class F, class T, int K, bool HasTeacher, bool kKeep, bool kNear>
__attribute__((noinline)) bool sweep(const T* const* x_, F* const* e_, int64_t count, const Vec<F>* top_, F c,
                                     int power, F with_log_p, Sums<F, K, HasTeacher>& sums) {
  constexpr int R = K + HasTeacher;
  constexpr int64_t L = kLanes<F>;
  using V = Vec<F>;
  V top[R], T_[K] = {}, P[K][K] = {};
  WideSum<F> S_[R], S1_[K];
  Vec<Bits<F>> outside = {};
  const T* x[R];
  F* e[R];
  for (int r = 0; r < R; ++r) x[r] = x_[r], e[r] = e_[r], top[r] = top_[r];
  for (int64_t run = 0; run < count; run += kRun) {
    const int64_t end = run + kRun < count ? run + kRun : count;
    V S[R] = {}, S1[K] = {};
    for (int64_t i = run; i < end; ++i) {
      V u[R], v[R];
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        u[r] = Cast<F, T>::from(x[r] + i * L) - top[r];
        prefetch(x[r] + i * L);
        if constexpr (kNear)
          v[r] = exp_near<F>(u[r], c, outside);
        else
          v[r] = exp_scaled<F>(u[r], c);
        S[r] += v[r];
        if constexpr (kKeep) store(e[r] + i * L, v[r]);
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
      const auto masked = [](V weight, V value) __attribute__((always_inline)) {
        return kNear ? value : weight == 0 ? V{} : value;
      };
      if constexpr (HasTeacher) {
#pragma GCC unroll 8
        for (int k = 0; k < K; ++k) T_[k] += v[K] * masked(v[K], u[K] * with_log_p - u[k]);
      }
#pragma GCC unroll 8
      for (int j = 0; j < K; ++j) {
#pragma GCC unroll 8
        for (int k = j + 1; k < K; ++k) {
          const V apart = u[j] - u[k];
          P[j][k] += v[j] * masked(v[j], apart);
          P[k][j] -= v[k] * masked(v[k], apart);
        }
      }
    }
    for (int r = 0; r < R; ++r) S_[r].add(S[r]);
    for (int k = 0; power > 0 && k < K; ++k) S1_[k].add(S1[k]);
  }
  for (int r = 0; r < R; ++r) sums.S[r] = S_[r].value();
  for (int k = 0; k < K; ++k) {
    sums.S1[k] = S1_[k].value();
    sums.T[k] = T_[k];
    for (int j = 0; j < K; ++j) sums.P[j][k] = P[j][k];
  }
  return !kNear || all_inside(outside);
}

// The gradient is linear in e and in e^tau: its coefficients, for one row or a row in each lane. kGeneral: no e of the
// teacher, but the slopes of its term for each student.
template <class F, int K, bool HasTeacher, bool kGeneral = false>
struct Slopes {
  static constexpr int R = K + HasTeacher;
  Vec<F> scale[R], scale1[K];          // 1/S and 1/S1, brought to the chunk's maximum
  Vec<F> ce[K], teacher[K], peers[K];  // u_ce, u_t tau, u_p tau/(K-1)
  Vec<F> sum[K];                       // general: of the slopes of a row
  Vec<F> own[K], from_teacher[K];      // of e_k and of e_t
  bool powers;                         // whether ce needs e^tau: at temperature 1 it is part of `own`

  // power 0: no ce
  NN_INLINE void combine(int power) {
    powers = power > 1;
    for (int k = 0; k < K; ++k) {
      own[k] = power == 1 ? ce[k] : Vec<F>{};
      if constexpr (kGeneral) own[k] -= teacher[k] * sum[k];
      else if constexpr (HasTeacher) own[k] += teacher[k], from_teacher[k] = teacher[k] * scale[K];
      if constexpr (K > 1) own[k] += F(K) * peers[k];
      own[k] *= scale[k];
      if (powers) scale1[k] *= ce[k];
    }
  }
};

// The gradient without the one-hot of the label; `out` may be the students' e. Whatever the loop needs is copied first:
// what it stores could be anything, as far as the compiler knows, and would be loaded again. kStream: past the caches,
// `out` is aligned.
template <bool kStream = false, class F, class T, int K, bool HasTeacher, bool kGeneral>
__attribute__((noinline)) void gradient(const F* const* e_, T* const* out_, int64_t count, int power,
                                        const Slopes<F, K, HasTeacher, kGeneral>& s_) {
  constexpr int R = K + (kGeneral ? K : int(HasTeacher));
  constexpr int64_t L = kLanes<F>;
  using V = Vec<F>;
  const Slopes<F, K, HasTeacher, kGeneral> s = s_;
  const F* e[R];
  T* out[K];
  for (int r = 0; r < R; ++r) e[r] = e_[r];
  for (int k = 0; k < K; ++k) out[k] = out_[k];
  for (int64_t i = 0; i < count; ++i) {
    V v[R], total = {};
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) v[r] = load(e[r] + i * L);
#pragma GCC unroll 8
    for (int k = 0; k < K; ++k) total += v[k] * s.scale[k];
#pragma GCC unroll 8
    for (int k = 0; k < K; ++k) {
      V ds;
      if constexpr (kGeneral) ds = times(v[k], s.own[k]) + v[K + k] * s.teacher[k];
      else ds = v[k] * s.own[k];
      if constexpr (HasTeacher && !kGeneral) ds -= v[K] * s.from_teacher[k];
      if constexpr (K > 1) ds -= total * s.peers[k];
      if (s.powers) {
        V plain = v[k];
        for (int i = 1; i < power; ++i) plain *= v[k];
        ds += plain * s.scale1[k];
      }
      const auto packed = Cast<F, T>::packed(ds);
      if constexpr (kStream) stream(out[k] + i * L, packed);
      else std::memcpy(out[k] + i * L, &packed, sizeof packed);
    }
  }
}

// The terms of a row from its sums. D is double, or a vector of doubles with a row in each lane.
// below[k] is x_y - maximum, the label's logit; T and P are sums over u, not yet divided by tau.
template <int K, bool HasTeacher, class D>
NN_INLINE void finish(const D* S, const D* S1, const D* T, const D (*P)[K], const D* below, const Problem& p, D* log_S,
                      D* log_S1, D* ce, D* teacher, D* peers) {
  constexpr int R = K + HasTeacher;
  const double tau = p.temperature, with_log_p = has_log_p(p);
  for (int r = 0; r < R; ++r) log_S[r] = log_of(S[r]);
  for (int k = 0; k < K; ++k) {
    log_S1[k] = log_of(S1[k]);
    ce[k] = log_S1[k] - below[k];
    teacher[k] = peers[k] = D{};
    // KL = sum p (u_t - u_k)/tau + log S_k - log S_t; cross-entropy without u_t and S_t
    if constexpr (HasTeacher) teacher[k] = tau * tau * (T[k] / S[K] / tau + (log_S[k] - with_log_p * log_S[K]));
    if constexpr (K > 1) {
      for (int j = 0; j < K; ++j)
        if (j != k) peers[k] += P[j][k] / S[j] / tau + (log_S[k] - log_S[j]);
      peers[k] *= tau * tau / (K - 1);
    }
  }
}

}  // namespace nanonet::NANONET_ISA
