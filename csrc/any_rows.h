// Everything that the fused path leaves: reverse_kl, js and mse, five students and more, rows where an upstream
// gradient or a row weight of 0 masks some of the students, temperatures whose softmax at 1 is no power.
//
// One row n at a time, in chunks, each formula a loop over values in the first-level cache: log-probabilities
// are v - log_sum with v = (x - maximum)/tau, q = e^v / sum.
#pragma once

#include "long_rows.h"

namespace nanonet::NANONET_ISA {

template <class F>
NN_INLINE F top_of(const F* x, int64_t count) {
  Vec<F> top = load(x);
  for (int64_t i = 1; i < count; ++i) top = larger<F>(load(x + i * kLanes<F>), top);
  return max_lanes(top);
}

template <class F>
struct AnyRow {
  static constexpr int64_t L = kLanes<F>;
  using V = Vec<F>;
  const Problem& p;
  Scratch<F>& s;
  int64_t n, y;
  bool has_teacher;  // and it is not masked for every student
  int64_t R;

  AnyRow(const Problem& p, Scratch<F>& s, int64_t n)
      : p(p), s(s), n(n), y(label_of(p, n)), has_teacher(p.teacher), R(p.K + has_teacher) {}

  // Per row: what stats hold, kept in double.
  struct Row {
    double top, log_S, log_S1, expectation;
  };

  bool soft(int64_t k) const { return !p.row_weight || ((const F*)p.row_weight)[k * p.N + n] != 0; }
  bool labelled() const { return y != kUnlabelled; }
  const Rows& source(int64_t r) const { return r < p.K ? p.student[r] : *p.teacher; }
  int64_t classes(int64_t chunk) const { return p.C - chunk * kChunk < kChunk ? p.C - chunk * kChunk : kChunk; }
  F* value(int which, int64_t r) const { return s.values + (which * (p.K + 1) + r) * s.chunk_stride; }
  F* v(int64_t r) const { return value(0, r); }  // (x - maximum)/tau, or x for mse
  F* q(int64_t r) const { return value(1, r); }

  template <class Body>
  NN_INLINE void each(int64_t chunk, Body body) const {
    const int64_t end = padded<F>(classes(chunk));
    for (int64_t i = 0; i < end; i += L) body(i);
  }

  // Sum over the row of body(chunk)(i), a vector of terms: lanes in F within a chunk, in double across.
  template <class Body>
  NN_INLINE double sum(int64_t chunk, Body body) const {
    V total = {};
    each(chunk, [&](int64_t i) __attribute__((always_inline)) { total += body(i); });
    return double(sum_lanes(total));
  }

  static NN_INLINE V weighted(V weight, V x) { return weight * (weight == 0 ? V{} : x); }  // 0 * (-inf) is 0

  Row statistics(int64_t r, double temperature) {
    const F c = exponent_factor<F>(temperature);
    F top = -__builtin_huge_valf();
    for (int64_t chunk = 0; chunk < s.chunks; ++chunk) {
      const F* x = stage(r, chunk, -__builtin_huge_valf());
      const F highest = top_of(x, padded<F>(classes(chunk)) / L);
      top = top > highest ? top : highest;
    }
    double S = 0;
    for (int64_t chunk = 0; chunk < s.chunks; ++chunk) {
      const F* x = stage(r, chunk, -__builtin_huge_valf());
      Wide<F> in_chunk = {};
      each(chunk, [&](int64_t i) __attribute__((always_inline)) {
        in_chunk += widen<F>(exp_scaled<F>(load(x + i) - top, c));
      });
      S += sum_lanes(in_chunk);
    }
    return {double(top), log_of(S), 0, 0};
  }

  const F* stage(int64_t r, int64_t chunk, F pad) {
    return staged<F>(source(r), n, chunk * kChunk, classes(chunk), s.staged + r * s.chunk_stride, pad);
  }

