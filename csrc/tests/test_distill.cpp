// Values and gradients of every instruction set that this CPU has, against the definition in long double, pair by pair.
#include <cstdlib>
#include <random>
#include <string>

#include "check.h"
#include "isa.h"
#include "oracle.h"

struct Case {
  Dtype dtype, teacher_dtype;
  int64_t K, C, kind;
  double beta, tau;
  bool teacher, labels, hard;  // hard: -inf classes, one-hot teacher, logits of 1e4
  bool steps = false;          // logits that rise or fall from chunk to chunk
  std::string describe(const char* isa) const {
    char text[200];
    std::snprintf(text, sizeof text, "%s dtype %d teacher %d K %d C %d divergence %d beta %g tau %g%s%s%s%s", isa, int(dtype),
                  int(teacher_dtype), int(K), int(C), int(kind), beta, tau, teacher ? "" : " no teacher",
                  labels ? "" : " no labels", hard ? " hard" : "", steps ? " steps" : "");
    return text;
  }
};

static double tolerance(Dtype dtype) {
  return dtype == Dtype::kFloat64 ? 2e-13 : 4e-6;
}

struct Output {
  const char* isa;
  Array terms, loss_terms, dstudent, again;  // of terms and backward; of the single pass
};

// Everything starts as NaN, and the single pass runs in two parts, as two threads would.
static Output run_kernels(const Kernels& kernels, Problem p, const Array& upstream, const Array& weight) {
  const Dtype real = weight.dtype, dtype = p.student->dtype;
  const size_t KN = size_t(p.K * p.N);
  Output o{kernels.name, {real, 3 * KN}, {real, 3 * KN}, {dtype, KN * size_t(p.C)}, {dtype, KN * size_t(p.C)}};
  Array stats(real, size_t((p.K + 1) * p.N * kStats));
  std::vector<char> scratch(size_t(kernels.scratch_bytes(p)) + 64);
  char* at = scratch.data() + (64 - uintptr_t(scratch.data()) % 64);
  p.terms = o.terms.bytes.data();
  p.stats = stats.bytes.data();
  kernels.terms(p, 0, p.N, at);
  p.upstream = upstream.bytes.data();
  p.dstudent = o.dstudent.bytes.data();
  kernels.backward(p, 0, p.N, at);
  p.terms = o.loss_terms.bytes.data();
  p.stats = nullptr;
  p.row_weight = weight.bytes.data();
  p.dstudent = o.again.bytes.data();
  p.stream = true;
  kernels.loss(p, 0, p.N / 3, at);
  kernels.loss(p, p.N / 3, p.N, at);
  return o;
}

static void check_row(const Case& t, const Output& o, const Oracle& want, int64_t N, int64_t n, size_t k, Real largest) {
  const size_t row = k * size_t(N) + size_t(n), KN = size_t(t.K * N);
  const Real wants[] = {want.ce, want.teacher, want.peers};
  const Real squared = t.kind == kMse ? largest * largest : largest * std::fmax(1, t.tau * t.tau);
  for (size_t i = 0; i < 3; ++i)
    for (const Array* got : {&o.terms, &o.loss_terms}) {
      const Real value = got->get(i * KN + row);
      CHECK(close(value, wants[i], squared, tolerance(t.dtype)), "%s, term %d row %d: %Lg, not %Lg",
            t.describe(o.isa).c_str(), int(i), int(n), value, wants[i]);
    }
  const Real scale = (t.kind == kKl || t.kind == kCrossEntropy ? 4 : 4 * largest) * std::fmax(1, t.tau) * Real(tolerance(t.dtype));
  for (size_t c = 0; c < size_t(t.C); ++c)
    for (const Array* got : {&o.dstudent, &o.again}) {
      const Real value = got->get(row * size_t(t.C) + c), bound = std::fabs(want.dstudent[c]) * rounding(t.dtype);
      CHECK(close(value, want.dstudent[c], scale + bound + 7e-8L * (t.dtype == Dtype::kFloat16), 1),
            "%s, gradient of student %d row %d class %d: %Lg, not %Lg", t.describe(o.isa).c_str(), int(k), int(n),
            int(c), value, want.dstudent[c]);
    }
}

