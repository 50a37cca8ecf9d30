"""The heads of K students, their products, and the gradients that chunks of rows add up to.

Products of bfloat16 are accumulated in float32 and the logits stay float32; where hidden and weight are bfloat16 the
gradient of the logits is rounded to it for the two products of the backward.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

BUDGET = 32 << 20  # bytes for the logits of a chunk, with their gradient; and as many for gradients that wait
# fewer rows than these waste the products: so many are taken where that takes no more than MOST bytes
FEW_ROWS, FEW_WAITING, MOST = 64, 128, 72 << 20
LARGE_SUM = 96 << 20  # bytes of a sum of a weight's gradient from which it is not kept in float32
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
    return max(1, min(heads.N, max(BUDGET // row, min(FEW_ROWS, MOST // row))))


def waiting_rows(heads: Heads, chunk: int, low: torch.dtype) -> int:
    """Rows, in whole chunks or all, whose gradient waits for the products of the backward."""
    row, N = heads.K * heads.V * low.itemsize, max(1, heads.N)
    # all of them where that takes no more than the sum in float32 that it spares
    if low == torch.bfloat16 and N * row <= min(_sum_bytes(heads), LARGE_SUM):
        return N
    return min(N, chunk * max(1, max(BUDGET // row, min(FEW_WAITING, MOST // row)) // chunk))


def _sum_bytes(heads: Heads) -> int:
    """Of the weights' gradient in float32."""
    return 4 * sum(w.numel() for w in heads.weight)


def _block_rows(D: int) -> int:
    """Rows of D numbers that are converted at a time."""
    return max(1, BLOCK // max(4 * D, 1))


def _check_product(logits: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """Nothing may be broadcast, nor read as integers."""
    floats = all(t.is_floating_point() for t in (logits, x, weight))
    fits = logits.dim() == x.dim() == weight.dim() == 2 and x.shape[1] == weight.shape[1]
    if not (
        floats and fits and logits.shape == (len(x), len(weight)) and (bias is None or bias.shape == logits.shape[1:])
    ):
        raise ValueError("logits: expected (R,V) of x (R,D), weight (V,D) and bias (V,), all floating")


def project_into(logits: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """logits (R,V) = x (R,D) weight^T + bias, in the dtype of logits; the reference of the op `project_into_`."""
    _check_product(logits, x, weight, bias)
    dense = logits.stride(1) == x.stride(1) == weight.stride(1) == 1
    if dense and logits.dtype == torch.float32 and x.dtype == weight.dtype == torch.bfloat16:
        torch.ops.nanonet.bfloat16_product_(logits, x, weight)
    else:
        product_into(logits, x, weight)
    if bias is not None:
        logits += bias


def product_into(logits: Tensor, x: Tensor, weight: Tensor) -> None:
    """logits (R,V) = x (R,D) weight^T, in the dtype of logits; the reference of the op `bfloat16_product_`."""
    _check_product(logits, x, weight, None)
    x, V, D = x.to(logits.dtype), *weight.shape
    step = max(V, 1) if weight.dtype == logits.dtype else _block_rows(D)
    for v in range(0, V, step):
        block = logits[:, v : v + step]
        torch.mm(x, weight[v : v + step].to(logits.dtype).t(), out=block)


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
    """What the chunks add to, one tensor for each of Heads. The gradients of the logits wait until there are enough of
    them: each product reads and writes all of a weight's gradient."""

    def __init__(self, heads: Heads, needs: tuple[bool, bool, bool], dtype: torch.dtype, chunk: int) -> None:
        self.heads, self.wanted = heads, any(needs)
        self.hidden = [torch.empty_like(x, memory_format=torch.contiguous_format) for x in heads.hidden if needs[0]]
        self.bias = [torch.zeros_like(b, dtype=dtype) for b in heads.bias if needs[2]]
        both_bfloat16 = heads.hidden[0].dtype == heads.weight[0].dtype == torch.bfloat16
        low = torch.bfloat16 if both_bfloat16 else dtype
        rows = waiting_rows(heads, chunk, low) if needs[0] or needs[1] else 0
        # rounded once a product where a sum in float32 is too large, or there is one product
        rounded = _sum_bytes(heads) > LARGE_SUM or (low == torch.bfloat16 and rows >= heads.N)
        self.weight = [torch.zeros_like(w, dtype=w.dtype if rounded else dtype) for w in heads.weight if needs[1]]
        self.waiting = torch.empty(heads.K, rows, heads.V, dtype=low, device=heads.hidden[0].device)
        self.begin = self.end = 0  # the rows that wait
        self.direct = heads.K == 1 and low == dtype and rows > 0

    def place(self, R: int) -> Tensor:
        """Where the gradient of the next R rows will wait: (K,R,V)."""
        at = self.end - self.begin
        return self.waiting[:, at : at + R]

    def add(self, dlogits: Tensor, placed: bool) -> None:
        """dlogits (K,R,V) of the next rows; placed: these are in their place already."""
        K, R, _ = dlogits.shape
        for k in range(K if self.bias else 0):
            of_student(self.bias, k, 1).add_(dlogits[k].sum(0))
        if not self.waiting.numel():
            return
        if not placed:
            self.place(R).copy_(dlogits)
        self.end += R
        if self.end - self.begin == self.waiting.shape[1]:
            self.multiply()

    def multiply(self) -> None:
        """The products of the rows that wait."""
        K, rows = self.heads.K, slice(self.begin, self.end)
        R = self.end - self.begin
        self.begin = self.end
        if self.heads.shared and K > 1 and R == self.waiting.shape[1]:
            x, dlogits = torch.cat([of_student(self.heads.hidden, k, 2)[rows] for k in range(K)]), self.waiting
            if self.weight:
                _add_dweight(self.weight[0], dlogits.flatten(0, 1), x)
            if self.hidden:
                dx = torch.empty_like(x)
                _dhidden_into(dx, dlogits.flatten(0, 1), self.heads.weight[0])
                for k in range(K):
                    of_student(self.hidden, k, 2)[rows] = dx[k * R : (k + 1) * R]
            return
        for k in range(K):
            dlogits = self.waiting[k, :R]
            if self.weight:
                _add_dweight(of_student(self.weight, k, 2), dlogits, of_student(self.heads.hidden, k, 2)[rows])
            if self.hidden:
                dx = of_student(self.hidden, k, 2)[rows]
                _dhidden_into(dx, dlogits, of_student(self.heads.weight, k, 2))

    def finished(self) -> list[Tensor]:
        """In the dtypes of Heads, in its order."""
        if self.begin < self.end:
            self.multiply()
        self.waiting = self.waiting[:0].clone()  # its memory is free before the gradients are copied
        weight = [g.to(w.dtype) for g, w in zip(self.weight, self.heads.weight, strict=False)]
        bias = [g.to(b.dtype) for g, b in zip(self.bias, self.heads.bias, strict=False)]
        return [*self.hidden, *weight, *bias]
