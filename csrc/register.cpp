// The loss ops for PyTorch's dispatcher: their arguments and their registration. This and register_topk.cpp are the only
// C++ files that know torch, and only its stable ABI. The schemas, and the reference behind every other key, are
// nanonet/ops/autograd.py's.
#include "calls.h"

namespace nanonet {
namespace {

// The ops, as nanonet/schemas.py has them.
using Logits = std::vector<Tensor>;

std::tuple<Tensor, Tensor> distill_terms(const Tensor& student, const Optional& teacher, const Optional& label,
                                         double temperature, int64_t divergence, double beta) {
  return terms_of({student, teacher, label, {temperature, divergence, beta}});
}

std::tuple<Tensor, Tensor> distill_terms_each(const Logits& student, const Optional& teacher, const Optional& label,
                                              double temperature, int64_t divergence, double beta) {
  return terms_of({student, teacher, label, {temperature, divergence, beta}});
}

Tensor distill_terms_backward(const Tensor& dterms, const Tensor& student, const Optional& teacher,
                              const Optional& label, const Tensor& stats, double temperature, int64_t divergence,
                              double beta) {
  return gradient_of({student, teacher, label, {temperature, divergence, beta}}, dterms, stats);
}

Tensor distill_terms_each_backward(const Tensor& dterms, const Logits& student, const Optional& teacher,
                                   const Optional& label, const Tensor& stats, double temperature, int64_t divergence,
                                   double beta) {
  return gradient_of({student, teacher, label, {temperature, divergence, beta}}, dterms, stats);
}

std::tuple<Tensor, Tensor, Tensor> distill_loss(const Tensor& student, const Optional& teacher, const Optional& label,
                                                const Tensor& weights, const Optional& row_weight,
                                                const Optional& denominators, double temperature, int64_t divergence,
                                                double beta, bool need_grad) {
  return loss_and_gradient({student, teacher, label, {temperature, divergence, beta}},
                           {weights, row_weight, denominators}, need_grad);
}

std::tuple<Tensor, Tensor, Tensor> distill_loss_each(const Logits& student, const Optional& teacher,
                                                     const Optional& label, const Tensor& weights,
                                                     const Optional& row_weight, const Optional& denominators,
                                                     double temperature, int64_t divergence, double beta,
                                                     bool need_grad) {
  return loss_and_gradient({student, teacher, label, {temperature, divergence, beta}},
                           {weights, row_weight, denominators}, need_grad);
}

std::tuple<Tensor, Tensor> distill_loss_into_(const Tensor& dstudent, const Tensor& student, const Optional& teacher,
                                              const Optional& label, const Tensor& weights, const Optional& row_weight,
                                              const Optional& denominators, double temperature, int64_t divergence,
                                              double beta) {
  Call call(student, teacher, label, {temperature, divergence, beta});
  const bool fits = dstudent.dim() == student.dim() && call.shape.is(dstudent, call.shape.stacked, 1) &&
                    dstudent.size(0) == student.size(0) && dstudent.size(dstudent.dim() - 1) == call.shape.C;
  require(fits && dstudent.is_contiguous() && dtype_of(dstudent) == call.dtype && same_device(dstudent, student),
          "dstudent: expected a contiguous tensor of student's shape and dtype");
  return loss_into(call, {weights, row_weight, denominators}, &dstudent);
}

void distill_scale_(const Tensor& dstudent, const Tensor& dloss) {
  check_scale(dstudent, dloss);
  const double factor = number_at(dloss.const_data_ptr(), dloss.scalar_type(), 0);
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
  library.impl("distill_terms_each", TORCH_BOX(&nanonet::distill_terms_each));
  library.impl("distill_terms_backward", TORCH_BOX(&nanonet::distill_terms_backward));
  library.impl("distill_terms_each_backward", TORCH_BOX(&nanonet::distill_terms_each_backward));
  library.impl("distill_loss", TORCH_BOX(&nanonet::distill_loss));
  library.impl("distill_loss_each", TORCH_BOX(&nanonet::distill_loss_each));
  library.impl("distill_loss_into_", TORCH_BOX(&nanonet::distill_loss_into_));
  library.impl("distill_scale_", TORCH_BOX(&nanonet::distill_scale_));
}
