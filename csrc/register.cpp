// The loss ops for PyTorch's dispatcher: checks, allocation, threads, registration. The only C++ file that knows torch,
// and only its stable ABI. The schemas, and the reference behind every other key, are nanonet/ops/distill.py's.
#include <cstring>
#include <tuple>

#include "isa.h"
#include "memory.h"
#include "stable.h"

namespace nanonet {
namespace {

constexpr int64_t kGrain = 1 << 16;         // logits that a thread should have at least
constexpr int64_t kStreamBytes = 24 << 20;  // a gradient from here on is written past the caches

Tensor empty(std::initializer_list<int64_t> sizes, Dtype dtype) {
  static const int32_t cpu = aoti_torch_device_type_cpu();
  return new_tensor(sizes, dtype, cpu, 0);
}

double value_at(const void* data, Dtype dtype, int64_t offset) {
  switch (dtype) {
    case Dtype::kFloat32: return static_cast<const float*>(data)[offset];
    case Dtype::kFloat64: return static_cast<const double*>(data)[offset];
    case Dtype::kBfloat16: return static_cast<const torch::headeronly::BFloat16*>(data)[offset];
    default: return static_cast<const torch::headeronly::Half*>(data)[offset];
  }
}

// (rows, N) values of any dtype and strides, from an offset on, as a contiguous array of F.
template <class F>
void copy_values(const Tensor& from, int64_t rows, int64_t row_stride, int64_t N, int64_t stride, F* to,
                 int64_t offset = 0) {
  const Dtype dtype = dtype_of(from);
  const void* data = from.const_data_ptr();
  for (int64_t k = 0; k < rows; ++k)
    for (int64_t n = 0; n < N; ++n) *to++ = F(value_at(data, dtype, offset + k * row_stride + n * stride));
}

// Threads keep these between calls.
Workspace& call_memory() {
  static thread_local Workspace workspace;
  return workspace;
}
Workspace& row_memory() {
  static thread_local Workspace workspace;
  return workspace;
}

using RangeKernel = void (*)(const Problem&, int64_t, int64_t, void*);

void run(RangeKernel kernel, const Problem& p) {
  const int64_t row = (p.K + 1) * p.C, grain = row >= kGrain ? 1 : kGrain / row + 1;
  const int64_t bytes = kernels_in_use().scratch_bytes(p);
  const auto body = [&](int64_t begin, int64_t end) { kernel(p, begin, end, row_memory().get(bytes)); };
  if (p.N <= grain)
    body(0, p.N);
  else
    torch::stable::parallel_for(0, p.N, grain, body);
}

// The tensors of a call, and the problem that points into them.
struct Call {
  Tensor student;
  Optional teacher, label;
  bool wide;  // a float64 student: everything is double
  Dtype real;
  Problem problem{};
  Rows teacher_rows;

  Call(const Tensor& student_, const Optional& teacher_, const Optional& label_, double temperature,
       int64_t divergence, double beta)
      : student(student_) {
    check_logits(student, teacher_, label_, temperature, divergence);
    student = with_contiguous_rows(student);
    const auto sizes = student.sizes(), strides = student.strides();
    const Dtype dtype = dtype_of(student);
    wide = dtype == Dtype::kFloat64;
    real = wide ? Dtype::kFloat64 : Dtype::kFloat32;
    Problem& p = problem;
    p.K = sizes[0], p.N = sizes[1], p.C = sizes[2];
    p.temperature = temperature;
    p.divergence = divergence;
    p.beta = beta;
    students = reinterpret_cast<Rows*>(call_memory().get(memory_bytes()));
    const char* data = static_cast<const char*>(student.const_data_ptr());
    for (int64_t k = 0; k < p.K; ++k)
      students[k] = {data + k * strides[0] * size_of(dtype), strides[1] * size_of(dtype), dtype};
    p.student = students;
    if (teacher_) {
      teacher = with_contiguous_rows(*teacher_);
      const Dtype from = dtype_of(*teacher);
      teacher_rows = {static_cast<const char*>(teacher->const_data_ptr()), teacher->stride(0) * size_of(from), from};
      p.teacher = &teacher_rows;
    }
    if (label_) {
      label = label_->stride(0) == 1 || p.N <= 1 ? *label_ : torch::stable::contiguous(*label_);
      p.label = static_cast<const int64_t*>(label->const_data_ptr());
      check_labels();
    }
  }

  // Room for an array of float, or of double where wide: 0 and 1 hold (3,K,N), 2 holds (K,N).
  void* values(int which) const { return reinterpret_cast<char*>(students + problem.K) + which * 3 * KN() * 8; }

  int64_t KN() const { return problem.K * problem.N; }

