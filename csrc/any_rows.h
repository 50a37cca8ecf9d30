// Everything that the other paths leave: mse, five students and more, rows where an upstream gradient or a row weight of
// 0 masks some of the students, temperatures whose softmax at 1 is no power. Each formula is a loop over one chunk.
#pragma once

#include "chunked_row.h"

namespace nanonet::NANONET_ISA {

template <class F>
struct AnyRow : ChunkedRow<F> {
  using Base = ChunkedRow<F>;
  using Base::Base, Base::p, Base::s, Base::n, Base::y, Base::rows, Base::has_teacher, Base::mse, Base::R;
  using Base::classes, Base::each, Base::enter, Base::labelled, Base::soft, Base::softmax, Base::source, Base::sum;
  using Base::value, Base::view;
  using typename Base::Row, typename Base::V, typename Base::View;

  // D(p, q_k) of this chunk, and what it adds to the row's sum of slopes.
  double divergence(int64_t k, int64_t chunk) {
    const View teacher = view(p.K), student = view(k);
    if (mse)
      return sum(chunk, [&](int64_t i) __attribute__((always_inline)) {
        const V apart = student.logit(i) - teacher.logit(i);
        return apart * apart;
      });
    const PairSums sums = pair_sums(p, teacher, student, padded<F>(classes(chunk)));
    rows[k].slopes += sums.slopes;
    return sums.value;
  }

  // Adds sum_{j != k} sum_c q_j (v_j - v_k) to total[k] for every k, in O(K): two sweeps carry A = sum q_j v_j and
  // W = sum q_j over the students before, then after k, so that no student's own share has to cancel. v is centred on
  // the likeliest student first: where they agree, A and W v_k would else subtract like terms. The mean would be -inf,
  // or of another magnitude, as soon as one student rules the class out.
  void peers_kl(int64_t chunk, double* total) {
    F *centre = value(0), *A = value(1), *W = value(2);
    for (int64_t k = 0; k < p.K; ++k) {
      const View student = view(k);
      each(chunk, [&](int64_t i) __attribute__((always_inline)) {
        store(centre + i, k == 0 ? student.v(i) : larger<F>(student.v(i), load(centre + i)));
      });
    }
    each(chunk, [&](int64_t i) __attribute__((always_inline)) {
      const V top = load(centre + i);
      store(centre + i, top - top == 0 ? top : V{});  // where the class is -inf for all, there is nothing to centre
    });
    for (int direction = 1; direction >= -1; direction -= 2) {
      each(chunk, [&](int64_t i) __attribute__((always_inline)) { store(A + i, V{}), store(W + i, V{}); });
      for (int64_t step = 0; step < p.K; ++step) {
        const int64_t k = direction > 0 ? step : p.K - 1 - step;
        const View student = view(k);
        total[k] += sum(chunk, [&](int64_t i) __attribute__((always_inline)) {
          const V centred = student.v(i) - load(centre + i), weight = student.q(i), before = load(W + i);
          const V term = load(A + i) - times(before, centred);
          store(A + i, load(A + i) + times(weight, centred));
          store(W + i, before + weight);
          return term;
        });
      }
    }
  }

  // sum_j sum_c (s_k - s_j)^2, pair by pair: an identity in O(K) would turn -inf classes into NaN.
  void peers_mse(int64_t chunk, double* total) {
    for (int64_t k = 0; k < p.K; ++k) {
      for (int64_t j = 0; j < k; ++j) {
        const View one = view(k), other = view(j);
        const double both = sum(chunk, [&](int64_t i) __attribute__((always_inline)) {
          const V apart = one.logit(i) - other.logit(i);
          return apart * apart;
        });
        total[k] += both;
        total[j] += both;
      }
    }
  }

  // Statistics, then terms. sums: (2,K).
  void run_terms(double* sums) {
    double *from_teacher = sums, *from_peers = sums + p.K;
    for (int64_t r = 0; r < R; ++r) {
      if (mse && !labelled() && !p.stats)
        rows[r] = Row{};
      else
        softmax(r);
      if (r < p.K) from_teacher[r] = from_peers[r] = 0;
    }
    const bool any_teacher = has_teacher, any_peers = p.K > 1;
    for (int64_t chunk = 0; chunk < s.chunks; ++chunk) {
      enter(chunk, false);
      for (int64_t k = 0; any_teacher && k < p.K; ++k) from_teacher[k] += divergence(k, chunk);
      if (any_peers) mse ? peers_mse(chunk, from_peers) : peers_kl(chunk, from_peers);
    }
    const double tau2 = p.temperature * p.temperature;
    double log_S = 0;  // of all students
    for (int64_t k = 0; k < p.K; ++k) log_S += rows[k].log_S;
    for (int64_t k = 0; k < p.K; ++k) {
      const double teacher = mse ? from_teacher[k] / p.C : from_teacher[k] * tau2;
      // v leaves log S_k - log S_j out
      const double peers = mse ? from_peers[k] / p.C : (from_peers[k] + (p.K * rows[k].log_S - log_S)) * tau2;
      term_of<F>(p, 0, k, n) = labelled() ? F(rows[k].log_S1 - label_below(k)) : F(0);
      term_of<F>(p, 1, k, n) = has_teacher && soft(k) ? F(teacher) : F(0);
      term_of<F>(p, 2, k, n) = p.K > 1 && soft(k) ? F(peers / (p.K - 1)) : F(0);
      if (has_kl_slopes(p.divergence)) rows[k].slopes = 0;
    }
    for (int64_t r = 0; p.stats && r < R; ++r) {
      const Row& row = rows[r];
      const double values[kStats] = {row.top, row.log_S, row.log_S1, row.slopes};
      for (int64_t i = 0; i < kStats; ++i) stats_of<F>(p, r, n)[i] = F(values[i]);
    }
  }

