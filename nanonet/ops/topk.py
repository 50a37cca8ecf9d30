"""A teacher that is known by its k likeliest classes."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from nanonet.reference_topk import Tail

TAILS: dict[bool | str, int] = {
    True: int(Tail.BUCKET),
    False: int(Tail.LEFT_OUT),
    "renormalise": int(Tail.RENORMALISED),
}


class TopK(NamedTuple):
    """What a server or a file keeps of a teacher: the k likeliest classes of each row, in any order.

        distill_loss(student, TopK(ids, logprobs), label)

    ids: (...,k) int64 or int32, each class once; -1 where a row has fewer. k is from 1 to C.
    logprobs: (...,k) log p of these classes, p = softmax(t/tau) at the temperature of the call: float32, bfloat16,
        float16 or float64; at most 0, and of mass 1 + 1e-3 at most (float16 1 + 1e-2, bfloat16 1 + 5e-2).
    tail: what becomes of the other classes, of mass 1 - sum p for the teacher and 1 - sum q for the student:

        True           they are one more class; the teacher's mass counts as 1e-7 where it is less
        "renormalise"  p and q are divided by their sums over the k classes: the others get no gradient of this term
        False          they are left out of the sum that D is, and neither p nor q sums to 1 over the k classes

    Every divergence but mse. A row without any class has a teacher term of 0.
    Ids that are no class or come twice, log-probabilities above 0 and a larger mass raise ValueError on a CPU, and
    give NaN on a GPU, where looking would wait for it.
    """

    ids: Tensor
    logprobs: Tensor
    tail: bool | str = True
