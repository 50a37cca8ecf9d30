// The product of bfloat16 that stays float32, for PyTorch's dispatcher: logits (R,V) = x (R,D) weight (V,D)^T.
#include "amx.h"
#include "memory.h"
#include "stable.h"

namespace nanonet {
namespace {

// Memory that a thread keeps: 0 for x, packed by the caller, 1 for the part of each.
Workspace& kept(int which) {
  static thread_local Workspace of_thread[2];
  return of_thread[which];
}

void bfloat16_product_(const Tensor& logits, const Tensor& x, const Tensor& weight) {
  require(logits.dim() == 2 && x.dim() == 2 && weight.dim() == 2, "logits, x, weight: expected matrices");
  require(dtype_of(logits) == Dtype::kFloat32 && dtype_of(x) == Dtype::kBfloat16 && dtype_of(weight) == Dtype::kBfloat16,
          "logits, x, weight: expected float32, bfloat16, bfloat16");
  require(logits.size(0) == x.size(0) && logits.size(1) == weight.size(0) && x.size(1) == weight.size(1),
          "logits, x, weight: expected (R,V), (R,D), (V,D)");
  require(same_device(x, logits) && same_device(weight, logits), "x, weight: expected on the device of logits");
  require(logits.stride(1) == 1 && x.stride(1) == 1 && weight.stride(1) == 1,
          "logits, x, weight: expected a dense last dimension");
  require(amx_ready(), "bfloat16_product_: this CPU has no tile unit");
  if (logits.numel() == 0) return;
  const Bf16Product p = {x.size(0),
                         weight.size(0),
                         x.size(1),
                         static_cast<const uint16_t*>(x.const_data_ptr()),
                         static_cast<const uint16_t*>(weight.const_data_ptr()),
                         static_cast<float*>(logits.mutable_data_ptr()),
                         x.stride(0),
                         weight.stride(0),
                         logits.stride(0)};
  void* packed = kept(0).get(amx_packed_bytes(p));
  amx_pack(p, packed);
  const int64_t blocks = (p.V + kAmxColumns - 1) / kAmxColumns;
  torch::stable::parallel_for(0, blocks, 16, [&](int64_t begin, int64_t end) {
    const int64_t last = end * kAmxColumns < p.V ? end * kAmxColumns : p.V;
    amx_product(p, packed, begin * kAmxColumns, last, kept(1).get(amx_scratch_bytes(p)));
  });
}

}  // namespace
}  // namespace nanonet

STABLE_TORCH_LIBRARY_IMPL(nanonet, CPU, library) {
  if (nanonet::amx_ready()) library.impl("bfloat16_product_", TORCH_BOX(&nanonet::bfloat16_product_));
}
