"""The loss from hidden states, chunk of rows by chunk: logits, their loss and gradient, and what that is to the inputs.

No more than one chunk's logits exist at a time. Products of bfloat16 are accumulated in float32 and the logits stay
float32; where hidden and weight are bfloat16 their gradient is rounded to it for the two products of the backward.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from nanonet.reference import Divergence

Transform = Callable[[Tensor], Tensor]
BUDGET = 96 << 20  # bytes that the chunks of logits and of their gradient may take together
BLOCK = 4 << 20  # bytes of a weight that is converted at a time


class Heads(NamedTuple):
    """What makes the logits.

    hidden: one (K,N,D) or K of (N,D); weight: one (V,D), one (K,V,D) or K of (V,D); bias: none, or like weight.
    """

    hidden: list[Tensor]
    weight: list[Tensor]
    bias: list[Tensor]

    @property
    def K(self) -> int:
        return self.hidden[0].shape[0] if self.hidden[0].dim() == 3 else len(self.hidden)

    @property
    def N(self) -> int:
        return self.hidden[0].shape[-2]

    @property
    def V(self) -> int:
        return self.weight[0].shape[-2]

    @property
    def shared(self) -> bool:
        """Whether all students have one weight and one bias: their rows go through one product."""
        return len(self.weight) == 1 and self.weight[0].dim() == 2 and (not self.bias or self.bias[0].dim() == 1)


def of_student(tensors: list[Tensor], k: int, dims: int) -> Tensor:
    """Student k's part of tensors that are stacked, one each or shared; dims: of one student's."""
    if len(tensors) > 1:
        return tensors[k]
    return tensors[0][k] if tensors[0].dim() > dims else tensors[0]


def widest(*tensors: Tensor) -> torch.dtype:
    """What logits are in."""
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32


def chunk_rows(heads: Heads, logits_of_teacher: bool, transformed: bool) -> int:
    """Rows of a chunk that keep the logits and their gradient within the budget."""
    copies = 2 * heads.K + logits_of_teacher + 2 * heads.K * transformed
    row = heads.V * copies * widest(heads.hidden[0], heads.weight[0]).itemsize
    return max(1, min(heads.N, BUDGET // row))


def _block_rows(D: int) -> int:
    """Rows of D numbers that are converted at a time."""
    return max(1, BLOCK // max(4 * D, 1))


def project_into(logits: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """logits (R,V) = x (R,D) weight^T + bias, in the dtype of logits; the reference of the op `project_into_`."""
    floats = logits.is_floating_point() and x.is_floating_point() and weight.is_floating_point()
    fits = logits.dim() == x.dim() == weight.dim() == 2 and x.shape[1] == weight.shape[1]
    if (
        not floats
        or not fits
        or logits.shape != (len(x), len(weight))
        or (bias is not None and bias.shape != logits.shape[1:])
    ):
        raise ValueError("logits: expected (R,V) of x (R,D), weight (V,D) and bias (V,), all floating")
    x, V, D = x.to(logits.dtype), *weight.shape
    step = max(V, 1) if weight.dtype == logits.dtype else _block_rows(D)
    for v in range(0, V, step):
        block = logits[:, v : v + step]
        torch.mm(x, weight[v : v + step].to(logits.dtype).t(), out=block)
    if bias is not None:
        logits += bias


def _dhidden_into(dx: Tensor, dlogits: Tensor, weight: Tensor) -> None:
    """dx (R,D) = dlogits (R,V) weight."""
    if dlogits.dtype == weight.dtype == dx.dtype:
        torch.mm(dlogits, weight, out=dx)
        return
    total = dlogits.new_zeros(dx.shape)
    step = _block_rows(weight.shape[1])
    for v in range(0, weight.shape[0], step):
        total.addmm_(dlogits[:, v : v + step], weight[v : v + step].to(dlogits.dtype))
    dx.copy_(total)


def _add_dweight(dweight: Tensor, dlogits: Tensor, x: Tensor) -> None:
    """dweight (V,D) += dlogits^T (V,R) x (R,D), in the dtype of dweight."""
    x = x.to(dlogits.dtype)
    if dweight.dtype == dlogits.dtype:
        dweight.addmm_(dlogits.t(), x)
        return
    step = _block_rows(x.shape[1])
    for v in range(0, dweight.shape[0], step):
        dweight[v : v + step] += dlogits[:, v : v + step].t() @ x


class Gradients:
    """What the chunks add to, one tensor for each of Heads."""

    def __init__(self, heads: Heads, needs: tuple[bool, bool, bool], dtype: torch.dtype) -> None:
        self.heads = heads
        self.hidden = [torch.empty_like(x, memory_format=torch.contiguous_format) for x in heads.hidden if needs[0]]
        # where a sum in float32 would break the budget it is rounded once a chunk
        small = sum(w.numel() for w in heads.weight) * 4 <= BUDGET
        self.weight = [torch.zeros_like(w, dtype=dtype if small else w.dtype) for w in heads.weight if needs[1]]
        self.bias = [torch.zeros_like(b, dtype=dtype) for b in heads.bias if needs[2]]
        both_bfloat16 = heads.hidden[0].dtype == heads.weight[0].dtype == torch.bfloat16
        self.low = torch.bfloat16 if both_bfloat16 else None

    def add(self, dlogits: Tensor, x: list[Tensor], begin: int, spare: Tensor) -> None:
        """dlogits (K,R,V) of rows [begin, begin + R), x K of (R,D); spare: memory of as many elements."""
        for k in range(len(dlogits)):
            if self.bias:
                of_student(self.bias, k, 1).add_(dlogits[k].sum(0))
        if self.low is not None and (self.hidden or self.weight):
            dlogits = spare.view(self.low)[: dlogits.numel()].view(dlogits.shape).copy_(dlogits)
        K, R, V = dlogits.shape
        if self.heads.shared and K > 1:
            rows = torch.cat(x)
            if self.weight:
                _add_dweight(self.weight[0], dlogits.view(K * R, V), rows)
            if self.hidden:
                dx = torch.empty_like(rows)
                _dhidden_into(dx, dlogits.view(K * R, V), self.heads.weight[0])
                for k in range(K):
                    of_student(self.hidden, k, 2)[begin : begin + R] = dx[k * R : (k + 1) * R]
            return
        for k in range(K):
            if self.weight:
                _add_dweight(of_student(self.weight, k, 2), dlogits[k], x[k])
            if self.hidden:
                dx = of_student(self.hidden, k, 2)[begin : begin + R]
                _dhidden_into(dx, dlogits[k], of_student(self.heads.weight, k, 2))

    def finished(self) -> list[Tensor]:
        """In the dtypes of Heads, in its order."""
        weight = [g.to(w.dtype) for g, w in zip(self.weight, self.heads.weight, strict=False)]
        bias = [g.to(b.dtype) for g, b in zip(self.bias, self.heads.bias, strict=False)]
        return [*self.hidden, *weight, *bias]


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
    direct = transform is None and teacher.ids is None and any(needs)
    logits_memory = torch.empty(K * R * V, dtype=dtype, device=device)
    dlogits_memory = torch.empty(K * R * V if direct else 0, dtype=dtype, device=device)
    teacher_memory = torch.empty(0 if teacher.weight is None else R * len(teacher.weight), dtype=dtype, device=device)
    gradients = Gradients(heads, needs, dtype)
    total = torch.zeros((), dtype=dtype, device=device)
    means = torch.zeros(3 + entropy, K, dtype=dtype, device=device)
    for begin in range(0, N, R):
        rows = slice(begin, min(begin + R, N))
        shape = K, rows.stop - begin, V
        x = [of_student(heads.hidden, k, 2)[rows] for k in range(K)]
        logits = _part(logits_memory, *shape)
        _project_students(logits, x, heads)
        given = teacher.of_rows(rows, teacher_memory, teacher_transform)
        leaf = logits
        student = logits
        if transform is not None:
            with torch.enable_grad():
                leaf = logits.detach().requires_grad_()
                student = transform(leaf)
        by, into = loss.of_rows(rows), _part(dlogits_memory, *shape) if direct else None
        try:
            one, mean, dlogits = _loss_of(student.detach(), given, by, any(needs), into)
        except ValueError as error:  # its indices count from the chunk's first row
            raise ValueError(f"rows {begin} to {rows.stop - 1}: {error}") from None
        total += one
        means[:3] += mean
        if entropy:
            means[3] += by.entropies(student.detach())
        if any(needs):
            if transform is not None:
                dlogits = torch.autograd.grad(student, leaf, dlogits)[0].contiguous()
            gradients.add(dlogits, x, begin, logits_memory)
    return total, means, gradients.finished()


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
