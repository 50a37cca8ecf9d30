// Parts of the CUDA kernels, emulated: the plan, the counts, the scaling, the number of sweeps over a row, and the
// accuracy of a small divergence.
#include <random>

#include "check.h"
#include "cuda_launch.h"
#include "oracle.h"

using namespace nanonet;

static void test_scale() {
  for (Dtype dtype : {Dtype::kFloat32, Dtype::kBfloat16, Dtype::kFloat16})
    for (size_t skew : {0, 1})
      for (float factor : {1.0f, -0.5f}) {
        constexpr size_t n = 531;
        Array values(dtype, n);
        for (size_t i = 0; i < n; ++i) values.set(i, double(i) / 8);
        Output data(values.bytes.size(), skew * size_t(size_of(dtype)));
        std::memcpy(data.data(), values.bytes.data(), values.bytes.size());
        const cuda::Values scalar = {reinterpret_cast<const char*>(&factor), Dtype::kFloat32, {0, 0, 0}};
        emulation::launch(2, 32, 1, 0, [&] { cuda::distill_scale_kernel(data.data(), dtype, n, scalar); });
        Array got(dtype, n);
        std::memcpy(got.bytes.data(), data.data(), got.bytes.size());
        for (size_t i = 0; i < n; ++i)
          CHECK(got.get(i) == values.get(i) * factor, "scale dtype %d element %d", int(dtype), int(i));
        CHECK(data.intact(), "scale wrote outside");
      }
}

static void test_count() {
  constexpr int64_t N = 1000;
  std::vector<int64_t> label(N);
  std::vector<float> weight(2 * N);
  double sums[2] = {}, labelled = 0;
  for (int64_t n = 0; n < N; ++n) {
    labelled += (label[size_t(n)] = n % 3 ? kUnlabelled : n) != kUnlabelled;
    for (int64_t k = 0; k < 2; ++k) sums[k] += weight[size_t(k * N + n)] = float(n % (5 + k));
  }
  std::vector<double> partials(3 * 9);
  double totals[4];
  Call p{};
  p.N = N, p.K = 2, p.label = label.data(), p.label_stride = 1, p.partials = partials.data();
  p.row_weight = {reinterpret_cast<char*>(weight.data()), Dtype::kFloat32, {0, N, 1}};
  emulation::launch(3, 64, 1, sizeof(cuda::Reduction<8>), [&] { cuda::distill_count_kernel<8>(p, totals); });
  for (int k = 0; k < 2; ++k) {
    CHECK(totals[k] == labelled, "%g labelled rows, not %g", totals[k], labelled);
    CHECK(totals[2 + k] == sums[k], "sum of the weights %g, not %g", totals[2 + k], sums[k]);
  }
}

const Plan kBlockKernels[] = {{Regime::kChip, 0, 0, 1, 1}, {Regime::kCluster, 0, 0, 2, 2}, {Regime::kSweep, 0, 0, 1, 1}};

// Ordinary rows take two sweeps, not three or four. A class at -inf costs a sweep more; even if every row has one, rows
// in shared memory are read once, except for the first.
static void test_sweeps() {
  constexpr int64_t K = 2, N = 8, C = 8000;
  std::vector<uint16_t> logits((K + 1) * N * C), gradient(K * N * C);
  float weights[] = {1, 1, 1}, loss, means[3 * K];
  double partials[4 * 3 * cuda::kMaxStudents];
  const int64_t label[N] = {5, kUnlabelled, 5, kUnlabelled, 5, kUnlabelled, 5, kUnlabelled};
  Call p{};
  p.N = N, p.K = K, p.C = C, p.temperature = 2, p.label = label, p.label_stride = 1;
  const auto rows = [&](int64_t r) {
    return Rows{reinterpret_cast<char*>(&logits[size_t(r * N * C)]), 2 * C, Dtype::kBfloat16};
  };
  for (int64_t k = 0; k < K; ++k) p.student[k] = rows(k);
  p.teacher = rows(K);
  p.weights = {reinterpret_cast<char*>(weights), Dtype::kFloat32, {1, 0, 0}};
  p.dstudent = reinterpret_cast<char*>(gradient.data()), p.loss = &loss, p.means = means, p.partials = partials;
  for (bool padded : {false, true})
    for (const Plan& plan : kBlockKernels) {
      for (size_t i = 0; i < logits.size(); ++i)
        logits[i] = uint16_t(cuda::bfloat16_of(padded && i % C == 3 ? -INFINITY : float(i % 37) / 4));
      const int64_t exponentials = emulation::exponentials, vectors = emulation::vectors_copied;
      launch(p, plan);
      // two per class and row; nearly twice as many for a labelled row, as ce needs a softmax at another temperature
      const double each = double(emulation::exponentials - exponentials) / double((K + 1) * N * C);
      CHECK(padded || (each > 2 && each < 3.5), "kernel %d: %g exponentials a class", int(plan.regime), each);
      const double read = double(emulation::vectors_copied - vectors) / double((K + 1) * N * C / 8);
      CHECK(plan.regime == Regime::kSweep || (read >= 1 && read < 1.5), "kernel %d: read %g times", int(plan.regime), read);
    }
}

