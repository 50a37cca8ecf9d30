// The loss ops against a teacher's k likeliest classes, for PyTorch's dispatcher.
#include <cmath>

#include "calls.h"

namespace nanonet {
namespace {

// The teacher of a call: ids and log-probabilities of any layout, checked, as the row kernels read them.
class TopCall {
 public:
  Call call;

  TopCall(const std::vector<Tensor>& student, const Tensor& ids, const Tensor& logprobs, int64_t tail,
          const Optional& label, const Options& options)
      : call(student, std::nullopt, label, options) {
    Problem& p = call.problem;
    require(options.divergence != kMse, "divergence: mse compares logits, which a TopK teacher has not");
    require(tail >= 0 && tail < kTails, "tail: no such number");
    const int64_t dims = call.shape.dims;
    require(call.shape.is(ids, 0, 1) && call.shape.is(logprobs, 0, 1) && ids.size(dims) == logprobs.size(dims),
            "ids, logprobs: expected (...,k) of student's leading shape");
    require(ids.scalar_type() == ScalarType::Long || ids.scalar_type() == ScalarType::Int,
            "ids: expected int64 or int32");
    require(same_device(ids, student[0]) && same_device(logprobs, student[0]),
            "ids, logprobs: expected on student's device");
    top_.k = ids.size(dims), top_.tail = tail;
    require(top_.k >= 1 && top_.k <= p.C, "ids: expected from 1 to C of them in a row");
    const Dtype given = dtype_of(logprobs);
    const int64_t elements = p.N * top_.k;
    id_.resize(size_t(elements));
    copy_labels(ids, id_.data());
    if (call.wide())
      take(logprobs, wide_, given);
    else
      take(logprobs, narrow_, given);
    p.top = &top_;
  }

 private:
  TopTeacher top_;
  std::vector<int64_t> id_;
  std::vector<float> narrow_;
  std::vector<double> wide_;

  template <class F>
  void take(const Tensor& logprobs, std::vector<F>& to, Dtype given) {
    to.resize(id_.size());
    copy_values(logprobs, to.data());
    top_.ids = id_.data(), top_.log_p = to.data();
    // by how much rounding may lift the mass of a row above 1
    const double most = 1 + (given == Dtype::kBfloat16 ? 5e-2 : given == Dtype::kFloat16 ? 1e-2 : 1e-3);
    const int64_t C = call.problem.C;
    std::vector<bool> seen(size_t(C), false);
    for (int64_t n = 0; n < call.problem.N; ++n) {
      const int64_t* ids = id_.data() + n * top_.k;
      double mass = 0;
      for (int64_t i = 0; i < top_.k; ++i) {
        if (ids[i] == -1) continue;
        const F log_p = to[size_t(n * top_.k + i)];
        const std::string at = "[" + std::to_string(n) + "]: expected ";
        if (ids[i] < 0 || ids[i] >= C)
          throw std::invalid_argument("ids" + at + "-1 (no class) or 0 <= id < " + std::to_string(C) + ", got " +
                                      std::to_string(ids[i]));
        if (seen[size_t(ids[i])])
          throw std::invalid_argument("ids" + at + "each class once, got " + std::to_string(ids[i]) + " twice");
        if (log_p > 0)
          throw std::invalid_argument("logprobs" + at + "log-probabilities, at most 0, got " + std::to_string(log_p) +
                                      "; of logits take log_softmax");
        seen[size_t(ids[i])] = true;
        mass += std::exp(float(log_p));  // the double one asks for glibc 2.29, and .symver means nothing to LTO
      }
      if (mass > most)
        throw std::invalid_argument("logprobs[" + std::to_string(n) +
                                    "]: expected log-probabilities of one distribution, their mass is " +
                                    std::to_string(mass));
      for (int64_t i = 0; i < top_.k; ++i)
        if (ids[i] >= 0) seen[size_t(ids[i])] = false;
    }
  }
};

// The ops, as nanonet/schemas.py has them.
using Logits = std::vector<Tensor>;

Tensor distill_topk_terms(const Logits& student, const Tensor& ids, const Tensor& logprobs, int64_t tail,
                          const Optional& label, double temperature, int64_t divergence, double beta) {
  TopCall top(student, ids, logprobs, tail, label, {temperature, divergence, beta});
  Problem& p = top.call.problem;
  Tensor terms = empty(top.call.around({3, p.K}, {}), top.call.real);
  p.terms = terms.mutable_data_ptr();
  run(kernels_in_use().terms, p);
  return terms;
}

Tensor distill_topk_terms_backward(const Tensor& dterms, const Logits& student, const Tensor& ids,
                                   const Tensor& logprobs, int64_t tail, const Optional& label, double temperature,
                                   int64_t divergence, double beta) {
  TopCall top(student, ids, logprobs, tail, label, {temperature, divergence, beta});
  Call& call = top.call;
  Problem& p = call.problem;
  const bool fits = dterms.dim() == 2 + call.shape.dims && dterms.size(0) == 3 && dterms.size(1) == p.K;
  require(fits && call.shape.is(dterms, 2, 0) && same_device(dterms, call.student[0]),
          "dterms: expected (3,K,...) on student's device");
  p.upstream = call.values(0), p.terms = call.values(1);
  call.wide() ? copy_values(dterms, static_cast<double*>(call.values(0)))
              : copy_values(dterms, static_cast<float*>(call.values(0)));
  const Tensor dstudent = new_gradient(call);
  set_gradient(call, dstudent);
  run(kernels_in_use().loss, p);
  return dstudent;
}

std::tuple<Tensor, Tensor, Tensor> distill_topk_loss(const Logits& student, const Tensor& ids, const Tensor& logprobs,
                                                     int64_t tail, const Optional& label, const Tensor& weights,
                                                     const Optional& row_weight, const Optional& denominators,
                                                     double temperature, int64_t divergence, double beta,
                                                     bool need_grad) {
  TopCall top(student, ids, logprobs, tail, label, {temperature, divergence, beta});
  return loss_and_gradient(std::move(top.call), {weights, row_weight, denominators}, need_grad);
}

}  // namespace
}  // namespace nanonet

STABLE_TORCH_LIBRARY_IMPL(nanonet, CPU, library) {
  library.impl("distill_topk_terms", TORCH_BOX(&nanonet::distill_topk_terms));
  library.impl("distill_topk_terms_backward", TORCH_BOX(&nanonet::distill_topk_terms_backward));
  library.impl("distill_topk_loss", TORCH_BOX(&nanonet::distill_topk_loss));
}
