// What the loss ops of the CPU do with a call: threads, memory, what goes across rows.
#pragma once

#include <cstring>
#include <tuple>

#include "isa.h"
#include "pool.h"
#include "tensors.h"

namespace nanonet {

constexpr int64_t kGrain = 1 << 16;         // logits that a thread should have at least
constexpr int64_t kStreamBytes = 24 << 20;  // a gradient from here on is written past the caches

inline Tensor empty(Sizes sizes, Dtype dtype) {
  static const int32_t cpu = aoti_torch_device_type_cpu();
  return new_tensor(sizes, dtype, cpu, 0);
}

inline Workspace& row_memory() {
  static thread_local Workspace workspace;
  return workspace;
}

using RangeKernel = void (*)(const Problem&, int64_t, int64_t, void*);

inline void run(RangeKernel kernel, const Problem& p) {
  const int64_t row = (p.K + 1) * p.C, grain = row >= kGrain ? 1 : kGrain / row + 1;
  const int64_t bytes = kernels_in_use().scratch_bytes(p);
  const auto body = [&](int64_t begin, int64_t end) { kernel(p, begin, end, row_memory().get(bytes)); };
  if (p.N <= grain)
    body(0, p.N);
  else
    torch::stable::parallel_for(0, p.N, grain, body);
}

// Terms (3,K,...) and statistics (K+1,N,4).
inline std::tuple<Tensor, Tensor> terms_of(Call&& call) {
  Problem& p = call.problem;
  Tensor terms = empty(call.around({3, p.K}, {}), call.real), stats = empty({p.K + 1, p.N, kStats}, call.real);
  p.terms = terms.mutable_data_ptr();
  p.stats = stats.mutable_data_ptr();
  if (!p.teacher) {
    const int64_t row = p.N * kStats * size_of(call.real);
    std::memset(static_cast<char*>(p.stats) + p.K * row, 0, size_t(row));
  }
  run(kernels_in_use().terms, p);
  return {terms, stats};
}

inline Tensor new_gradient(const Call& call) {
  const int64_t bytes = call.KN() * call.problem.C * size_of(call.dtype);
  const auto sizes = call.gradient_sizes();
  if (bytes < Pool::kSmallest || Pool::instance().limit() == 0) {
    Tensor dstudent = empty(sizes, call.dtype);
    ask_for_huge_pages(dstudent.mutable_data_ptr(), bytes);
    return dstudent;
  }
  static const torch::stable::Device cpu(torch::headeronly::DeviceType::CPU);
  std::array<int64_t, kMostDims + 2> strides;
  int64_t elements = 1;
  for (size_t i = sizes.count; i-- > 0; elements *= sizes.sizes[i]) strides[i] = elements;
  const Pool::Block block = Pool::instance().take(bytes);
  const auto give = [block](void*) { Pool::instance().give(block); };
  return torch::stable::from_blob(block.data, sizes, {strides.data(), sizes.count}, cpu,
                                  call.student[0].scalar_type(), give);
}

inline void set_gradient(Call& call, const Tensor& dstudent) {
  call.problem.dstudent = static_cast<char*>(dstudent.mutable_data_ptr());
  call.problem.stream = call.KN() * call.problem.C * size_of(call.dtype) >= kStreamBytes;
}

inline Tensor gradient_of(Call&& call, const Tensor& dterms, const Tensor& stats_) {
  Problem& p = call.problem;
  const bool fits = dterms.dim() == 2 + call.shape.dims && dterms.size(0) == 3 && dterms.size(1) == p.K;
  require(fits && call.shape.is(dterms, 2, 0), "dterms: expected (3,K,...)");
  require(has_shape(stats_, {p.K + 1, p.N, kStats}) && dtype_of(stats_) == call.real,
          "stats: expected what distill_terms returned");
  require(same_device(dterms, call.student[0]) && same_device(stats_, call.student[0]),
          "dterms, stats: expected on student's device");
  const Tensor stats = stats_.is_contiguous() ? stats_ : torch::stable::contiguous(stats_);
  p.stats = const_cast<void*>(stats.const_data_ptr());
  p.upstream = call.values(0);
  call.wide() ? copy_values(dterms, static_cast<double*>(call.values(0)))
              : copy_values(dterms, static_cast<float*>(call.values(0)));
  const Tensor dstudent = new_gradient(call);
  set_gradient(call, dstudent);
  run(kernels_in_use().backward, p);
  return dstudent;
}

struct Weighing {
  const Tensor& weights;
  const Optional &row_weight, &denominators;