static void run_case(const Case& t, std::mt19937& random) {
  const int64_t N = t.C <= 49 ? 18 : 4;  // 18: more than the 16 rows that the lanes hold
  const size_t K = size_t(t.K), C = size_t(t.C);
  const int64_t pad = 3;  // between rows
  std::normal_distribution<double> normal;
  std::vector<Array> logits;
  for (size_t r = 0; r <= K; ++r) logits.emplace_back(r < K ? t.dtype : t.teacher_dtype, size_t(N) * (C + pad));
  std::vector<int64_t> label(N, kUnlabelled);
  for (int64_t n = 0; n < N; ++n) {
    for (size_t r = 0; r <= K; ++r)
      for (size_t c = 0; c < C; ++c) {
        double x = 2 * normal(random);
        // within reach of the first chunk's maximum; above it; vanishing; far away and back
        const double steps[] = {2, 12, -60, c / 1024 == 1 ? -300.0 : 0};
        if (t.steps) x += steps[n % 4] * double(c / 1024) * (r == K && n % 2 ? -1 : 1);
        if (t.hard && n % 3 == 0) x *= 4000;
        if (t.hard && n % 3 == 1 && r == K && c != 0) x = -INFINITY;                     // one-hot teacher
        if (t.hard && n % 3 == 2 && c % 5 == 2 && (r == K || t.kind == kKl || t.kind == kCrossEntropy)) x = -INFINITY;  // a class nobody has
        logits[r].set(size_t(n) * (C + pad) + c, x);
      }
    if (t.labels && n % 4 != 3) label[size_t(n)] = n % t.C;
  }
  std::vector<Rows> rows;
  for (const Array& array : logits)
    rows.push_back({array.bytes.data(), int64_t(C + pad) * size_of(array.dtype), array.dtype});
  rows[0].inner = 3, rows[0].outer_bytes = 3 * rows[0].row_bytes;  // the first in groups of 3 rows

  const Dtype real = t.dtype == Dtype::kFloat64 ? Dtype::kFloat64 : Dtype::kFloat32;
  Array upstream(real, 3 * K * size_t(N)), weight(real, K * size_t(N));
  for (size_t i = 0; i < 3 * K * size_t(N); ++i) upstream.set(i, i % 7 == 5 ? 0 : normal(random));
  for (size_t i = 0; i < K * size_t(N); ++i) weight.set(i, 1);
  Problem p{};
  p.K = t.K, p.N = N, p.C = t.C, p.temperature = t.tau, p.divergence = t.kind, p.beta = t.beta;
  p.student = rows.data();
  p.teacher = t.teacher ? &rows[K] : nullptr;
  p.label = t.labels ? label.data() : nullptr;
  std::vector<Output> outputs;
  for (const Kernels* kernels : kernels_supported()) outputs.push_back(run_kernels(*kernels, p, upstream, weight));

  for (int64_t n = 0; n < N; ++n) {
    std::vector<Values> x(K + 1, Values(C));
    Real largest = 1;
    for (size_t r = 0; r <= K; ++r)
      for (size_t c = 0; c < C; ++c) {
        x[r][c] = logits[r].get(size_t(n) * (C + pad) + c);
        if (std::isfinite(x[r][c])) largest = std::fmax(largest, std::fabs(x[r][c]));
      }
    const Values teacher = x[K];
    x.pop_back();
    for (size_t k = 0; k < K; ++k) {
      Real u[3];
      for (size_t i = 0; i < 3; ++i) u[i] = upstream.get((i * K + k) * size_t(N) + size_t(n));
      const Oracle want = definition(x, t.teacher ? &teacher : nullptr, label[size_t(n)], k, t.tau, t.kind, t.beta, u);
      for (const Output& output : outputs) check_row(t, output, want, N, n, k, largest);
    }
  }
}