 private:
  Rows* students;

  static Tensor with_contiguous_rows(const Tensor& logits) {
    return logits.stride(logits.dim() - 1) == 1 ? logits : torch::stable::contiguous(logits);
  }

  int64_t memory_bytes() const { return problem.K * int64_t(sizeof(Rows)) + 7 * KN() * 8; }

  void check_labels() const {
    for (int64_t n = 0; n < problem.N; ++n) {
      const int64_t y = problem.label[n];
      if (y != kUnlabelled && (y < 0 || y >= problem.C))
        throw std::runtime_error("label[" + std::to_string(n) + "] is " + std::to_string(y) +
                                 ": expected -100 (unlabelled) or 0 <= label < " + std::to_string(problem.C));
    }
  }
};

std::tuple<Tensor, Tensor> distill_terms(const Tensor& student, const Optional& teacher, const Optional& label,
                                         double temperature, int64_t divergence,
                                         double beta) {
  Call call(student, teacher, label, temperature, divergence, beta);
  Problem& p = call.problem;
  Tensor terms = empty({3, p.K, p.N}, call.real), stats = empty({p.K + 1, p.N, kStats}, call.real);
  p.terms = terms.mutable_data_ptr();
  p.stats = stats.mutable_data_ptr();
  if (!p.teacher) {
    const int64_t row = p.N * kStats * size_of(call.real);
    std::memset(static_cast<char*>(p.stats) + p.K * row, 0, size_t(row));
  }
  run(kernels_in_use().terms, p);
  return {terms, stats};
}

Tensor new_gradient(const Problem& p, Dtype dtype) {
  Tensor dstudent = empty({p.K, p.N, p.C}, dtype);
  ask_for_huge_pages(dstudent.mutable_data_ptr(), p.K * p.N * p.C * size_of(dtype));
  return dstudent;
}

void set_gradient(Problem& p, const Tensor& dstudent, Dtype dtype) {
  p.dstudent = static_cast<char*>(dstudent.mutable_data_ptr());
  p.stream = p.K * p.N * p.C * size_of(dtype) >= kStreamBytes;
}

Tensor distill_terms_backward(const Tensor& dterms, const Tensor& student, const Optional& teacher,
                              const Optional& label, const Tensor& stats_, double temperature, int64_t divergence,
                              double beta) {
  Call call(student, teacher, label, temperature, divergence, beta);
  Problem& p = call.problem;
  check_backward(dterms, student, stats_, call.real);
  const Tensor stats = stats_.is_contiguous() ? stats_ : torch::stable::contiguous(stats_);
  p.stats = const_cast<void*>(stats.const_data_ptr());
  p.upstream = call.values(0);
  const auto strides = dterms.strides();
  for (int64_t term = 0; term < 3; ++term) {
    const auto copy = [&](auto* to) {
      copy_values(dterms, p.K, strides[1], p.N, strides[2], to + term * call.KN(), term * strides[0]);
    };
    call.wide ? copy(static_cast<double*>(call.values(0))) : copy(static_cast<float*>(call.values(0)));
  }
  const Tensor dstudent = new_gradient(p, p.student->dtype);
  set_gradient(p, dstudent, p.student->dtype);
  run(kernels_in_use().backward, p);
  return dstudent;
}

// Everything that goes across rows is summed one row after the other in double: the same bits for any number of threads.
// The gradient goes into dstudent, (K,N,C) or empty.
template <class F>
std::tuple<Tensor, Tensor> loss_of(Call& call, const Tensor& weights, const Optional& row_weight,
                                   const Optional& denominators, const Tensor& dstudent) {
  Problem& p = call.problem;
  const int64_t K = p.K, N = p.N;
  F* upstream = static_cast<F*>(call.values(0));
  F* terms = static_cast<F*>(call.values(1));
  F* soft = static_cast<F*>(call.values(2));
  if (row_weight) {
    const int64_t dim = row_weight->dim();
    copy_values(*row_weight, K, dim == 2 ? row_weight->stride(0) : 0, N, row_weight->stride(dim - 1), soft);
    p.row_weight = soft;
  }
  double w[3], labelled = 0;
  copy_values(weights, 1, 0, 3, weights.stride(0), w);
  for (int64_t n = 0; p.label && n < N; ++n) labelled += p.label[n] != kUnlabelled;

  Tensor loss = empty({}, call.real), means = empty({3, K}, call.real);
  F* mean = static_cast<F*>(means.mutable_data_ptr());
  // the reciprocals of d_0 and d_1 of every student stand in `mean` until the means do
  const auto share = [&](int64_t term, int64_t k) {
    double d = labelled;
    if (denominators) {
      const int64_t at = (term > 0) * denominators->stride(0) + (denominators->dim() == 2 ? k * denominators->stride(1) : 0);
      d = value_at(denominators->const_data_ptr(), dtype_of(*denominators), at);
    } else if (term > 0) {
      d = row_weight ? 0 : double(N);
      for (int64_t n = 0; row_weight && n < N; ++n) d += soft[k * N + n];
    }
    return d == 0 ? 0 : 1 / d;
  };
  for (int64_t term = 0; term < 3; ++term)
    for (int64_t k = 0; k < K; ++k) mean[term * K + k] = F(share(term, k));

  if (dstudent.dim() == 3) {
    set_gradient(p, dstudent, p.student->dtype);
    p.upstream = upstream;
    for (int64_t term = 0; term < 3; ++term)
      for (int64_t k = 0; k < K; ++k) {
        const F u = F(w[term]) * mean[term * K + k];
        F* row = upstream + (term * K + k) * N;
        for (int64_t n = 0; n < N; ++n) row[n] = term > 0 && row_weight ? u * soft[k * N + n] : u;
      }
  }
  p.terms = terms;
  run(kernels_in_use().loss, p);

  double total = 0;
  for (int64_t term = 0; term < 3; ++term)
    for (int64_t k = 0; k < K; ++k) {
      const F* row = terms + (term * K + k) * N;
      const bool weighted = term > 0 && row_weight;
      double sum = 0;
      for (int64_t n = 0; n < N; ++n)
        if (!weighted) sum += row[n];
        else if (soft[k * N + n] != 0) sum += double(soft[k * N + n]) * row[n];
      F& of_rows = mean[term * K + k];
      const double value = of_rows == 0 ? 0 : sum * share(term, k);
      of_rows = F(value);
      if (w[term] != 0) total += w[term] * value;
    }
  *static_cast<F*>(loss.mutable_data_ptr()) = F(total);
  return {loss, means};
}

std::tuple<Tensor, Tensor> loss_into(Call& call, const Tensor& weights, const Optional& row_weight,
                                     const Optional& denominators, const Tensor& dstudent) {
  check_weights(call.student, weights, row_weight, denominators);
  return call.wide ? loss_of<double>(call, weights, row_weight, denominators, dstudent)
                   : loss_of<float>(call, weights, row_weight, denominators, dstudent);
}

std::tuple<Tensor, Tensor, Tensor> distill_loss(const Tensor& student, const Optional& teacher, const Optional& label,
                                                const Tensor& weights, const Optional& row_weight,
                                                const Optional& denominators, double temperature, int64_t divergence,
                                                double beta, bool need_grad) {
  Call call(student, teacher, label, temperature, divergence, beta);
  const Dtype dtype = call.problem.student->dtype;
  const Tensor dstudent = need_grad ? new_gradient(call.problem, dtype) : empty({0}, dtype);
  const auto [loss, means] = loss_into(call, weights, row_weight, denominators, dstudent);
  return {loss, means, dstudent};
}

std::tuple<Tensor, Tensor> distill_loss_into_(const Tensor& dstudent, const Tensor& student, const Optional& teacher,
                                              const Optional& label, const Tensor& weights, const Optional& row_weight,
                                              const Optional& denominators, double temperature, int64_t divergence,
                                               double beta) {
  Call call(student, teacher, label, temperature, divergence, beta);
  check_dstudent(dstudent, student);
  return loss_into(call, weights, row_weight, denominators, dstudent);
}

void distill_scale_(const Tensor& dstudent, const Tensor& dloss) {
  check_scale(dstudent, dloss);
  const double factor = value_at(dloss.const_data_ptr(), dtype_of(dloss), 0);
  if (factor == 1) return;
  const Dtype dtype = dtype_of(dstudent);
  void* data = dstudent.mutable_data_ptr();
  const int64_t elements = dstudent.numel();
  const auto body = [&](int64_t begin, int64_t end) { kernels_in_use().scale(data, dtype, factor, begin, end); };
  if (elements <= kGrain)
    body(0, elements);
  else
    torch::stable::parallel_for(0, elements, kGrain, body);
}

}  // namespace
}  // namespace nanonet

STABLE_TORCH_LIBRARY_IMPL(nanonet, CPU, library) {
  library.impl("distill_terms", TORCH_BOX(&nanonet::distill_terms));
  library.impl("distill_terms_backward", TORCH_BOX(&nanonet::distill_terms_backward));
  library.impl("distill_loss", TORCH_BOX(&nanonet::distill_loss));
  library.impl("distill_loss_into_", TORCH_BOX(&nanonet::distill_loss_into_));
  library.impl("distill_scale_", TORCH_BOX(&nanonet::distill_scale_));
}