  // v and q of every row of the chunk.
  void fill(int64_t chunk, const Row* rows) {
    for (int64_t r = 0; r < R; ++r) {
      F *to_v = v(r), *to_q = q(r);
      if (p.divergence == kMse) {
        const F* x = stage(r, chunk, F(0));
        each(chunk, [&](int64_t i) __attribute__((always_inline)) { store(to_v + i, load(x + i)); });
        continue;
      }
      const F* x = stage(r, chunk, -__builtin_huge_valf());
      const F top = F(rows[r].top), per_tau = F(1 / p.temperature), scale = F(__builtin_exp(-rows[r].log_S));
      const F c = exponent_factor<F>(p.temperature);
      each(chunk, [&](int64_t i) __attribute__((always_inline)) {
        const V u = load(x + i) - top;
        store(to_v + i, u * per_tau);
        store(to_q + i, exp_scaled<F>(u, c) * scale);
      });
    }
  }

  // log p, log q, log m at i; m = (p+q)/2: log m = max + log((1 + e^-|log p - log q|)/2)
  struct Logs {
    V p, q, m;
  };
  NN_INLINE Logs logs(int64_t k, int64_t i, const Row* rows) const {
    const V log_p = load(v(p.K) + i) - F(rows[p.K].log_S), log_q = load(v(k) + i) - F(rows[k].log_S);
    const V apart = log_p > log_q ? log_q - log_p : log_p - log_q;
    const V rest = log_mean_of_one_and<F>(exp_scaled<F>(apart, exponent_factor<F>(1.0)));
    return {log_p, log_q, larger<F>(log_p, log_q) + rest};
  }

  // D(p, q_k) of this chunk but for the row's constants; the expectation of the gradient where it needs one.
  double divergence(int64_t k, int64_t chunk, const Row* rows, double* expectation) const {
    const F *v_t = v(p.K), *v_k = v(k), *p_t = q(p.K), *q_k = q(k);
    switch (p.divergence) {
      case kKl:
        return sum(chunk, [&](int64_t i) __attribute__((always_inline)) {
          return weighted(load(p_t + i), load(v_t + i) - load(v_k + i));
        });
      case kReverseKl:
        return sum(chunk, [&](int64_t i) __attribute__((always_inline)) {
          return weighted(load(q_k + i), load(v_k + i) - load(v_t + i));
        });
      case kJs: {
        V of_p = {}, of_q = {};
        each(chunk, [&](int64_t i) __attribute__((always_inline)) {
          const Logs log = logs(k, i, rows);
          of_p += weighted(load(p_t + i), log.p - log.m);
          of_q += weighted(load(q_k + i), log.q - log.m);
        });
        *expectation += double(sum_lanes(of_q)) / 2;
        return double(sum_lanes(of_p + of_q)) / 2;
      }
      default:
        return sum(chunk, [&](int64_t i) __attribute__((always_inline)) {
          const V apart = load(v_k + i) - load(v_t + i);
          return apart * apart;
        });
    }
  }

