"""The layers of a cohort: each holds the weights of K students under the parameter names of the layer it replaces.

The batch is K*B rows, student-major, so a layer views (K*B, ..., D) as (K, M, D). The students of one forward
are a `Span`: all K of them, or a chunk, whose slices of the stacked tensors `Cohort` passes to the model.
K students in the span, M rows, D features in, F features out, R LoRA rank.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanonet.ops import cohort_linear


@dataclass
class Span:
    """The students of the running forward, start <= k < stop; one object shared by all layers of a cohort."""

    start: int
    stop: int
    # of the LoRA dropout, drawn once a forward: () int64
    seed: Tensor | None = None

    def students(self) -> int:
        return self.stop - self.start


class CohortLinear(nn.Module):
    """y_k = x_k W_k^T + b_k + scale_k dropout(x_k) A_k^T B_k^T, for nn.Linear.

    weight: (F,D) if the students share it (then it is frozen), or (K,F,D)
    bias: (K,F) or None
    lora_a, lora_b, scale: (K,R,D), (K,F,R), (K,) after `add_lora`, else None
    forward: x (K*B, ..., D) -> (K*B, ..., F)
    """

    lora_a: Tensor | None
    lora_b: Tensor | None
    scale: Tensor | None

    def __init__(self, span: Span, weight: Tensor, bias: Tensor | None):
        super().__init__()
        self.span = span
        self.weight = nn.Parameter(weight)
        self.bias = None if bias is None else nn.Parameter(bias)
        self.register_parameter("lora_a", None)
        self.register_parameter("lora_b", None)
        self.register_buffer("scale", None, persistent=False)
        self.dropout = 0.0
        self.offset = 0

    def add_lora(
        self, rank: int, alpha: float, dropout: float, offset: int, generator: torch.Generator | None = None
    ) -> None:
        """Adapters that start as PEFT's do: A uniform, B zero. `offset` gives this layer dropout masks of its own."""
        K, (F_, D) = self.span.students(), self.weight.shape[-2:]
        bound = math.sqrt(1 / D)  # kaiming_uniform_ with a = sqrt(5)
        a = torch.rand(K, rank, D, dtype=self.weight.dtype, generator=generator) * (2 * bound) - bound
        self.lora_a = nn.Parameter(a.to(self.weight.device))
        self.lora_b = nn.Parameter(self.weight.new_zeros(K, F_, rank))
        self.scale = self.weight.new_full((K,), alpha / rank)
        self.dropout, self.offset = dropout, offset

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(self.span.students(), -1, x.shape[-1])
        dropout = self.dropout if self.training else 0.0
        seed = self.span.seed + self.offset if dropout and self.span.seed is not None else None
        y = cohort_linear(
            rows, self.weight, self.bias, self.lora_a, self.lora_b, self.scale, dropout=dropout, seed=seed
        )
        return y.view(*x.shape[:-1], y.shape[-1])

    def extra_repr(self) -> str:
        rank = None if self.lora_a is None else self.lora_a.shape[1]
        return f"weight={tuple(self.weight.shape)}, bias={self.bias is not None}, lora_rank={rank}"


class CohortLayerNorm(nn.Module):
    """y_k = normalise(x_k) * weight_k + bias_k, for nn.LayerNorm over the last dimension.

    weight: (K,D); bias: (K,D) or None
    forward: x (K*B, ..., D) -> the same shape
    """

    def __init__(self, span: Span, weight: Tensor, bias: Tensor | None, eps: float):
        super().__init__()
        self.span = span
        self.eps = eps
        self.weight = nn.Parameter(weight)
        self.bias = None if bias is None else nn.Parameter(bias)

    def forward(self, x: Tensor) -> Tensor:
        K, D = self.weight.shape
        if K == 1:  # torch's own kernel does all of it in one pass
            bias = None if self.bias is None else self.bias.view(D)
            return F.layer_norm(x, (D,), self.weight.view(D), bias, self.eps)
        y = F.layer_norm(x, (D,), eps=self.eps)
        rows, weight = y.reshape(K, -1, D), self.weight[:, None]
        rows = rows * weight if self.bias is None else torch.addcmul(self.bias[:, None], rows, weight)
        # under a CPU's autocast y is bfloat16 and the weights are not
        return rows.view(x.shape).to(y.dtype)

    def extra_repr(self) -> str:
        return f"weight={tuple(self.weight.shape)}, bias={self.bias is not None}, eps={self.eps}"


class CohortConv2d(nn.Module):
    """K convolutions of stride 1 as one with K groups, for nn.Conv2d.

    weight: (K,F,D,H,W); bias: (K,F) or None
    forward: x (K*B,D,h,w) -> (K*B,F,h,w), both channels last
    """

    def __init__(self, span: Span, weight: Tensor, bias: Tensor | None, padding: tuple[int, int]):
        super().__init__()
        self.span = span
        self.weight = nn.Parameter(weight)
        self.bias = None if bias is None else nn.Parameter(bias)
        self.padding = padding

    def forward(self, x: Tensor) -> Tensor:
        K, F_ = self.weight.shape[:2]
        bias = None if self.bias is None else self.bias.flatten()
        if K == 1:
            return F.conv2d(x, self.weight[0], bias, padding=self.padding)
        D, h, w = x.shape[1:]
        # students beside each other in the channels: (K*B,D,h,w) -> (B,K*D,h,w), and back
        x = x.view(K, -1, D, h, w).permute(1, 3, 4, 0, 2).reshape(-1, h, w, K * D).permute(0, 3, 1, 2)
        y = F.conv2d(x, self.weight.flatten(0, 1), bias, padding=self.padding, groups=K).permute(0, 2, 3, 1)
        h, w = y.shape[1:3]
        return y.reshape(-1, h, w, K, F_).permute(3, 0, 1, 2, 4).reshape(-1, h, w, F_).permute(0, 3, 1, 2)

    def extra_repr(self) -> str:
        return f"weight={tuple(self.weight.shape)}, bias={self.bias is not None}, padding={self.padding}"


class CohortEmbedding(nn.Module):
    """A table for every student, for an nn.Embedding that is trained.

    weight: (K,V,D)
    forward: ids (K*B, ...) -> (K*B, ..., D)
    """

    def __init__(self, span: Span, weight: Tensor):
        super().__init__()
        self.span = span
        self.weight = nn.Parameter(weight)

    def forward(self, ids: Tensor) -> Tensor:
        K, V, D = self.weight.shape
        own = ids.view(K, -1) + V * torch.arange(K, device=ids.device)[:, None]
        return F.embedding(own, self.weight.view(K * V, D)).view(*ids.shape, D)

    def extra_repr(self) -> str:
        return f"weight={tuple(self.weight.shape)}"


class CohortDropout(nn.Module):
    """Dropout with a probability per student, for nn.Dropout; `least` for every student until it is set.

    probability: K floats, none under `least`
    p: always 0. Attention code reads it, instead of calling the module: attention weights are never dropped
    forward: x (K*B, ...) -> the same shape
    """

    p = 0.0

    def __init__(self, span: Span, least: float = 0.0):
        super().__init__()
        self.span, self.least = span, least
        self.probability: tuple[float, ...] = (least,) * span.students()

    def forward(self, x: Tensor) -> Tensor:
        chosen = self.probability[self.span.start : self.span.stop]
        if not self.training or not any(chosen):
            return x
        rows = x.reshape(len(chosen), -1)
        return torch.stack([F.dropout(r, p) if p else r for r, p in zip(rows, chosen, strict=True)]).view(x.shape)

    def extra_repr(self) -> str:
        return f"probability={self.probability}"
