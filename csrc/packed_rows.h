// The fused path for few classes (text classification): lanes are rows, so no lane is idle, no sum crosses lanes, and
// the logarithms of 16 rows are taken at once.
#pragma once

#include "scratch.h"

namespace nanonet::NANONET_ISA {

// Up to kLanes rows n[0 .. count), each of them fit for the fused path.
template <class F, int K, bool HasTeacher>
struct PackedRows {
  static constexpr int R = K + HasTeacher;
  static constexpr int64_t L = kLanes<F>;
  const Problem& p;
  Scratch<F>& s;
  const int64_t* n;
  int64_t count;
  int64_t y[L];
  int power = 0;  // of the softmax of the labels; 0: none of the rows is labelled
  F c;
  F* e[R];  // (C,L): class by class the rows' values

  PackedRows(const Problem& p, Scratch<F>& s, const int64_t* n, int64_t count)
      : p(p), s(s), n(n), count(count), c(exponent_factor<F>(p.temperature)) {
    for (int64_t i = 0; i < L; ++i) {
      y[i] = i < count ? label_of(p, n[i]) : kUnlabelled;
      if (y[i] != kUnlabelled) power = power_of(p.temperature);
    }
    for (int r = 0; r < R; ++r) e[r] = s.exps + r * s.row_stride;
  }

  const Rows& source(int r) const { return r < K ? p.student[r] : *p.teacher; }

  template <class T>
  void pack(const Rows& rows, F* out) {
    for (int64_t i = 0; i < count; ++i) {
      const T* row = (const T*)rows.row(n[i]);
      F buffer[kPackedClasses + L];
      const F* x = buffer;
      if constexpr (std::is_same_v<F, T>)
        x = row;
      else
        staged<F, T>(row, p.C, buffer, F(0));
      for (int64_t c = 0; c < p.C; ++c) out[c * L + i] = x[c];
    }
    for (int64_t i = count; i < L; ++i)
      for (int64_t c = 0; c < p.C; ++c) out[c * L + i] = 0;
  }

  void pack(int r) {
    const Rows& rows = source(r);
    switch (rows.dtype) {
      case Dtype::kFloat32: return pack<float>(rows, e[r]);
      case Dtype::kFloat64: return pack<double>(rows, e[r]);
      case Dtype::kBfloat16: return pack<Bfloat16>(rows, e[r]);
      default: return pack<Float16>(rows, e[r]);
    }
  }

  // The label's logit below the maximum, while the logits still stand in e.
  Wide<F> below_label(int k, Vec<F> top) const {
    Wide<F> below = {};
    for (int64_t i = 0; i < count; ++i)
      if (y[i] != kUnlabelled) below[i] = double(e[k][y[i] * L + i]) - double(top[i]);
    return below;
  }

  template <bool kKeep>
  void run() {
    Vec<F> top[R];
    Wide<F> below[K];
    for (int r = 0; r < R; ++r) {
      pack(r);
      top[r] = load(e[r]);
      for (int64_t c = 1; c < p.C; ++c) top[r] = larger<F>(load(e[r] + c * L), top[r]);
      if (r < K) below[r] = below_label(r, top[r]);
    }
    Sums<F, K, HasTeacher> sums;
    sweep<F, F, K, HasTeacher, kKeep, false>(e, e, p.C, top, c, power > 1 ? power : 0, F(has_log_p(p)), sums);
    Wide<F> T[K], P[K][K], log_S[R], log_S1[K], ce[K], teacher[K], peers[K];
    for (int k = 0; k < K; ++k) {
      if (power <= 1) sums.S1[k] = sums.S[k];
      T[k] = widen<F>(sums.T[k]);
      for (int j = 0; j < K; ++j) P[j][k] = widen<F>(sums.P[j][k]);
    }
    finish<K, HasTeacher, Wide<F>>(sums.S, sums.S1, T, P, below, p, log_S, log_S1, ce, teacher, peers);
    for (int k = 0; k < K; ++k) {
      for (int64_t i = 0; i < count; ++i) {
        term_of<F>(p, 0, k, n[i]) = y[i] == kUnlabelled ? F(0) : F(ce[k][i]);
        term_of<F>(p, 1, k, n[i]) = F(teacher[k][i]);
        term_of<F>(p, 2, k, n[i]) = F(peers[k][i]);
      }
    }
    if (p.stats) {
      for (int r = 0; r < R; ++r) {
        for (int64_t i = 0; i < count; ++i) {
          F* stats = stats_of<F>(p, r < K ? r : p.K, n[i]);
          stats[0] = top[r][i];
          stats[1] = F(log_S[r][i]);
          stats[2] = r < K && y[i] != kUnlabelled ? F(log_S1[r][i]) : F(0);
          stats[3] = 0;
        }
      }
    }
    if constexpr (kKeep) {
      Slopes<F, K, HasTeacher> slopes;
      for (int r = 0; r < R; ++r) slopes.scale[r] = narrow<F>(1.0 / sums.S[r]);
      for (int k = 0; k < K; ++k) slopes.scale1[k] = narrow<F>(1.0 / sums.S1[k]);
      write_gradient(slopes);
    }
  }

  // dstudent from the statistics of an earlier forward.
  void run_backward() {
    Slopes<F, K, HasTeacher> slopes;
    for (int r = 0; r < R; ++r) {
      Vec<F> top = {};
      Vec<F> log_S = {}, log_S1 = {};
      for (int64_t i = 0; i < count; ++i) {
        const F* stats = stats_of<F>(p, r < K ? r : p.K, n[i]);
        top[i] = stats[0], log_S[i] = stats[1], log_S1[i] = stats[2];
      }
      slopes.scale[r] = exp_scaled<F>(-log_S, exponent_factor<F>(1.0));
      if (r < K) slopes.scale1[r] = exp_scaled<F>(-log_S1, exponent_factor<F>(1.0));
      pack(r);
      for (int64_t c = 0; c < p.C; ++c) store(e[r] + c * L, exp_scaled<F>(load(e[r] + c * L) - top, this->c));
    }
    write_gradient(slopes);
  }

  void write_gradient(Slopes<F, K, HasTeacher>& slopes) {
    const F tau = F(p.temperature), per_pair = tau / F(K > 1 ? K - 1 : 1);
    for (int k = 0; k < K; ++k) {
      slopes.ce[k] = slopes.teacher[k] = slopes.peers[k] = Vec<F>{};
      for (int64_t i = 0; i < count; ++i) {
        if (y[i] != kUnlabelled) slopes.ce[k][i] = upstream_of<F>(p, 0, k, n[i]);
        slopes.teacher[k][i] = upstream_of<F>(p, 1, k, n[i]) * tau;
        slopes.peers[k][i] = upstream_of<F>(p, 2, k, n[i]) * per_pair;
      }
    }
    slopes.combine(power);
    gradient(e, e, p.C, power, slopes);
    for (int k = 0; k < K; ++k) {
      for (int64_t i = 0; i < count; ++i) {
        if (y[i] != kUnlabelled) e[k][y[i] * L + i] -= slopes.ce[k][i];
        unpack(k, i);
      }
    }
  }

  void unpack(int k, int64_t i) {
    char* out = dstudent_of(p, k, n[i]);
    const bool converts = size_of(p.student->dtype) != sizeof(F);
    F buffer[kPackedClasses + L];
    F* row = converts ? buffer : (F*)out;
    for (int64_t c = 0; c < p.C; ++c) row[c] = e[k][c * L + i];
    if (converts) put<F>(out, p.student->dtype, row, p.C);
  }
};

}  // namespace nanonet::NANONET_ISA
