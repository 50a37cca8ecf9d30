// A row of up to four students against the k likeliest classes of their teacher, with the label and the peers in the same
// two sweeps. Outside of the k classes the teacher's gradient is a multiple of the student's own probabilities, so it
// is one more coefficient of the students' gradient loop; the k classes are written one by one.
#pragma once

#include "long_rows.h"
#include "topk_classes.h"

namespace nanonet::NANONET_ISA {

template <class F, int K>
struct TopRow : LongRow<F, K, false> {
  using Base = LongRow<F, K, false>;
  using Base::p, Base::s, Base::k0, Base::n, Base::y, Base::power, Base::c, Base::source, Base::e, Base::L;
  using Base::classes;

  TopClasses<F>& classes_of_teacher;
  double top[K], S[K], S1[K];           // S: relative to the maximum
  double rest_S[K];                     // of the classes outside
  bool vanished[K];                     // these lie so low that their e is relative to their own maximum
  TopSums sums[K];

  // p: without the teacher's logits, which it has not. alone: the teacher's term only, added to the gradient.
  TopRow(const Problem& p, Scratch<F>& s, int64_t k0, int64_t n, TopClasses<F>& of_teacher, bool alone)
      : Base(p, s, k0, n), classes_of_teacher(of_teacher) {
    if (alone) power = 0;
  }

  bool bucket() const { return p.top->tail == kBucket; }
  F factor_of(int k, int64_t chunk) const { return vanished[k] ? F(1) : s.factors[k * s.table() + chunk]; }

  void run(bool alone, bool gradient_wanted) {
    for (int64_t chunk = 0; chunk < s.chunks; ++chunk) {
      this->template sweep_chunk<true>(chunk);
      if (bucket()) sum_outside(chunk);
    }
    double T[K], P[K][K], below[K], log_S[K], log_S1[K], ce[K], none[K], peers[K];
    this->combine(top, S, S1, T, P);
    for (int k = 0; k < K; ++k) below[k] = power > 0 ? double(element<F>(*source[k], n, y)) - top[k] : 0;
    finish<K, false, double>(S, S1, T, P, below, p, log_S, log_S1, ce, none, peers);
    for (int k = 0; k < K; ++k) {
      take_student(k, log_S[k]);
      term_of<F>(p, 1, k0 + k, n) = F(sums[k].value * p.temperature * p.temperature);
      if (alone) continue;
      term_of<F>(p, 0, k0 + k, n) = power > 0 ? F(ce[k]) : F(0);
      term_of<F>(p, 2, k0 + k, n) = F(peers[k]);
    }
    if (gradient_wanted) write(alone);
  }

  // What student k has on the teacher's classes, and outside.
  void take_student(int k, double log_S) {
    TopClasses<F>& t = classes_of_teacher;
    double largest = -__builtin_huge_val(), total = 0, log_rest = 0;
    for (int64_t i = 0; i < t.count; ++i) {
      const double log_q = (double(element<F>(*source[k], n, t.id[i])) - top[k]) / p.temperature - log_S;
      t.log_q_of(k, i) = log_q;
      largest = largest > log_q ? largest : log_q;
    }
    const bool renormalised = p.top->tail == kRenormalised;
    const double from = renormalised && t.count > 0 ? largest : 0;
    for (int64_t i = 0; i < t.count; ++i) total += t.q_of(k, i) = __builtin_exp(t.log_q_of(k, i) -= from);
    if (renormalised) {
      const double log_total = __builtin_log(total);
      for (int64_t i = 0; i < t.count; ++i) t.log_q_of(k, i) -= log_total, t.q_of(k, i) /= total;
    }
    vanished[k] = false;
    if (bucket()) {
      rest_S[k] = 0;
      for (int64_t i = 0; i < s.chunks; ++i) rest_S[k] += double(s.factors[k * s.table() + i]) * t.outside_of(k, i);
      log_rest = __builtin_log(rest_S[k]) - log_S;
      if (rest_S[k] < 1e-30 * S[k]) vanished[k] = true, log_rest = sum_vanished(k) - log_S;
    }
    sums[k] = top_sums(p, t, k, log_rest, __builtin_exp(log_rest));
  }