  // Adds sum_{j != k} sum_c q_j (v_j - v_k) to total[k] for every k, in O(K): two sweeps carry A = sum q_j v_j and
  // W = sum q_j over the students before, then after k, so that no student's own share has to cancel. v is centred on
  // the likeliest student first: where they agree, A and W v_k would else subtract like terms. The mean would be -inf,
  // or of another magnitude, as soon as one student rules the class out.
  void peers_kl(int64_t chunk, double* total) {
    F *centre = value(2, 0), *A = value(2, 1), *W = value(3, 0);
    each(chunk, [&](int64_t i) __attribute__((always_inline)) {
      V top = load(v(0) + i);
      for (int64_t k = 1; k < p.K; ++k) top = larger<F>(load(v(k) + i), top);
      store(centre + i, top - top == 0 ? top : V{});  // where the class is -inf for all, there is nothing to centre
    });
    for (int direction = 1; direction >= -1; direction -= 2) {
      each(chunk, [&](int64_t i) __attribute__((always_inline)) {
        store(A + i, V{});
        store(W + i, V{});
      });
      for (int64_t step = 0; step < p.K; ++step) {
        const int64_t k = direction > 0 ? step : p.K - 1 - step;
        const F *v_k = v(k), *q_k = q(k);
        total[k] += sum(chunk, [&](int64_t i) __attribute__((always_inline)) {
          const V centred = load(v_k + i) - load(centre + i), weight = load(q_k + i), before = load(W + i);
          const V term = load(A + i) - weighted(before, centred);
          store(A + i, load(A + i) + weighted(weight, centred));
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
        const double both = sum(chunk, [&](int64_t i) __attribute__((always_inline)) {
          const V apart = load(v(k) + i) - load(v(j) + i);
          return apart * apart;
        });
        total[k] += both;
        total[j] += both;
      }
    }
  }

  // Statistics, then terms. rows: (K+1); sums: (2,K).
  void run_terms(Row* rows, double* sums) {
    double *from_teacher = sums, *from_peers = sums + p.K;
    const bool mse = p.divergence == kMse;
    for (int64_t r = 0; r < R; ++r) {
      rows[r] = mse && !labelled() && !p.stats ? Row{} : statistics(r, p.temperature);
      if (r < p.K && labelled())
        rows[r].log_S1 = p.temperature == 1 ? rows[r].log_S : statistics(r, 1.0).log_S;
      if (r < p.K) from_teacher[r] = from_peers[r] = 0;
    }
    for (int64_t chunk = 0; chunk < s.chunks; ++chunk) {
      fill(chunk, rows);
      for (int64_t k = 0; has_teacher && k < p.K; ++k)
        from_teacher[k] += divergence(k, chunk, rows, &rows[k].expectation);
      if (p.K > 1) mse ? peers_mse(chunk, from_peers) : peers_kl(chunk, from_peers);
    }
    const double tau2 = p.temperature * p.temperature;
    double log_S = 0;  // of all students
    for (int64_t k = 0; k < p.K; ++k) log_S += rows[k].log_S;
    for (int64_t k = 0; k < p.K; ++k) {
      double teacher = from_teacher[k], peers = from_peers[k];
      // what v leaves out of the log-probabilities, in double: log S_k - log S_t
      const double apart = has_teacher ? rows[k].log_S - rows[p.K].log_S : 0;
      if (p.divergence == kReverseKl) rows[k].expectation = teacher -= apart;
      if (p.divergence == kKl) teacher += apart;
      teacher = mse ? teacher / p.C : teacher * tau2;
      peers = mse ? peers / p.C : (peers + (p.K * rows[k].log_S - log_S)) * tau2;
      term_of<F>(p, 0, k, n) = labelled() ? F(rows[k].log_S1 - label_below(k, rows)) : F(0);
      term_of<F>(p, 1, k, n) = has_teacher && soft(k) ? F(teacher) : F(0);
      term_of<F>(p, 2, k, n) = p.K > 1 && soft(k) ? F(peers / (p.K - 1)) : F(0);
    }
    if (p.stats) {
      for (int64_t r = 0; r < R; ++r) {
        F* stats = stats_of<F>(p, r < p.K ? r : p.K, n);
        stats[0] = F(rows[r].top);
        stats[1] = F(rows[r].log_S);
        stats[2] = F(rows[r].log_S1);
        stats[3] = F(rows[r].expectation);
      }
    }
  }

  double label_below(int64_t k, const Row* rows) const {
    return double(element<F>(p.student[k], n, y)) - rows[k].top;
  }

  void load_stats(Row* rows) const {
    for (int64_t r = 0; r < R; ++r) {
      const F* stats = stats_of<F>(p, r < p.K ? r : p.K, n);
      rows[r] = {double(stats[0]), double(stats[1]), double(stats[2]), double(stats[3])};
    }
  }

  // What is masked is never read: an upstream gradient of 0 leaves its term out.
  void run_gradient(const Row* rows) {
    const F tau = F(p.temperature), pairs = p.K > 1 ? F(p.K - 1) : F(1);
    const bool mse = p.divergence == kMse;
    F *total = value(2, 0), *ds = value(3, 0);
    for (int64_t chunk = 0; chunk < s.chunks; ++chunk) {
      const int64_t begin = chunk * kChunk, end = begin + classes(chunk);
      fill(chunk, rows);
      each(chunk, [&](int64_t i) __attribute__((always_inline)) {
        V all = {};
        for (int64_t k = 0; k < p.K; ++k) all += load((mse ? v(k) : q(k)) + i);
        store(total + i, all);
      });
      for (int64_t k = 0; k < p.K; ++k) {
        const F u_ce = labelled() ? upstream_of<F>(p, 0, k, n) : F(0);
        const F u_teacher = has_teacher ? upstream_of<F>(p, 1, k, n) : F(0);
        const F u_peers = p.K > 1 ? upstream_of<F>(p, 2, k, n) : F(0);
        each(chunk, [&](int64_t i) __attribute__((always_inline)) { store(ds + i, V{}); });
        if (u_ce != 0) {
          add_ce(k, chunk, rows[k], u_ce, ds);
          if (begin <= y && y < end) ds[y - begin] -= u_ce;
        }
        if (u_teacher != 0) add_teacher(k, chunk, rows, u_teacher, ds);
        if (u_peers != 0) {
          const F slope = mse ? u_peers * 2 / F(p.C) / pairs : u_peers * tau / pairs;
          const F* x = mse ? v(k) : q(k);
          each(chunk, [&](int64_t i) __attribute__((always_inline)) {
            store(ds + i, load(ds + i) + slope * (F(p.K) * load(x + i) - load(total + i)));
          });
        }
        put<F>(dstudent_of(p, k, n) + begin * size_of(p.student->dtype), p.student->dtype, ds, 0, end - begin, false, true);
      }
    }
  }

  void add_ce(int64_t k, int64_t chunk, const Row& row, F u_ce, F* ds) {
    const F* x = stage(k, chunk, -__builtin_huge_valf());
    const F top = F(row.top), scale = F(__builtin_exp(-row.log_S1));
    const F c = exponent_factor<F>(1.0);
    each(chunk, [&](int64_t i) __attribute__((always_inline)) {
      store(ds + i, load(ds + i) + u_ce * (exp_scaled<F>(load(x + i) - top, c) * scale));
    });
  }

  void add_teacher(int64_t k, int64_t chunk, const Row* rows, F u_teacher, F* ds) {
    const F *v_t = v(p.K), *v_k = v(k), *p_t = q(p.K), *q_k = q(k);
    const F tau = F(p.temperature), expectation = F(rows[k].expectation);
    const F shift = F(rows[p.K].log_S - rows[k].log_S - rows[k].expectation);
    each(chunk, [&](int64_t i) __attribute__((always_inline)) {
      V slope;
      if (p.divergence == kKl) {
        slope = tau * (load(q_k + i) - load(p_t + i));
      } else if (p.divergence == kReverseKl) {
        // q (log q - log p - E), E = sum q (log q - log p)
        slope = tau * weighted(load(q_k + i), load(v_k + i) - load(v_t + i) + shift);
      } else if (p.divergence == kJs) {
        // q ((log q - log m)/2 - E), E = sum q (log q - log m)/2
        const Logs log = logs(k, i, rows);
        slope = tau * weighted(load(q_k + i), (log.q - log.m) / F(2) - expectation);
      } else {
        slope = F(2) / F(p.C) * (load(v_k + i) - load(v_t + i));
      }
      store(ds + i, load(ds + i) + u_teacher * slope);
    });
  }
};

}  // namespace nanonet::NANONET_ISA
