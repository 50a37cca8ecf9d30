// The error bounds that exp_log.h states, against long double, and the values at the edges.
#include "exp_log.h"

#include <cmath>
#include <limits>

#include "check.h"

using namespace nanonet::NANONET_ISA;

template <class F>
double ulps(F got, long double want) {
  const F next = std::nextafter(std::fabs(F(want)), std::numeric_limits<F>::infinity());
  const long double ulp = (long double)next - std::fabs((long double)F(want));
  return double(std::fabs((long double)got - want) / ulp);
}

template <class F>
F exp_one(F x, double temperature) {
  return exp_scaled<F>(splat(x), exponent_factor<F>(temperature))[0];
}

template <class F>
void test_exp(double bound) {
  double bound_per_unit = 1;
#if !defined(__FMA__) && !defined(__aarch64__)
  bound_per_unit = 2;
#endif
  const F lowest = F(sizeof(F) == 4 ? -86 : -707);
  double worst = 0;
  for (double temperature : {1.0, 2.0, 3.7}) {
    for (int i = 0; i <= 400000; ++i) {
      const F x = lowest * F(temperature) * F(i) / F(400000);
      const long double want = std::exp((long double)x / (long double)temperature);
      const double error = ulps(exp_one(x, temperature), want) - bound_per_unit * double(-x) / temperature;
      worst = error > worst ? error : worst;
    }
  }
  std::printf("exp_scaled<%d bytes>: %.2f ulp beyond the slope\n", int(sizeof(F)), worst);
  CHECK(worst <= bound, "%g ulp", worst);
  const F infinity = std::numeric_limits<F>::infinity();
  CHECK(exp_one<F>(0, 1) == 1, "exp(0) is %g", double(exp_one<F>(0, 1)));
  CHECK(exp_one<F>(-infinity, 1) == 0, "exp(-inf) is %g", double(exp_one<F>(-infinity, 1)));
  CHECK(std::isnan(exp_one<F>(std::numeric_limits<F>::quiet_NaN(), 1)), "exp(nan) is not NaN");
  for (F x = F(-20); x > F(-1e30); x *= F(1.07)) {
    const F y = exp_one(x, 1.0);
    CHECK(y >= 0 && y <= std::exp(x) * F(1.001) + std::numeric_limits<F>::min(), "exp(%g) is %g", double(x), double(y));
  }
}

// exp_near is exp_scaled where it is allowed, and says where it is not.
template <class F>
void test_near() {
  const F c = exponent_factor<F>(1.0), infinity = std::numeric_limits<F>::infinity();
  const auto inside = [&](F x, F* y) {
    Vec<Bits<F>> outside = {};
    *y = exp_near<F>(splat(x), c, outside)[0];
    return all_inside(outside);
  };
  F y;
  for (F power = F(kNearLowest); power < F(kNearLowest + kNear) - F(0.6); power += F(0.37)) {
    const F x = power / c;
    CHECK(inside(x, &y), "2^%g is not near", double(power));
    CHECK(ulps(y, std::exp((long double)x)) <= 3 + 2 * std::fabs(double(x)), "exp(%g) is %g", double(x), double(y));
  }
  for (F x : {F(kNearLowest - 1) / c, F(kNearLowest + kNear) / c, F(-1e4), F(1e30), -infinity, infinity,
              std::numeric_limits<F>::quiet_NaN()})
    CHECK(!inside(x, &y), "%g is near", double(x));
}

template <class V, class F>
void test_log(F lowest, double bound) {
  double worst = 0;
  for (int i = 0; i < 400000; ++i) {
    const F x = std::exp2(lowest + (F(40) - lowest) * F(i) / F(400000));
    const F got = log_of(V{} + x)[0];
    const long double want = std::log((long double)x), half_ulp = sizeof(F) == 4 ? 6e-8L : 1.2e-16L;
    worst = std::fmax(worst, std::fabs(want) < 0.5L ? double(std::fabs(got - want) / half_ulp) : ulps(got, want));
  }
  std::printf("log_of<%d bytes>: %.2f ulp\n", int(sizeof(F)), worst);
  CHECK(worst <= bound, "%g ulp", worst);
  CHECK(log_of(V{} + F(1))[0] == 0, "log(1) is not 0");
  CHECK(std::isnan(log_of(V{} + std::numeric_limits<F>::quiet_NaN())[0]), "log(nan) is not NaN");
}

int main() {
  bool supported = true;
#if defined(__AVX512F__)
  supported = __builtin_cpu_supports("avx512f");
#elif defined(__AVX2__)
  supported = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#endif
  if (!supported) {
    std::printf("this CPU lacks the instruction set: nothing was tested\n");
    return 0;
  }
  test_exp<float>(3);
  test_exp<double>(3);
  test_near<float>();
  test_near<double>();
  test_log<Vec<float>, float>(-126, 2);
  test_log<Vec<double>, double>(-1022, 2);
  test_log<Wide<float>, double>(-1022, 2);
  return failures != 0;
}
