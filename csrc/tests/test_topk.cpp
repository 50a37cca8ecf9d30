// Values and gradients against a teacher's k likeliest classes, of every instruction set that this CPU has, against the
// definition in long double.
#include <algorithm>
#include <numeric>
#include <random>
#include <string>

#include "check.h"
#include "isa.h"
#include "oracle.h"

struct Case {
  Dtype dtype;
  int64_t K, C, k, kind, tail;
  double tau, spread;  // of the logits: where it is large, what lies outside vanishes
};

// D and its gradient of one row, class by class.
static Real top_divergence(const Case& t, const Values& x, const std::vector<int64_t>& id, const Values& given,
                           Values* slope) {
  const Real beta = 0.3L;
  const size_t C = x.size(), k = id.size();
  const Values l = log_softmax(x, t.tau);
  std::vector<char> named(C, 0);
  Values log_p = given, log_q(k), g(k + 1, 0);
  for (size_t i = 0; i < k; ++i) named[size_t(id[i])] = 1, log_q[i] = l[size_t(id[i])];
  Values others;
  Real mass = 0, q_mass = 0;
  for (size_t c = 0; c < C; ++c)
    if (!named[c]) others.push_back(l[c]);
  for (size_t i = 0; i < k; ++i) mass += std::exp(log_p[i]), q_mass += std::exp(log_q[i]);
  for (size_t i = 0; t.tail == kRenormalised && i < k; ++i) log_p[i] -= std::log(mass), log_q[i] -= std::log(q_mass);
  Real largest = -kInfinity, sum = 0, value = 0, total = 0;
  for (Real other : others) largest = std::max(largest, other);
  for (Real other : others) sum += std::exp(other - largest);
  const Real rest = others.empty() ? -kInfinity : largest + std::log(sum);
  if (t.tail == kBucket) {
    log_p.push_back(others.empty() ? -kInfinity : std::log(std::max(1 - mass, 1e-7L)));
    log_q.push_back(rest);
  }
  for (size_t i = 0; i < log_p.size(); ++i) {
    Real one;
    share(log_p[i], log_q[i], t.kind, beta, &one, &g[i]);
    const bool reverse = t.kind == kReverseKl || t.kind == kSkewReverseKl;
    const Real multiple = reverse ? 1 : t.kind == kSymmetricKl ? 1 - beta : 0;
    if (t.tail == kLeftOut) g[i] += multiple * std::exp(log_q[i]);
    value += one, total += g[i];
  }
  slope->assign(C, 0);
  for (size_t c = 0; c < C; ++c) {
    if (named[c] || t.tail == kRenormalised) continue;
    if (t.tail == kBucket) (*slope)[c] = t.tau * std::exp(l[c] - rest) * (g[k] - times(std::exp(rest), total));
    if (t.tail == kLeftOut) (*slope)[c] = -t.tau * std::exp(l[c]) * total;
  }
  for (size_t i = 0; i < k; ++i) (*slope)[size_t(id[i])] = t.tau * (g[i] - times(std::exp(log_q[i]), total));
  return t.tau * t.tau * value;
}

static void check(const char* isa, const Case& t, const char* what, int64_t n, Real got, Real want, Real bound) {
  CHECK(close(got, want, 1, double(bound)), "%s dtype %d K %d C %d k %d divergence %d tail %d tau %g spread %g row %d %s: %Lg, not %Lg",
        isa, int(t.dtype), int(t.K), int(t.C), int(t.k), int(t.kind), int(t.tail), t.tau, t.spread, int(n), what, got, want);
}

