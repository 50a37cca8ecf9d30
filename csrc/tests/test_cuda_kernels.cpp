// The CUDA kernels, emulated (cuda_on_cpu.h), against the definition: every kernel, values and gradients, in both
// orders of the threads. Outputs start as NaN between guards.
#include <cstdlib>
#include <random>
#include <string>

#include "check.h"
#include "cuda_launch.h"
#include "oracle.h"

using namespace nanonet;

struct Case {
  Regime regime;
  int K, C, cluster;
  int64_t kind;
  double beta;
  Dtype dtype, teacher_dtype;
  double tau;
  bool teacher, labels, aligned, hard;  // hard: -inf classes, one-hot teacher, logits of 1e4, rows of NaN with weight 0
  int64_t N;
  int gap = -1;         // elements between two rows, so that their alignment differs; -1: as `aligned` says
  bool masked = false;  // student 0 masks class 1 with a large number, which must not change the others' terms
};

static std::string describe(const Case& t) {
  char text[200];
  std::snprintf(text, sizeof text,
                "kernel %d K %d C %d cluster %d divergence %d beta %g dtype %d/%d tau %g%s%s%s%s gap %d",
                int(t.regime), t.K, t.C, t.cluster, int(t.kind), t.beta, int(t.dtype), int(t.teacher_dtype), t.tau,
                t.teacher ? "" : " no teacher", t.labels ? "" : " no labels", t.aligned ? " aligned" : "",
                t.hard ? " hard" : "", t.gap);
  return text;
}

// Few blocks, so that each has several rows.
static Plan plan_of(const Case& t, const Call& p) {
  if (t.regime != Regime::kSmall) return {p.from_stats ? Regime::kSweep : t.regime, 0, 0, t.cluster, 2 * t.cluster};
  Plan plan = cuda::plan_of(p, {1, 9, 227 << 10, 228 << 10});
  CHECK(plan.regime == Regime::kSmall, "%s: regime %d", describe(t).c_str(), int(plan.regime));
  plan.blocks = 2;
  return plan;
}

struct Inputs {
  std::vector<Array> logits;  // student by student, then the teacher; rows `stride` apart, NaN between them
  size_t stride;
  std::vector<int64_t> label;
  std::vector<float> upstream, weight;
  float weights[3] = {0.7f, 1.3f, 0.5f};
};

static Inputs draw(const Case& t, std::mt19937& random) {
  Inputs in;
  const size_t C = size_t(t.C), N = size_t(t.N), K = size_t(t.K);
  std::normal_distribution<double> normal;
  in.stride = t.gap >= 0 ? C + size_t(t.gap) : t.aligned ? (C + 15) / 16 * 16 : C + 3;
  in.label.assign(N, kUnlabelled);
  for (size_t r = 0; r <= K; ++r) {
    in.logits.emplace_back(r < K ? t.dtype : t.teacher_dtype, N * in.stride + 16);
    for (size_t n = 0; n < N; ++n)
      for (size_t c = 0; c < C; ++c) {
        double x = 2 * normal(random);
        if (t.masked && r == 0 && c == 1) x = -1e9;
        if (t.hard && n % 5 == 0) x *= 4000;
        if (t.hard && n % 5 == 1 && r == K && c != 0) x = -INFINITY;
        const bool late = t.gap != 0 || c >= C - 8;  // of two blocks that share a row, one alone has such a class
        if (t.hard && n % 5 == 2 && c % 5 == 2 && C > 5 && late) x = -INFINITY;
        // all classes of a student, or most of everybody, masked with the lowest number there is
        if (t.hard && n % 5 == 4 && (n % 2 ? r == 0 : c + 3 < C))
          x = t.dtype == Dtype::kFloat16 ? -65504 : -3.3e38;
        if (t.hard && n % 5 == 3 && (r == K || r == 0) && c % 3 == 0) x = NAN;
        in.logits[r].set(n * in.stride + c, x);
      }
  }
  for (size_t n = 0; n < N; ++n)
    if (t.labels && n % 4 != 3) in.label[n] = int64_t(n * 7 % C);
  if (t.labels && t.hard) in.label[0] = t.C;  // no class
  for (size_t i = 0; i < 3 * K * N; ++i) in.upstream.push_back(i % 7 == 5 ? 0 : float(normal(random)));
  for (size_t i = 0; i < K * N; ++i)
    in.weight.push_back(t.hard && i % N % 5 == 3 ? 0 : i % 6 == 4 ? 0 : float(0.2 + std::fabs(normal(random))));
  return in;
}