  // Sums e of the chunk, while it is at hand, over the classes outside. Those of the teacher become 0: subtracted from a
  // sum of all they would leave little but rounding. Pads are not always 0.
  void sum_outside(int64_t chunk) {
    TopClasses<F>& t = classes_of_teacher;
    const int64_t begin = t.first[chunk], end = t.first[chunk + 1];
    const int64_t count = padded<F>(classes(chunk));
    for (int k = 0; k < K; ++k) {
      double& sum = t.outside_of(k, chunk);
      sum = s.sums[chunk * (3 * K + K * K) + k];
      if (begin == end) continue;
      F* at = e[k] + chunk * kChunk;
      for (int64_t i = begin; i < end; ++i) e[k][t.id[i]] = 0;
      for (int64_t i = classes(chunk); i < count; ++i) at[i] = 0;
      Wide<F> total = {};
      for (int64_t run = 0; run < count; run += kRun * L) {
        Vec<F> part = {};
        for (int64_t i = run; i < count && i < run + kRun * L; i += L) part += load(at + i);
        total += widen<F>(part);
      }
      sum = sum_lanes(total);
    }
  }

  // The same where it is next to nothing: e relative to the maximum outside. Returns log of the sum, relative to `top`.
  double sum_vanished(int k) {
    const TopClasses<F>& t = classes_of_teacher;
    const F lowest = -__builtin_huge_valf();
    F highest = lowest;
    double total = 0;
    for (int pass = 0; pass < 2; ++pass)
      for (int64_t chunk = 0; chunk < s.chunks; ++chunk) {
        F *staging = s.staged + k * s.chunk_stride, *at = e[k] + chunk * kChunk;
        const int64_t end = padded<F>(classes(chunk));
        const F* x = staged<F>(*source[k], n, chunk * kChunk, classes(chunk), staging, lowest);
        if (x != staging) std::memcpy(staging, x, size_t(end) * sizeof(F));
        for (int64_t i = t.first[chunk]; i < t.first[chunk + 1]; ++i) staging[t.id[i] - chunk * kChunk] = lowest;
        for (int64_t i = 0; i < end; i += L) {
          const Vec<F> value = load(staging + i);
          if (pass == 0) {
            highest = max_lanes(larger<F>(value, splat(highest)));
          } else {
            const Vec<F> share = exp_scaled<F>(value - (highest == lowest ? F(0) : highest), c);
            store(at + i, share);
            total += double(sum_lanes(widen<F>(share)));
          }
        }
      }
    rest_S[k] = total;
    return total > 0 ? __builtin_log(total) + (double(highest) - top[k]) / p.temperature : double(lowest);
  }

  // Of e outside the teacher's classes: the upstream gradient's share of D.
  double outside(int k, double u) const {
    if (u == 0) return 0;
    const TopSums& sum = sums[k];
    switch (p.top->tail) {
      case kLeftOut: return -u * sum.slopes / S[k];
      case kRenormalised: return 0;
      default: break;
    }
    if (rest_S[k] == 0) return 0;
    return vanished[k] ? u * sum.rest_slope / rest_S[k] : u * (sum.rest_slope / rest_S[k] - sum.slopes / S[k]);
  }

  // The gradient of the teacher's i-th class. u: of ce, teacher, peers, with the temperature.
  double at_class(int k, int64_t i, const double* u) const {
    const TopClasses<F>& t = classes_of_teacher;
    const double q_k = t.q_of(k, i);
    double ds = u[1] == 0 ? 0 : u[1] * (t.slope_of(k, i) - times(q_k, sums[k].slopes));
    if (u[0] == 0 && (K == 1 || u[2] == 0)) return ds;
    double all = 0, own = 0;
    for (int j = 0; j < K; ++j) {
      const double below = double(element<F>(*source[j], n, t.id[i])) - top[j], q = __builtin_exp(below / p.temperature) / S[j];
      all += q;
      if (j == k) own = q;
      if (j == k && u[0] != 0) ds += u[0] * (__builtin_exp(below) / S1[k]);
    }
    return K > 1 && u[2] != 0 ? ds + u[2] * (K * own - all) : ds;
  }