static void run_case(const Case& t, std::mt19937& random) {
  const int64_t N = 5;
  const size_t K = size_t(t.K), C = size_t(t.C), k = size_t(t.k);
  const Dtype real = t.dtype == Dtype::kFloat64 ? t.dtype : Dtype::kFloat32;
  std::normal_distribution<double> normal;
  std::vector<Array> logits;
  std::vector<Rows> rows;
  for (size_t r = 0; r < K; ++r) logits.emplace_back(t.dtype, size_t(N) * C);
  for (Array& array : logits) {
    for (size_t i = 0; i < size_t(N) * C; ++i) array.set(i, t.spread * normal(random));
    rows.push_back({array.bytes.data(), t.C * size_of(t.dtype), t.dtype});
  }
  std::vector<int64_t> ids(size_t(N) * k, -1), label(size_t(N), kUnlabelled);
  Array log_p(real, size_t(N) * k), upstream(real, 3 * K * size_t(N)), weight(real, K * size_t(N));
  for (int64_t n = 0; n < N; ++n) {
    std::vector<int64_t> all(C);
    std::iota(all.begin(), all.end(), 0);
    std::shuffle(all.begin(), all.end(), random);
    const size_t fewer = n == 2 ? k / 2 : k;  // row 2 is padded
    const double left[] = {0.5, 1e-4, 0.999, 0.1, 0.3};
    for (size_t i = 0; i < fewer; ++i) {
      ids[size_t(n) * k + (i * 7 + 3) % k] = k % 7 == 0 ? -1 : all[i];
      if (k % 7 == 0) ids[size_t(n) * k + i] = all[i];
    }
    for (size_t i = 0; i < k; ++i) log_p.set(size_t(n) * k + i, std::log((1 - left[n]) / double(k)));
    if (n % 2) label[size_t(n)] = all[size_t(n) % C];
  }
  for (size_t i = 0; i < 3 * K * size_t(N); ++i) upstream.set(i, i % 11 == 5 ? 0 : normal(random));
  for (size_t i = 0; i < K * size_t(N); ++i) {
    weight.set(i, i % 7 == 3 ? 0 : 1);
    for (size_t term : {1, 2})
      if (weight.get(i) == 0) upstream.set(term * K * size_t(N) + i, 0);  // as the ops have it
  }
  const TopTeacher top = {t.k, ids.data(), log_p.bytes.data(), t.tail};
  Problem p{};
  p.K = t.K, p.N = N, p.C = t.C, p.temperature = t.tau, p.divergence = t.kind, p.beta = 0.3;
  p.student = rows.data(), p.label = label.data(), p.top = &top, p.row_weight = weight.bytes.data();
  p.upstream = upstream.bytes.data();
  for (const Kernels* kernels : kernels_supported()) {
    Array terms(real, 3 * K * size_t(N)), dstudent(t.dtype, K * size_t(N) * C);
    std::vector<char> scratch(size_t(kernels->scratch_bytes(p)) + 64);
    char* at = scratch.data() + (64 - uintptr_t(scratch.data()) % 64);
    p.terms = terms.bytes.data(), p.dstudent = dstudent.bytes.data(), p.stream = t.C > 1000;
    kernels->loss(p, 0, 2, at);
    kernels->loss(p, 2, N, at);
    for (int64_t n = 0; n < N; ++n) {
      std::vector<Values> x(K, Values(C));
      for (size_t r = 0; r < K; ++r)
        for (size_t c = 0; c < C; ++c) x[r][c] = logits[r].get(size_t(n) * C + c);
      std::vector<int64_t> id;
      Values given;
      for (size_t i = 0; i < k; ++i)
        if (ids[size_t(n) * k + i] >= 0) id.push_back(ids[size_t(n) * k + i]), given.push_back(log_p.get(size_t(n) * k + i));
      for (size_t r = 0; r < K; ++r) {
        const size_t row = r * size_t(N) + size_t(n), KN = K * size_t(N);
        const bool soft = weight.get(row) != 0;
        const Real u[3] = {upstream.get(row), 0, soft ? upstream.get(2 * KN + row) : 0}, u_top = upstream.get(KN + row);
        const Oracle rest = definition(x, nullptr, label[size_t(n)], r, t.tau, kKl, 0, u);
        Values slope;
        const Real value = top_divergence(t, x[r], id, given, &slope);
        const Real unit = (t.dtype == Dtype::kFloat64 ? 1e-11L : 4e-6L) * t.spread * 4 * t.tau * t.tau;
        check(kernels->name, t, "ce", n, terms.get(row), rest.ce, unit * (1 + std::fabs(rest.ce)));
        check(kernels->name, t, "D", n, terms.get(KN + row), soft ? value : 0, unit * (1 + std::fabs(value)));
        for (size_t c = 0; c < C; ++c) {
          const Real want = rest.dstudent[c] + (soft && u_top != 0 ? u_top * slope[c] : 0);
          // a gradient that is added to another is rounded twice
          const Real rounded = 3 * rounding(t.dtype) * (std::fabs(rest.dstudent[c]) + std::fabs(want));
          check(kernels->name, t, "gradient", n, dstudent.get(row * C + c), want, unit + rounded);
        }
      }
    }
  }
}

int main() {
  std::mt19937 random(1);
  for (Dtype dtype : {Dtype::kFloat32, Dtype::kFloat64, Dtype::kBfloat16, Dtype::kFloat16})
    // one class; fewer than a vector; ragged; a chunk and one class
    for (int64_t C : {1, 5, 48, 1025})
      for (int64_t K : {1, 2, 4, 5})
        for (int64_t k : {int64_t(1), int64_t(4), int64_t(40), C})
          for (int64_t kind = 0; kind < kDivergences; ++kind) {
            if (kind == kMse || k > C) continue;
            const bool large = C > 1000;
            if (large && (K == 2 || K == 4 || k == 1 || k == C || dtype == Dtype::kFloat16 || kind % 3 == 1)) continue;
            const double tau = kind % 3 == 0 ? 1 : kind % 3 == 1 ? 2 : 2.5;
            run_case({dtype, K, C, k, kind, (kind + k + K) % kTails, tau, 2}, random);
            if (C > 40 && k < C && dtype != Dtype::kFloat16) run_case({dtype, K, C, k, kind, kBucket, 1, 60}, random);
          }
  std::printf("%d failures\n", failures);
  return failures != 0;
}