// Every row's oracle for upstream gradients u(term, k, n); an upstream gradient of 0 masks.
template <class U>
static std::vector<Oracle> oracles(const Case& t, const Inputs& in, U u) {
  std::vector<Oracle> all;
  for (size_t n = 0; n < size_t(t.N); ++n) {
    std::vector<Values> x(size_t(t.K) + 1, Values(size_t(t.C)));
    for (size_t r = 0; r < x.size(); ++r)
      for (size_t c = 0; c < size_t(t.C); ++c) x[r][c] = in.logits[r].get(n * in.stride + c);
    const Values teacher = x.back();
    x.pop_back();
    for (size_t k = 0; k < size_t(t.K); ++k) {
      const Real up[3] = {u(0, k, n), u(1, k, n), u(2, k, n)};
      const bool bad = in.label[n] == t.C;
      all.push_back(definition(x, t.teacher ? &teacher : nullptr, bad ? 0 : in.label[n], k, t.tau, t.kind, t.beta, up));
      if (!bad) continue;
      all.back().ce = NAN;
      if (up[0] != 0)
        for (Real& d : all.back().dstudent) d = NAN;
    }
  }
  return all;
}

// The largest log-ratio of two probabilities, or difference of two logits.
static Real largest(const Case& t) { return t.hard ? 4e4 : 12; }

// Whether values and slopes are of the size of probabilities, whatever the logits are.
static bool is_bounded(int64_t kind) { return kind == kJs || kind == kSkewKl || kind == kSkewReverseKl || kind == kTv; }

static void check_gradient(const Case& t, const char* op, char* data, const std::vector<Oracle>& want) {
  Array got(t.dtype, size_t(t.K * t.N * t.C));
  std::memcpy(got.bytes.data(), data, got.bytes.size());
  for (size_t n = 0; n < size_t(t.N); ++n)
    for (size_t k = 0; k < size_t(t.K); ++k)
      for (size_t c = 0; c < size_t(t.C); ++c) {
        const Real value = got.get((k * size_t(t.N) + n) * size_t(t.C) + c);
        const Real wanted = want[n * size_t(t.K) + k].dstudent[c];
        const Real size = has_kl_slopes(t.kind) || is_bounded(t.kind) ? 4 : largest(t);
        const Real bound = 6e-6L * size * std::fmax(1, t.tau) +
                           std::fabs(wanted) * rounding(t.dtype) + 7e-8L;
        CHECK(close(value, wanted, bound, 1), "%s of %s: student %d row %d class %d: %Lg, not %Lg", op,
              describe(t).c_str(), int(k), int(n), int(c), value, wanted);
      }
}

// Of term i; 3: of the loss.
static double term_bound(const Case& t, Real want, size_t i) {
  const Real size = i == 1 && is_bounded(t.kind) ? 4 : largest(t);
  const double bound = 8e-6 * double(t.kind == kMse ? size * size : size * std::fmax(1, t.tau * t.tau));
  return bound + (t.masked ? 4e-6 * double(std::fabs(want)) : 0);
}

