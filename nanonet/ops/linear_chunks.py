"""The loss from hidden states, chunk of rows by chunk: logits, their loss and gradient, and what that is to the inputs.

No more than one chunk's logits exist at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from nanonet.ops.linear_products import Gradients, Heads, of_student, widest
from nanonet.reference import Divergence

Transform = Callable[[Tensor], Tensor]


class Teacher(NamedTuple):
    """hidden (N,D) and weight (V,D), or logits (N,V) and no weight, or ids and logprobs (N,k)."""

    hidden: Tensor | None
    weight: Tensor | None
    bias: Tensor | None
    ids: Tensor | None
    logprobs: Tensor | None
    tail: int

    def of_rows(self, rows: slice, memory: Tensor, transform: Transform | None) -> Teacher:
        """Of these rows, with logits in the place of hidden."""
        if self.ids is not None and self.logprobs is not None:
            return self._replace(ids=self.ids[rows], logprobs=self.logprobs[rows])
        if self.hidden is None:
            return self
        logits = self.hidden[rows]
        if self.weight is not None:
            logits = _part(memory, len(logits), len(self.weight))
            torch.ops.nanonet.project_into_(logits, self.hidden[rows], self.weight, self.bias)
        return self._replace(hidden=logits if transform is None else transform(logits))


class Loss(NamedTuple):
    """What weighs the rows: denominators are given, so that the chunks add up."""

    label: Tensor | None
    weights: Tensor
    row_weight: Tensor | None
    denominators: Tensor
    temperature: float
    divergence: int
    beta: float

    def entropies(self, student: Tensor) -> Tensor:
        """(K,): the cross-entropy of each student (K,R,V) and itself, weighed as the soft terms are."""
        means = []
        for k, one in enumerate(student):
            row_weight = (
                self.row_weight if self.row_weight is None or self.row_weight.dim() == 1 else self.row_weight[k]
            )
            denominators = self.denominators if self.denominators.dim() == 1 else self.denominators[:, k]
            alone = (self.weights, row_weight, denominators, self.temperature, Divergence.CROSS_ENTROPY, 0.0, False)
            means.append(torch.ops.nanonet.distill_loss(one, one, None, *alone)[1][1, 0])
        return torch.stack(means) / self.temperature**2

    def of_rows(self, rows: slice) -> Loss:
        label = None if self.label is None else self.label[rows]
        row_weight = None if self.row_weight is None else self.row_weight[..., rows]
        return self._replace(label=label, row_weight=row_weight)


def _loss_of(student: Tensor, teacher: Teacher, loss: Loss, need_grad: bool, into: Tensor | None):
    """loss, means, dstudent of one chunk; its gradient goes into `into`, where that is given."""
    label, *others = loss
    if teacher.ids is not None:
        known = (teacher.ids, teacher.logprobs, teacher.tail, label)
        return torch.ops.nanonet.distill_topk_loss(list(student), *known, *others, need_grad)
    if into is not None:
        return *torch.ops.nanonet.distill_loss_into_(into, student, teacher.hidden, label, *others), into
    return torch.ops.nanonet.distill_loss(student, teacher.hidden, label, *others, need_grad)


def chunked_loss(
    heads: Heads,
    teacher: Teacher,
    loss: Loss,
    chunk: int,
    needs: tuple[bool, bool, bool],
    entropy: bool = False,
    transform: Transform | None = None,
    teacher_transform: Transform | None = None,
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """loss (), means (3,K), or (4,K) with the entropy, and the gradients of the Heads that `needs` names."""
    K, N, V = heads.K, heads.N, heads.V
    dtype, device = widest(*heads.hidden, *heads.weight), heads.hidden[0].device
    R = max(1, min(chunk, N))
    gradients = Gradients(heads, needs, dtype, R)
    plain = transform is None and teacher.ids is None
    sizes = (
        K * R * V,
        K * R * V * (plain and gradients.wanted and not gradients.direct),
        0 if teacher.weight is None else R * len(teacher.weight),
    )
    memory = [torch.empty(size, dtype=dtype, device=device) for size in sizes]
    total = torch.zeros((), dtype=dtype, device=device)
    means = torch.zeros(3 + entropy, K, dtype=dtype, device=device)
    for begin in range(0, N, R):
        rows = slice(begin, min(begin + R, N))
        parts = teacher.of_rows(rows, memory[2], teacher_transform), loss.of_rows(rows)
        one, mean = _add_chunk(gradients, memory, rows, *parts, entropy, transform)
        total += one
        means += mean
        del parts
    memory.clear()  # before the gradients are copied
    return total, means, gradients.finished()


def _add_chunk(
    gradients: Gradients,
    memory: list[Tensor],
    rows: slice,
    teacher: Teacher,
    loss: Loss,
    entropy: bool,
    transform: Transform | None,
) -> tuple[Tensor, Tensor]:
    """loss and means of these rows; memory: for their logits, and for the gradient of these or none."""
    heads, K = gradients.heads, gradients.heads.K
    shape = K, rows.stop - rows.start, heads.V
    x = [of_student(heads.hidden, k, 2)[rows] for k in range(K)]
    leaf = student = logits = _part(memory[0], *shape)
    _project_students(logits, x, heads)
    if transform is not None:
        with torch.enable_grad():
            leaf = logits.detach().requires_grad_()
            student = transform(leaf)
    into = _part(memory[1], *shape) if len(memory[1]) else None
    placed = gradients.direct and transform is None and teacher.ids is None
    if placed:
        into = gradients.place(shape[1])
    try:
        one, means, dlogits = _loss_of(student.detach(), teacher, loss, gradients.wanted, into)
    except ValueError as error:  # its indices count from the chunk's first row
        raise ValueError(f"rows {rows.start} to {rows.stop - 1}: {error}") from None
    if entropy:
        means = torch.cat([means, loss.entropies(student.detach())[None]])
    if gradients.wanted:
        if transform is not None:
            dlogits = torch.autograd.grad(student, leaf, dlogits)[0]
        gradients.add(dlogits, placed)
    return one, means


def _part(memory: Tensor, *shape: int) -> Tensor:
    return memory[: math.prod(shape)].view(shape)


def _project_students(logits: Tensor, x: list[Tensor], heads: Heads) -> None:
    if heads.shared and len(x) > 1:
        bias = heads.bias[0] if heads.bias else None
        torch.ops.nanonet.project_into_(logits.flatten(0, 1), torch.cat(x), heads.weight[0], bias)
        return
    for k, one in enumerate(x):
        weight, bias = of_student(heads.weight, k, 2), of_student(heads.bias, k, 1) if heads.bias else None
        torch.ops.nanonet.project_into_(logits[k], one, weight, bias)
