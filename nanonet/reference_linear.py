"""The ops of K students' linear layer in plain torch, as reference.py has those of the loss.

K students, M rows, D features in, F features out, R LoRA rank.
"""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor

Bits = TypeVar("Bits", int, Tensor)


def mix32(x: Bits) -> Bits:
    """The 32-bit finalizer of MurmurHash3, of an int or an int64 tensor (only the low 32 bits count)."""
    low = 0xFFFFFFFF
    x = x & low
    x = ((x ^ (x >> 16)) * 0x85EBCA6B) & low
    x = ((x ^ (x >> 13)) * 0xC2B2AE35) & low
    return x ^ (x >> 16)


def dropout_scale(seed: Tensor, K: int, M: int, D: int, dropout: float) -> Tensor:
    """0 or 1/(1-dropout) for element (k,m,d) of x, float32 (K,M,D): a hash of its index and the seed, so that
    every backend draws the same mask and none need store it."""
    index = torch.arange(K * M * D, device=seed.device).view(K, M, D)
    keep = mix32(mix32(index) + mix32(seed) * 0x9E3779B1) >= int(dropout * 2**32)
    return keep.float() / (1 - dropout)


def _dropped(x: Tensor, K: int, seed: Tensor | None, dropout: float) -> Tensor:
    if seed is None or dropout == 0:
        return x
    return x * dropout_scale(seed, K, x.shape[-2], x.shape[-1], dropout).to(x.dtype)


def _product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b; of one student by matrices, since a batch of one takes up to 1.5 times as long in bfloat16 on a CPU."""
    if a.dim() == b.dim() == 3 and len(a) == len(b) == 1:
        return _stacked(a[0] @ b[0])
    return a @ b


def _thin_product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b of R columns; of one student as (b^T a^T)^T, which takes half to three quarters of the time on a CPU."""
    if len(a) == len(b) == 1:
        return _stacked((b[0].mT @ a[0].mT).mT.contiguous())
    return a @ b


def _stacked(y: Tensor) -> Tensor:
    """(M,F) as (1,M,F), not as a view: what an op returns may be changed in place."""
    return torch.ops.aten._unsafe_view(y, (1, *y.shape))


def _add_product(y: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """y + a @ b, written into y."""
    if len(y) == len(a) == len(b) == 1:
        y[0].addmm_(a[0], b[0])
        return y
    return y.baddbmm_(a, b)


def cohort_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    lora_a: Tensor | None = None,
    lora_b: Tensor | None = None,
    scale: Tensor | None = None,
    seed: Tensor | None = None,
    dropout: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """y_k = x_k W_k^T + b_k + low_k B_k^T: (K,M,F); low_k = scale_k dropout(x_k) A_k^T: (K,M,R), (0,) without A."""
    K = max(x.shape[0] if x.dim() == 3 else 1, weight.shape[0] if weight.dim() == 3 else 1)
    if K == 1:  # one student, or one base product for all
        added = bias[0] if bias is not None and len(bias) == 1 else None
        y = _stacked(torch.nn.functional.linear(x.reshape(x.shape[-2:]), weight.reshape(weight.shape[-2:]), added))
        y = y if bias is None or added is not None else y + bias[:, None]
    else:
        rows, columns = x.expand(K, -1, -1), weight.mT.expand(K, -1, -1)
        y = rows @ columns if bias is None else torch.baddbmm(bias[:, None], rows, columns)
    low = x.new_empty(0)
    if lora_a is not None and lora_b is not None:
        rows = _dropped(x, lora_a.shape[0], seed, dropout)
        low = _thin_product(rows, lora_a.mT) if rows.dim() == 3 else rows @ lora_a.mT
        low = low if scale is None else low * scale[:, None, None]
        # added where y lies: a new y costs more than the low-rank product
        y = _add_product(y, low, lora_b.mT) if len(y) == len(low) else torch.baddbmm(y, low, lora_b.mT)
    return y.contiguous(), low.contiguous()


def cohort_linear_backward(
    dy: Tensor,
    x: Tensor | None,
    low: Tensor | None,
    weight: Tensor,
    lora_a: Tensor | None,
    lora_b: Tensor | None,
    scale: Tensor | None,
    seed: Tensor | None,
    dropout: float,
    shared_x: bool,
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, weight, bias, lora_a, lora_b; an empty tensor where `needs` is False. x serves those of weight
    and lora_a only, low (K,M,R) that of lora_b: None where these are not wanted."""
    dx, dweight, dbias, da, db = (dy.new_empty(0) for _ in range(5))
    once = shared_x and weight.dim() == 2  # what all students share is summed before it is multiplied
    if needs[0]:
        dx = dy.sum(0, keepdim=True) @ weight if once else _product(dy, weight)
    if needs[1] and x is not None:
        if weight.dim() == 3:
            dweight = _product(dy.mT, x)
        else:
            dweight = (dy.sum(0) if shared_x else dy.flatten(0, 1)).mT @ x.reshape(-1, x.shape[-1])
    if needs[2]:
        dbias = dy.sum(1)
    if lora_a is not None and lora_b is not None:
        factor = 1.0 if scale is None else scale[:, None, None]
        if needs[0] or needs[3]:
            dlow = _thin_product(dy, lora_b) * factor
        if needs[0]:
            if once or (seed is not None and dropout > 0):
                part = _dropped(dlow @ lora_a, len(dlow), seed, dropout)
                dx = dx + (part.sum(0, keepdim=True) if once else part)
            else:
                _add_product(dx, dlow, lora_a)
        if needs[3] and x is not None:
            da = _product(dlow.mT, _dropped(x, len(dlow), seed, dropout))
        if needs[4] and low is not None:
            db = _thin_product(dy.mT, low)
    return dx.sum(0) if shared_x and needs[0] else dx, dweight, dbias, da, db