// Students 1e-3 apart: float keeps 2% of their divergence.
static void test_close_students(const Kernels& kernels) {
  std::mt19937 random(5);
  std::normal_distribution<double> normal;
  for (int64_t K : {2, 4, 6}) {
    const size_t C = 1000;
    std::vector<Array> logits;
    std::vector<Values> x = std::vector<Values>(size_t(K), Values(C));
    for (int64_t k = 0; k < K; ++k) logits.emplace_back(Dtype::kFloat32, C);
    for (size_t c = 0; c < C; ++c) {
      const double base = normal(random);
      for (size_t k = 0; k < size_t(K); ++k) {
        logits[k].set(c, base + 1e-3 * normal(random));
        x[k][c] = logits[k].get(c);
      }
    }
    std::vector<Rows> rows;
    for (const Array& array : logits) rows.push_back({array.bytes.data(), int64_t(C) * 4, Dtype::kFloat32});
    Array terms(Dtype::kFloat32, size_t(3 * K));
    Problem p{};
    p.K = K, p.N = 1, p.C = int64_t(C), p.temperature = 1, p.student = rows.data(), p.terms = terms.bytes.data();
    std::vector<char> scratch(size_t(kernels.scratch_bytes(p)) + 64);
    kernels.terms(p, 0, 1, scratch.data() + (64 - uintptr_t(scratch.data()) % 64));
    const Real u[3] = {};
    for (size_t k = 0; k < size_t(K); ++k) {
      const Real want = definition(x, nullptr, kUnlabelled, k, 1, kKl, 0, u).peers, got = terms.get(size_t(2 * K) + k);
      CHECK(std::fabs(got / want - 1) < 0.02, "%s K %d: %Lg, not %Lg", kernels.name, int(K), got, want);
    }
  }
}

int main() {
  std::mt19937 random(1);
  const double betas[] = {0.01, 0.1, 0.5, 0.9};
  int64_t beta_at = 0;
  for (Dtype dtype : {Dtype::kFloat32, Dtype::kFloat64, Dtype::kBfloat16, Dtype::kFloat16})
    // one class; fewer than a vector; the last that is packed; the first that is not; a whole chunk; ragged chunks
    for (int64_t C : {1, 4, 48, 49, 1024, 2051})
      for (int64_t K : {1, 2, 3, 4, 5})
        for (int64_t kind = 0; kind < kDivergences; ++kind)
          for (double tau : {1.0, 2.0, 2.5}) {  // 2.5: no power, so a second exponential
            if ((kind == kMse && tau != 1) || (C > 1000 && (K == 3 || K == 4 || tau == 2.0))) continue;
            const double beta = betas[beta_at++ % 4];
            const Dtype other = dtype == Dtype::kFloat64 ? dtype : Dtype::kFloat32;
            run_case({dtype, dtype, K, C, kind, beta, tau, true, true, false}, random);
            run_case({dtype, other, K, C, kind, beta, tau, true, C % 2 == 0, false}, random);
            run_case({dtype, dtype, K, C, kind, beta, tau, false, C % 2 == 1, false}, random);
            if (C > 4 && (kind == kKl || kind == kCrossEntropy)) run_case({dtype, dtype, K, C, kind, beta, tau, true, true, true}, random);
          }
  for (Dtype dtype : {Dtype::kFloat32, Dtype::kFloat64, Dtype::kBfloat16, Dtype::kFloat16})
    for (int64_t C : {3072, 3079})
      for (int64_t K : {1, 2})
        for (int64_t kind = 0; kind < kDivergences; ++kind)
          if (kind != kMse)
            for (double tau : {1.0, 2.0}) run_case({dtype, dtype, K, C, kind, 0.5, tau, true, true, false, true}, random);
  for (const Kernels* kernels : kernels_supported()) test_close_students(*kernels);
  std::printf("%d failures\n", failures);
  return failures != 0;
}