// Students 1e-3 apart have a divergence of 1e-6, of which float32 loses a third without centring.
static void test_near_agreement() {
  constexpr size_t K = 4, C = 1000;
  std::mt19937 random(5);
  std::normal_distribution<float> normal;
  std::vector<float> logits(K * C), base(C);
  for (float& x : base) x = normal(random);
  for (size_t i = 0; i < K * C; ++i) logits[i] = base[i % C] + 1e-3f * normal(random);
  float terms[3 * K], stats[(K + 1) * kStats];
  std::vector<Values> rows(K, Values(C));
  for (size_t i = 0; i < K * C; ++i) rows[i / C][i % C] = logits[i];
  Call p{};
  p.N = 1, p.K = K, p.C = C, p.temperature = 1, p.terms = terms, p.stats = stats;
  for (size_t k = 0; k < K; ++k)
    p.student[k] = {reinterpret_cast<char*>(&logits[k * C]), int64_t(C * 4), Dtype::kFloat32};
  for (const Plan& plan : kBlockKernels) {
    launch(p, plan);
    Real found = 0, truth = 0;
    const Real none[3] = {};
    for (size_t k = 0; k < K; ++k) {
      found += terms[2 * K + k];
      truth += definition(rows, nullptr, kUnlabelled, k, 1, kKl, 0, none).peers;
    }
    CHECK(std::fabs(double(found / truth - 1)) < 0.03, "kernel %d: %Lg, not %Lg", int(plan.regime), found, truth);
  }
}

// Logits all far from 0, around and beyond the bounds of the fast statistics; those beyond take the careful ones.
static void test_far_logits() {
  constexpr size_t C = 400;
  std::mt19937 random(7);
  std::normal_distribution<double> normal;
  for (double offset : {-1048666.0, -1048576.0, -1048500.0, -3e7, 1e6, 4e9, -4e9})
    for (double spread : {0.0, 1.0, 300.0})
      for (float tau : {0.5f, 1.0f, 2.0f, 20.0f}) {
        std::vector<float> logits(C);
        std::vector<Values> rows(1, Values(C));
        for (size_t c = 0; c < C; ++c) rows[0][c] = logits[c] = float(offset + spread * normal(random));
        float terms[3], stats[2 * kStats];
        const int64_t label = 5;
        Call p{};
        p.N = 1, p.K = 1, p.C = C, p.temperature = tau, p.terms = terms, p.stats = stats;
        p.label = &label, p.label_stride = 1;
        p.student[0] = {reinterpret_cast<char*>(logits.data()), int64_t(C * 4), Dtype::kFloat32};
        const Real none[3] = {}, want = definition(rows, nullptr, label, 0, tau, kKl, 0, none).ce;
        for (const Plan& plan : kBlockKernels) {
          launch(p, plan);
          CHECK(close(terms[0], want, 1e-5L * (1 + std::fabs(want)), 1), "kernel %d offset %g spread %g tau %g: %g, not %Lg",
                int(plan.regime), offset, spread, double(tau), double(terms[0]), want);
        }
      }
}

// Which kernel the table names, on an H200 and on a card without clusters.
static void test_plan() {
  const cuda::Device h200 = {132, 9, 227 << 10, 228 << 10}, a100 = {108, 8, 163 << 10, 164 << 10};
  const auto plan = [](const cuda::Device& device, int K, int C, bool backward = false) {
    Call p{};
    p.N = 8192, p.K = K, p.C = C, p.from_stats = backward;
    for (Rows& rows : p.student) rows.dtype = Dtype::kBfloat16;
    p.teacher = {"", 0, Dtype::kBfloat16};
    return cuda::plan_of(p, device);
  };
  CHECK(plan(h200, 2, 4).width == 4 && plan(h200, 4, 100).width == 32, "lanes of a small row");
  CHECK(plan(h200, 4, 1000).regime == Regime::kChip, "1000 classes");
  CHECK(plan(h200, 4, 32000).regime == Regime::kCluster && plan(h200, 4, 32000).cluster == 4, "32000 classes");
  CHECK(plan(h200, 4, 128256).cluster == 16 && plan(h200, 4, 262144).cluster == 16, "large vocabularies");
  CHECK(plan(h200, 4, 128256, true).regime == Regime::kSweep, "backward");
  CHECK(plan(h200, 8, 1 << 20).regime == Regime::kSweep, "no cluster holds a million classes");
  const auto forced = [&](Regime regime, int cluster, int C) {
    Call p{};
    p.N = 8192, p.K = 4, p.C = C;
    for (Rows& rows : p.student) rows.dtype = Dtype::kBfloat16;
    return cuda::plan_of(p, h200, cuda::PlanOverride{regime, cluster});
  };
  CHECK(forced(Regime::kSweep, 1, 100).regime == Regime::kSweep, "sweep asked for");
  CHECK(forced(Regime::kCluster, 8, 32000).cluster == 8, "a cluster asked for");
  bool refused = false;
  try {
    forced(Regime::kChip, 1, 128256);
  } catch (const std::runtime_error&) {
    refused = true;
  }
  CHECK(refused, "a kernel without room asked for");
  CHECK(plan(a100, 4, 15000).regime == Regime::kChip && plan(a100, 4, 32000).regime == Regime::kSweep, "sm_80");
}

int main() {
  test_plan();
  test_scale();
  test_count();
  test_sweeps();
  test_near_agreement();
  test_far_logits();
  std::printf("%d failures\n", failures);
  return failures != 0;
}