  void write(bool alone) {
    Slopes<F, K, false> factors;
    double u[K][3], of_outside[K];
    bool any_ce = false;
    for (int k = 0; k < K; ++k) {
      u[k][0] = power > 0 ? double(upstream_of<F>(p, 0, k0 + k, n)) : 0;
      u[k][1] = double(upstream_of<F>(p, 1, k0 + k, n)) * p.temperature;
      u[k][2] = K > 1 ? double(upstream_of<F>(p, 2, k0 + k, n)) * p.temperature / (K > 1 ? K - 1 : 1) : 0;
      any_ce |= u[k][0] != 0;
      factors.ce[k] = splat(F(u[k][0]));
      factors.peers[k] = splat(F(u[k][2]));
      of_outside[k] = outside(k, u[k][1]);
    }
    const bool direct = !alone && !p.stream && size_of(p.student->dtype) == sizeof(F);
    const int64_t table = s.table();
    for (int64_t chunk = 0; chunk < s.chunks; ++chunk) {
      const int64_t begin = chunk * kChunk, end = begin + classes(chunk);
      const int64_t whole = direct ? (end - begin) / L * L : 0, rest = padded<F>(end - begin) - whole;
      const F* from[K];
      F *out[K], *staged_out[K];
      for (int k = 0; k < K; ++k) {
        from[k] = e[k] + begin;
        out[k] = (F*)dstudent_of(p, k0 + k, n) + begin;
        staged_out[k] = e[k] + begin + whole;
        const bool gone = vanished[k];  // ce and peers see nothing of it
        factors.scale[k] = splat(gone ? F(0) : F(s.factors[k * table + chunk] * (1 / S[k])));
        if (any_ce) factors.scale1[k] = splat(gone ? F(0) : F(s.factors[(K + k) * table + chunk] * (1 / S1[k])));
      }
      factors.combine(any_ce ? power : 0);
      for (int k = 0; k < K; ++k) factors.own[k] += splat(F(of_outside[k] * double(factor_of(k, chunk))));
      if (whole > 0) gradient(from, out, whole / L, any_ce ? power : 0, factors);
      for (const F*& stream : from) stream += whole;
      if (rest > 0) gradient(from, staged_out, rest / L, any_ce ? power : 0, factors);
      for (int k = 0; k < K; ++k) {
        const auto at = [&](int64_t id) -> F& { return (id < begin + whole ? out[k] - begin : e[k])[id]; };
        const TopClasses<F>& t = classes_of_teacher;
        for (int64_t i = t.first[chunk]; i < t.first[chunk + 1]; ++i) at(t.id[i]) = F(at_class(k, i, u[k]));
        if (any_ce && begin <= y && y < end) at(y) -= F(u[k][0]);
        if (alone) add_what_is_there(k, begin, end - begin);
        const int64_t left = begin + whole;
        char* const to = dstudent_of(p, k0 + k, n) + left * size_of(p.student->dtype);
        put<F>(to, p.student->dtype, e[k] + left, end - left, p.stream);
      }
    }
  }

  void add_what_is_there(int k, int64_t begin, int64_t count) {
    const Rows there = {dstudent_of(p, k0 + k, n), 0, p.student->dtype};
    F* at = e[k] + begin;
    const F* x = staged<F>(there, 0, begin, count, s.staged + k * s.chunk_stride, F(0));
    for (int64_t i = 0; i < padded<F>(count); i += L) store(at + i, load(at + i) + load(x + i));
  }
};

}  // namespace nanonet::NANONET_ISA
