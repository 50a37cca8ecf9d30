"""The schema of every op, once: ops/ defines and documents them, a backend implements them for its dispatch key.

No `str` crosses: the divergence is a number of `reference.Divergence`, `beta` its mixing weight (ignored by those that
have none).
"""

from __future__ import annotations

_TERMS = "Tensor? teacher, Tensor? label, float temperature, int divergence, float beta"
_BACKWARD = "Tensor? teacher, Tensor? label, Tensor stats, float temperature, int divergence, float beta"
_LOSS = (
    "Tensor? teacher, Tensor? label, Tensor weights, Tensor? row_weight, Tensor? denominators, float temperature,"
    " int divergence, float beta"
)
_TOPK = "Tensor ids, Tensor logprobs, int tail, Tensor? label"
_OPTIONS = "float temperature, int divergence, float beta"
# student: (K,...,C), or (...,C) like the teacher; _each: K of these apart. The CPU's kernels read any leading shape and
# strides with a dense last dimension; ops/ gives other devices (K,N,C), (N,C), (N,) int64 and a floating row_weight.
SCHEMAS = {
    "distill_terms": f"(Tensor student, {_TERMS}) -> (Tensor terms, Tensor stats)",
    "distill_terms_each": f"(Tensor[] student, {_TERMS}) -> (Tensor terms, Tensor stats)",
    "distill_terms_backward": f"(Tensor dterms, Tensor student, {_BACKWARD}) -> Tensor dstudent",
    "distill_terms_each_backward": f"(Tensor dterms, Tensor[] student, {_BACKWARD}) -> Tensor dstudent",
    "distill_loss": f"(Tensor student, {_LOSS}, bool need_grad) -> (Tensor loss, Tensor means, Tensor dstudent)",
    "distill_loss_each": f"(Tensor[] student, {_LOSS}, bool need_grad) -> (Tensor loss, Tensor means, Tensor dstudent)",
    # for a backward of one's own: the gradient into memory that is there already
    "distill_loss_into_": f"(Tensor(a!) dstudent, Tensor student, {_LOSS}) -> (Tensor loss, Tensor means)",
    "distill_scale_": "(Tensor(a!) dstudent, Tensor dloss) -> ()",
    # K students (...,C) each, ids (...,k) int64 or int32 and -1 where a row has fewer; tail of reference_topk.Tail
    "distill_topk_terms": f"(Tensor[] student, {_TOPK}, {_OPTIONS}) -> Tensor terms",
    "distill_topk_terms_backward": f"(Tensor dterms, Tensor[] student, {_TOPK}, {_OPTIONS}) -> Tensor dstudent",
    "distill_topk_loss": f"(Tensor[] student, {_TOPK}, Tensor weights, Tensor? row_weight, Tensor? denominators,"
    f" {_OPTIONS}, bool need_grad) -> (Tensor loss, Tensor means, Tensor dstudent)",
    # logits (R,V) = x (R,D) weight^T + bias, in the dtype of logits, which the products are accumulated in
    "project_into_": "(Tensor(a!) logits, Tensor x, Tensor weight, Tensor? bias) -> ()",
    # the same without bias, of float32 and twice bfloat16, each with a dense last dimension
    "bfloat16_product_": "(Tensor(a!) logits, Tensor x, Tensor weight) -> ()",
    # hidden one (K,N,D) or K of (N,D), weight and bias one or K, teacher as hidden states, logits or ids; the gradients
    # of the groups hidden, weight, bias that `needs` names, in that order
    "distill_linear_loss": "(Tensor[] hidden, Tensor[] weight, Tensor[] bias, Tensor? teacher_hidden,"
    " Tensor? teacher_weight, Tensor? teacher_bias, Tensor? ids, Tensor? logprobs, int tail, Tensor? label,"
    " Tensor weights, Tensor? row_weight, Tensor denominators, float temperature, int divergence, float beta,"
    " int chunk, bool entropy, bool[] needs) -> (Tensor loss, Tensor means, Tensor[] gradients)",
    "cohort_linear": "(Tensor x, Tensor weight, Tensor? bias, Tensor? lora_a, Tensor? lora_b, Tensor? scale,"
    " Tensor? seed, float dropout) -> (Tensor y, Tensor low)",
    "cohort_linear_backward": "(Tensor dy, Tensor? x, Tensor? low, Tensor weight, Tensor? lora_a, Tensor? lora_b,"
    " Tensor? scale, Tensor? seed, float dropout, bool shared_x, bool[] needs)"
    " -> (Tensor dx, Tensor dweight, Tensor dbias, Tensor dlora_a, Tensor dlora_b)",
}