  double label_below(int64_t k) const { return double(element<F>(p.student[k], n, y)) - rows[k].top; }

  // What is masked is never read: an upstream gradient of 0 leaves its term out. From_stats: e is yet to be made.
  void run_gradient(bool from_stats) {
    const F pairs = p.K > 1 ? F(p.K - 1) : F(1), factor = mse ? F(2) / F(p.C) : F(p.temperature);
    F *total = value(0), *ds = value(1);
    for (int64_t chunk = 0; chunk < s.chunks; ++chunk) {
      const int64_t begin = chunk * kChunk, end = begin + classes(chunk);
      enter(chunk, from_stats);
      if (p.K > 1) add_up(chunk, total);
      for (int64_t k = 0; k < p.K; ++k) {
        const F u_ce = labelled() ? upstream_of<F>(p, 0, k, n) : F(0);
        const F u_teacher = has_teacher ? upstream_of<F>(p, 1, k, n) : F(0);
        const F u_peers = p.K > 1 ? upstream_of<F>(p, 2, k, n) : F(0);
        if (u_teacher != 0)
          put_teacher(k, chunk, u_teacher * factor, ds);
        else
          each(chunk, [&](int64_t i) __attribute__((always_inline)) { store(ds + i, V{}); });
        if (u_peers != 0) {
          const F slope = u_peers * factor / pairs;
          const View student = view(k);
          each(chunk, [&](int64_t i) __attribute__((always_inline)) {
            const V own = mse ? student.logit(i) : student.q(i);
            store(ds + i, load(ds + i) + slope * (F(p.K) * own - load(total + i)));
          });
        }
        if (u_ce != 0) {
          add_ce(k, chunk, u_ce, ds);
          if (begin <= y && y < end) ds[y - begin] -= u_ce;
        }
        const Dtype dtype = p.student->dtype;
        put<F>(dstudent_of(p, k, n) + begin * size_of(dtype), dtype, ds, end - begin);
      }
    }
  }

  // sum_k q_k, of mse sum_k s_k
  void add_up(int64_t chunk, F* total) const {
    for (int64_t k = 0; k < p.K; ++k) {
      const View student = view(k);
      each(chunk, [&](int64_t i) __attribute__((always_inline)) {
        const V own = mse ? student.logit(i) : student.q(i);
        store(total + i, k == 0 ? own : load(total + i) + own);
      });
    }
  }

  void add_ce(int64_t k, int64_t chunk, F u_ce, F* ds) {
    const F* x = staged<F>(source(k), n, chunk * kChunk, classes(chunk), s.staged + k * s.chunk_stride,
                           F(-__builtin_huge_valf()));
    const F top = F(rows[k].top), scale = u_ce * F(__builtin_exp(-rows[k].log_S1));
    const F c = exponent_factor<F>(1.0);
    each(chunk, [&](int64_t i) __attribute__((always_inline)) {
      store(ds + i, load(ds + i) + scale * exp_scaled<F>(load(x + i) - top, c));
    });
  }

  // slope: the upstream gradient, with the temperature or 2/C
  void put_teacher(int64_t k, int64_t chunk, F slope, F* ds) const {
    const View teacher = view(p.K), student = view(k);
    if (mse)
      return each(chunk, [&](int64_t i) __attribute__((always_inline)) {
        store(ds + i, slope * (student.logit(i) - teacher.logit(i)));
      });
    const F slopes = has_kl_slopes(p.divergence) ? F(-1) : F(rows[k].slopes);
    pair_sums(p, teacher, student, padded<F>(classes(chunk)), ds);
    each(chunk, [&](int64_t i) __attribute__((always_inline)) {
      store(ds + i, slope * (load(ds + i) - times(student.q(i), splat(slopes))));
    });
  }
};

}  // namespace nanonet::NANONET_ISA