  void check(const Call& call) const {
    const int64_t K = call.problem.K;
    const Tensor& on = call.student[0];
    require(has_shape(weights, {3}) && same_device(weights, on), "weights: expected (3,) on student's device");
    if (row_weight) {
      const bool each = row_weight->dim() == call.shape.dims + 1 && row_weight->size(0) == K;
      require(call.shape.is(*row_weight, 0, 0) || (each && call.shape.is(*row_weight, 1, 0)),
              "row_weight: expected student's leading shape, or (K,...)");
      require(same_device(*row_weight, on), "row_weight: expected on student's device");
    }
    if (denominators) {
      require(has_shape(*denominators, {2}) || has_shape(*denominators, {2, K}), "denominators: expected (2,) or (2,K)");
      require(same_device(*denominators, on), "denominators: expected on student's device");
    }
  }

  // (K,N)
  template <class F>
  void copy_row_weight(const Call& call, F* to) const {
    copy_values(*row_weight, to);
    if (row_weight->dim() > call.shape.dims) return;
    for (int64_t k = 1; k < call.problem.K; ++k) std::memcpy(to + k * call.problem.N, to, call.problem.N * sizeof(F));
  }
};

// Everything that goes across rows is summed one row after the other in double: the same bits for any number of threads.
// The gradient goes into dstudent, unless that is null.
template <class F>
std::tuple<Tensor, Tensor> loss_of(Call& call, const Weighing& by, const Tensor* dstudent) {
  Problem& p = call.problem;
  const int64_t K = p.K, N = p.N;
  F* upstream = static_cast<F*>(call.values(0));
  F* terms = static_cast<F*>(call.values(1));
  F* soft = static_cast<F*>(call.values(2));
  if (by.row_weight) {
    by.copy_row_weight(call, soft);
    p.row_weight = soft;
  }
  double w[3], labelled = 0;
  copy_values(by.weights, w);
  for (int64_t n = 0; p.label && n < N; ++n) labelled += p.label[n] != kUnlabelled;

  Tensor loss = empty({}, call.real), means = empty({3, K}, call.real);
  F* mean = static_cast<F*>(means.mutable_data_ptr());
  // the reciprocals of d_0 and d_1 of every student stand in `mean` until the means do
  const auto share = [&](int64_t term, int64_t k) {
    double d = labelled;
    if (const Optional& given = by.denominators) {
      const int64_t at = (term > 0) * given->stride(0) + (given->dim() == 2 ? k * given->stride(1) : 0);
      d = number_at(given->const_data_ptr(), given->scalar_type(), at);
    } else if (term > 0) {
      d = p.row_weight ? 0 : double(N);
      for (int64_t n = 0; p.row_weight && n < N; ++n) d += soft[k * N + n];
    }
    return d == 0 ? 0 : 1 / d;
  };
  for (int64_t term = 0; term < 3; ++term)
    for (int64_t k = 0; k < K; ++k) mean[term * K + k] = F(share(term, k));

  if (dstudent != nullptr) {
    set_gradient(call, *dstudent);
    p.upstream = upstream;
    for (int64_t term = 0; term < 3; ++term)
      for (int64_t k = 0; k < K; ++k) {
        const F u = F(w[term]) * mean[term * K + k];
        F* row = upstream + (term * K + k) * N;
        for (int64_t n = 0; n < N; ++n) row[n] = term > 0 && p.row_weight ? u * soft[k * N + n] : u;
      }
  }
  p.terms = terms;
  run(kernels_in_use().loss, p);

  double total = 0;
  for (int64_t term = 0; term < 3; ++term)
    for (int64_t k = 0; k < K; ++k) {
      const F* row = terms + (term * K + k) * N;
      const bool weighted = term > 0 && p.row_weight;
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

inline std::tuple<Tensor, Tensor> loss_into(Call& call, const Weighing& by, const Tensor* dstudent) {
  by.check(call);
  return call.wide() ? loss_of<double>(call, by, dstudent) : loss_of<float>(call, by, dstudent);
}

inline std::tuple<Tensor, Tensor, Tensor> loss_and_gradient(Call&& call, const Weighing& by, bool need_grad) {
  const Tensor dstudent = need_grad ? new_gradient(call) : empty({0}, call.dtype);
  const auto [loss, means] = loss_into(call, by, need_grad ? &dstudent : nullptr);
  return {loss, means, dstudent};
}

}  // namespace nanonet
