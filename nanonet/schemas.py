"""The schema of every op, once: ops/ defines and documents them, a backend implements them for its dispatch key.

No `str` crosses: the divergence is a number of `reference.Divergence`, `beta` its mixing weight (ignored by those that
have none).
"""

from __future__ import annotations

_LOSS = (
    "Tensor student, Tensor? teacher, Tensor? label, Tensor weights, Tensor? row_weight, Tensor? denominators,"
    " float temperature, int divergence, float beta"
)
SCHEMAS = {
    "distill_terms": "(Tensor student, Tensor? teacher, Tensor? label, float temperature, int divergence, float beta)"
    " -> (Tensor terms, Tensor stats)",
    "distill_terms_backward": "(Tensor dterms, Tensor student, Tensor? teacher, Tensor? label, Tensor stats,"
    " float temperature, int divergence, float beta) -> Tensor dstudent",
    "distill_loss": f"({_LOSS}, bool need_grad) -> (Tensor loss, Tensor means, Tensor dstudent)",
    # for a backward of one's own: the gradient into memory that is there already
    "distill_loss_into_": f"(Tensor(a!) dstudent, {_LOSS}) -> (Tensor loss, Tensor means)",
    "distill_scale_": "(Tensor(a!) dstudent, Tensor dloss) -> ()",
    "cohort_linear": "(Tensor x, Tensor weight, Tensor? bias, Tensor? lora_a, Tensor? lora_b, Tensor? scale,"
    " Tensor? seed, float dropout) -> (Tensor y, Tensor low)",
    "cohort_linear_backward": "(Tensor dy, Tensor? x, Tensor? low, Tensor weight, Tensor? lora_a, Tensor? lora_b,"
    " Tensor? scale, Tensor? seed, float dropout, bool shared_x, bool[] needs)"
    " -> (Tensor dx, Tensor dweight, Tensor dbias, Tensor dlora_a, Tensor dlora_b)",
}