static void run_case(const Case& t, std::mt19937& random) {
  Inputs in = draw(t, random);
  const size_t K = size_t(t.K), N = size_t(t.N), KN = K * N;
  Call p{};
  p.N = t.N, p.K = t.K, p.C = t.C, p.divergence = int32_t(t.kind), p.temperature = float(t.tau), p.beta = float(t.beta);
  const size_t skew = t.aligned ? 0 : 1;  // elements by which the logits are misaligned
  std::vector<Output> logits;
  for (size_t r = 0; r <= K; ++r) {
    const size_t element = size_t(size_of(in.logits[r].dtype));
    logits.emplace_back(in.logits[r].bytes.size(), skew * element * (1 + r % 2));
    std::memcpy(logits[r].data(), in.logits[r].bytes.data(), in.logits[r].bytes.size());
    (r < K ? p.student[r] : p.teacher) = {logits[r].data(), int64_t(in.stride * element), in.logits[r].dtype};
  }
  if (!t.teacher) p.teacher.data = nullptr;
  if (t.labels) p.label = in.label.data(), p.label_stride = 1;

  Output terms(3 * KN * 4), stats((K + 1) * N * 4 * 4), dstudent(KN * size_t(t.C) * size_t(size_of(t.dtype)));
  p.terms = reinterpret_cast<float*>(terms.data());
  p.stats = reinterpret_cast<float*>(stats.data());
  launch(p, plan_of(t, p));
  const auto upstream = [&](size_t i, size_t k, size_t n) { return Real(in.upstream[(i * K + k) * N + n]); };
  const auto wanted = oracles(t, in, upstream);
  for (size_t n = 0; n < N; ++n)
    for (size_t k = 0; k < K; ++k) {
      const Oracle& o = wanted[n * K + k];
      const Real want[] = {o.ce, o.teacher, o.peers};
      for (size_t i = 0; i < 3; ++i)
        CHECK(close(p.terms[(i * K + k) * N + n], want[i], 1, term_bound(t, want[i], i)),
              "%s: term %d student %d row %d: %g, not %Lg", describe(t).c_str(), int(i), int(k), int(n), double(p.terms[(i * K + k) * N + n]), want[i]);
    }

  p.terms = nullptr;
  p.from_stats = true;
  p.dstudent = dstudent.data();
  p.upstream = {reinterpret_cast<char*>(in.upstream.data()), Dtype::kFloat32, {int64_t(KN), int64_t(N), 1}};
  launch(p, plan_of(t, p));
  check_gradient(t, "backward", dstudent.data(), wanted);

  // the loss: weighted means and their gradient, denominators counted by the kernel; row weights shared or per student
  const bool shared = (t.K + t.C) % 2 == 0;
  Output loss(4), means(3 * K * 4), again(dstudent.bytes), partials(4 * 3 * cuda::kMaxStudents * 8);
  p.from_stats = false;
  p.stats = nullptr;
  p.upstream = {};
  p.weights = {reinterpret_cast<char*>(in.weights), Dtype::kFloat32, {1, 0, 0}};
  p.row_weight = {reinterpret_cast<char*>(in.weight.data()), Dtype::kFloat32, {0, shared ? 0 : int64_t(N), 1}};
  p.dstudent = again.data();
  p.loss = reinterpret_cast<float*>(loss.data());
  p.means = reinterpret_cast<float*>(means.data());
  p.partials = reinterpret_cast<double*>(partials.data());
  p.counter = 5;
  launch(p, plan_of(t, p));
  CHECK(cuda::counters[5] == 0, "%s: the counter is left at %u", describe(t).c_str(), cuda::counters[5]);
  std::vector<Real> total(3 * K);
  const auto counts = [&](size_t i, size_t k, size_t n) {
    return i == 0 ? Real(in.label[n] != kUnlabelled) : Real(in.weight[shared ? n : k * N + n]);
  };
  for (size_t i = 0; i < 3 * K; ++i)
    for (size_t n = 0; n < N; ++n) total[i] += counts(i / K, i % K, n);
  const auto share = [&](size_t i, size_t k, size_t n) {
    return total[i * K + k] == 0 ? 0 : counts(i, k, n) / total[i * K + k];
  };
  const auto expected = oracles(t, in, [&](size_t i, size_t k, size_t n) { return in.weights[i] * share(i, k, n); });
  check_gradient(t, "loss", again.data(), expected);
  Real loss_wanted = 0;
  for (size_t i = 0; i < 3; ++i)
    for (size_t k = 0; k < K; ++k) {
      Real mean = 0;
      for (size_t n = 0; n < N; ++n) {
        const Oracle& o = expected[n * K + k];
        mean += times(share(i, k, n), i == 0 ? o.ce : i == 1 ? o.teacher : o.peers);
      }
      CHECK(close(p.means[i * K + k], mean, 1, term_bound(t, mean, i)), "%s: mean %d of student %d: %g, not %Lg",
            describe(t).c_str(), int(i), int(k), double(p.means[i * K + k]), mean);
      loss_wanted += in.weights[i] * mean;
    }
  CHECK(close(*p.loss, loss_wanted, Real(3 * K), term_bound(t, loss_wanted, 3)), "%s: loss %g, not %Lg",
        describe(t).c_str(), double(*p.loss), loss_wanted);
  for (Output* output : {&terms, &stats, &dstudent, &loss, &means, &again, &partials})
    CHECK(output->intact(), "%s: written outside", describe(t).c_str());
}

// Every divergence, with every beta that is tested.
struct Kind {
  int64_t kind;
  double beta;
};

