"""The loss against a teacher that is known by its k likeliest classes: launchers. The teacher's term is topk_rows.py's;
its gradient is added to that of ce and peers, which distill.py makes as without a teacher.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nanonet import reference, reference_topk
from nanonet.kernels import distill
from nanonet.kernels.divergences import check_divergence, mix_of
from nanonet.kernels.launch import next_power_of_2
from nanonet.kernels.topk_rows import topk_bwd_kernel, topk_fwd_kernel

MOST_CLASSES = 1024  # known of a row: they stay in registers
LANES, WIDTH, WARPS = 256, 4, 8  # not tuned on a GPU yet


class Known:
    """What the kernels take of a TopK teacher, and the students as one tensor."""

    def __init__(self, student: list[Tensor], ids: Tensor, logprobs: Tensor, tail: int) -> None:
        C, k = student[0].shape[-1], ids.shape[-1]
        self.leading, self.K, self.tail, self.k = student[0].shape[:-1], len(student), tail, k
        self.student = distill.dense(torch.stack([one.reshape(-1, C) for one in student]))
        self.N = self.student.shape[1]
        ids, logprobs = ids.reshape(self.N, k), logprobs.reshape(self.N, k)
        self.bad = torch.stack(reference_topk._faults(ids, logprobs, C, tail)).any(0)
        ids = torch.where((ids >= 0) & (ids < C), ids, C)
        ids, order = ids.sort(-1)
        self.logprobs = logprobs.float().gather(-1, order)
        self.ids = torch.nn.functional.pad(ids.int(), (0, 1), value=C)

    def forward(self, temperature: float, divergence: int, beta: float) -> tuple[Tensor, Tensor, Tensor]:
        """The teacher's term (K,N), stats (K,N,4) and own (K,N,k)."""
        check_divergence(divergence)
        (K, N, C), device = self.student.shape, self.student.device
        terms, stats, own = (
            torch.empty(K, N, *rest, dtype=torch.float32, device=device) for rest in ((), (4,), (self.k,))
        )
        if N:
            topk_fwd_kernel[(K * N,)](
                self.student, self.ids, self.logprobs, self.bad, terms, stats, own, N, C, self.k,
                self.student.stride(0), self.student.stride(1), temperature, mix_of(beta),
                TAIL=self.tail, DIVERGENCE=divergence, BLOCK_K=next_power_of_2(self.k),
                LANES=LANES, WIDTH=WIDTH, num_warps=WARPS,
            )  # fmt: skip
        return terms, stats, own

    def backward(self, upstream: Tensor, dstudent: Tensor, stats: Tensor, own: Tensor, temperature: float, add: bool):
        K, N, C = self.student.shape
        if N:
            topk_bwd_kernel[(K * N,)](
                upstream.float().contiguous(), self.student, self.ids, stats, own, dstudent, N, C, self.k,
                self.student.stride(0), self.student.stride(1), temperature,
                ADD=add, BLOCK_K=next_power_of_2(self.k), BLOCK=LANES * WIDTH, num_warps=WARPS,
            )  # fmt: skip


def _others(known: Known, label: Tensor | None, temperature: float) -> tuple[Tensor, Tensor] | None:
    """The terms of ce and peers and their stats, where there are any."""
    if label is None and known.K == 1:
        return None
    return distill.distill_terms_fwd(known.student, None, label, temperature, reference.KL, 0.0)


def _gradient(known: Known, upstream: Tensor, others, teacher, label: Tensor | None, temperature: float) -> Tensor:
    """dstudent (K,N,C) of upstream (3,K,N)."""
    if others is None:
        dstudent = torch.empty_like(known.student, memory_format=torch.contiguous_format)
    else:
        given = upstream.float(), known.student, None, label, others[1], temperature, reference.KL, 0.0
        dstudent = distill.distill_terms_bwd(*given)
    _, stats, own = teacher
    known.backward(upstream[1], dstudent, stats, own, temperature, others is not None)
    return dstudent


def _terms(known: Known, others, teacher: Tensor) -> Tensor:
    ce, peers = (torch.zeros_like(teacher),) * 2 if others is None else (others[0][0], others[0][2])
    return torch.stack([ce, teacher, peers])


def distill_topk_terms_fwd(student: list[Tensor], ids, logprobs, tail, label, temperature, divergence, beta) -> Tensor:
    """terms (3,K,...)."""
    known, label = Known(student, ids, logprobs, tail), None if label is None else label.reshape(-1).long()
    teacher = known.forward(temperature, divergence, beta)[0]
    return _terms(known, _others(known, label, temperature), teacher).reshape(3, known.K, *known.leading)


def distill_topk_terms_bwd(dterms: Tensor, student: list[Tensor], ids, logprobs, tail, label, *options) -> Tensor:
    """dstudent (K,...,C) for upstream gradients dterms (3,K,...)."""
    known, label = Known(student, ids, logprobs, tail), None if label is None else label.reshape(-1).long()
    others, teacher = _others(known, label, options[0]), known.forward(*options)
    upstream = dterms.reshape(3, known.K, known.N)
    return _gradient(known, upstream, others, teacher, label, options[0]).reshape(known.K, *student[0].shape)


def distill_topk_loss_fwd(
    student: list[Tensor],
    ids: Tensor,
    logprobs: Tensor,
    tail: int,
    label: Tensor | None,
    weights: Tensor,
    row_weight: Tensor | None,
    denominators: Tensor | None,
    temperature: float,
    divergence: int,
    beta: float,
    need_grad: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """loss (), means (3,K), and dstudent (K,...,C) or (0,)."""
    known, label = Known(student, ids, logprobs, tail), None if label is None else label.reshape(-1).long()
    others, teacher = _others(known, label, temperature), known.forward(temperature, divergence, beta)
    if row_weight is not None:
        row_weight = row_weight.reshape(known.N if row_weight.shape == known.leading else (known.K, known.N))
    terms = _terms(known, others, teacher[0])
    loss, means, upstream = reference.weigh(terms, label, weights, row_weight, denominators)
    if not need_grad:
        return loss, means, known.student.new_empty(0)
    dstudent = _gradient(known, upstream, others, teacher, label, temperature)
    return loss, means, dstudent.reshape(known.K, *student[0].shape)