static std::vector<Kind> all_kinds() {
  std::vector<Kind> all;
  for (int64_t kind = 0; kind < kDivergences; ++kind) {
    const bool has_beta = kind == kJs || kind == kSymmetricKl || kind == kSkewKl || kind == kSkewReverseKl;
    for (double beta : {0.5, 0.01, 0.1, 0.9})
      if (has_beta || beta == 0.5) all.push_back({kind, beta});
  }
  return all;
}

// An argument n runs one case in n: enough for the sanitizers, which follow addresses, not values.
int main(int count, char** arguments) {
  const int every = count > 1 ? std::atoi(arguments[1]) : 1;
  std::mt19937 random(3);
  const Dtype types[] = {Dtype::kBfloat16, Dtype::kFloat32, Dtype::kFloat16};
  int turn = 0;  // selects the options that are not crossed with everything
  const auto run = [&](Regime regime, int K, int C, int cluster, Kind kind, int64_t N) {
    ++turn;
    if (turn % every != turn / every % every) return;
    emulation::backwards = turn % 2;
    const Dtype dtype = types[turn % 3], other = turn % 5 == 1 ? Dtype::kFloat32 : dtype;
    const double tau = kind.kind == kMse ? 1 : turn % 4 == 0 ? 1 : turn % 4 == 1 ? 2.5 : turn % 4 == 2 ? 2 : 1;
    const bool finite = has_kl_slopes(kind.kind) || is_bounded(kind.kind);  // also with classes at -inf
    run_case({regime, K, C, cluster, kind.kind, kind.beta, dtype, other, tau, turn % 6 != 5, turn % 7 != 6,
              turn / 3 % 2 == 0, finite && turn % 4 == 3, N}, random);
  };
  for (Kind kind : all_kinds())
    for (int K : {1, 2, 3, 4, 5, 8}) {
      const bool kl = kind.kind == kKl, like_kl = has_kl_slopes(kind.kind), first = kind.beta == 0.5;
      if (!kl && (K == 3 || K == 5)) continue;  // the same code as 4 and 8
      if (!like_kl && K > 4) continue;          // not served
      // one class; fewer than a lane has; several lanes; a whole warp, ragged; eight classes per lane
      for (int C : {1, 3, 30, 100, 250})
        if ((C <= 128 || (K <= 4 && like_kl)) && (first || C == 30)) run(Regime::kSmall, K, C, 1, kind, 9);
      // fewer chunks than threads; whole chunks; ragged
      for (int C : {40, 1040, 611}) {
        if (!kl && (K != 2 || (C != 40 && !first)) && (C != 611 || !first)) continue;
        run(Regime::kChip, K, C, 1, kind, 5);
        run(Regime::kSweep, K, C, 1, kind, 5);
        run(Regime::kCluster, K, C, C == 611 ? 3 : 2, kind, 5);
      }
    }
  // in a cluster, a row has one chunk more than the next: the next must not overwrite it too early
  for (bool backwards : {false, true})
    for (int K : {2, 8}) {
      emulation::backwards = backwards, ++turn;
      run_case({Regime::kCluster, K, 1011, 2, K == 2 ? kJs : kKl, 0.1, Dtype::kBfloat16, Dtype::kBfloat16, 2, true, true, true,
                false, 16, 0}, random);
    }
  // the next row replaces this one during its last sweep; a class at -inf needs this row once more; and a row of
  // another alignment is not prefetched
  for (Regime regime : {Regime::kChip, Regime::kCluster})
    for (int K : {1, 4})
      for (Dtype dtype : {Dtype::kBfloat16, Dtype::kFloat32})
        for (int gap : {0, 2})
          for (bool hard : {false, true}) {
            emulation::backwards = ++turn % 2;
            run_case({regime, K, 1040, regime == Regime::kCluster ? 2 : 1, kKl, 0, dtype, dtype, 1, true, true, true, hard, 11,
                      gap}, random);
          }
  for (Regime regime : {Regime::kSmall, Regime::kChip, Regime::kCluster, Regime::kSweep})
    for (int K : {2, 3, 8})
      for (Dtype dtype : {Dtype::kBfloat16, Dtype::kFloat32}) {
        emulation::backwards = ++turn % 2;
        run_case({regime, K, regime == Regime::kSmall ? 100 : 611, regime == Regime::kCluster ? 2 : 1, kKl, 0, dtype, dtype, 1,
                  true, true, true, false, 5, -1, true}, random);
      }
  std::printf("%d cases, one in %d of the grid, %d failures\n", turn, every, failures);
  return failures != 0;
}
