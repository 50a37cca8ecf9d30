"""Packed rows: from the first layer to the last, the tokens of all rows stand one after the other, without padding.

Embeddings and head read padded rows; the layers read one row of T tokens. Only attention has to know where a row ends:
it unpacks queries, keys and values, runs torch's `sdpa`, and packs its output. The rest of a layer is token by token.
R rows, padded to L tokens; T tokens that are not padding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from nanonet.models.dummy_inputs import dummy_inputs, same_logits

NAME = "nanonet_packed"  # of the attention, as transformers knows it


class _Pack(torch.autograd.Function):
    """x (R*L,D) -> (T,D): x[index]. No entry of `index` (T,) occurs twice, so that the backward need not add."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        ctx.rows = len(x)
        return x.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return _Unpack.apply(dy, *ctx.saved_tensors, ctx.rows), None


class _Unpack(torch.autograd.Function):
    """x (T,D) -> (rows,D): x at the rows `index` (T,), zeros elsewhere."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor, rows: int) -> Tensor:
        ctx.save_for_backward(index)
        return x.new_zeros(rows, x.shape[1]).index_copy_(0, index, x)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        return _Pack.apply(dy, *ctx.saved_tensors), None, None


@dataclass(frozen=True, eq=False)
class Packing:
    """index: (T,) int64, which of the R*L tokens are not padding."""

    index: Tensor
    rows: int
    tokens: int

    def pack(self, x: Tensor) -> Tensor:
        """(R,L,*), or (1,L,*) shared by all rows -> (1,T,*)"""
        padded = x.expand(self.rows, *x.shape[1:])
        return _Pack.apply(padded.reshape(self.rows * self.tokens, -1), self.index).view(1, -1, *x.shape[2:])

    def unpack(self, x: Tensor) -> Tensor:
        """(1,T,*) -> (R,L,*), zeros at the padding"""
        flat = _Unpack.apply(x.reshape(len(self.index), -1), self.index, self.rows * self.tokens)
        return flat.view(self.rows, self.tokens, *x.shape[2:])


_running: ContextVar[Packing] = ContextVar("packing")


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """query, key, value: (1,H,T,D); mask: of the padded rows -> (1,T,H,D)"""
    packing = _running.get()
    query, key, value = (packing.unpack(t.transpose(1, 2)).transpose(1, 2) for t in (query, key, value))
    return packing.pack(sdpa_attention_forward(module, query, key, value, mask, **options)[0]), None


AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, sdpa_mask)


@contextmanager
def packed(model: PreTrainedModel, layers: str, lengths: list[int], tokens: int) -> Iterator[None]:
    """Within, `model` runs rows of these `lengths`, padded to `tokens`, packed through its `layers`.

    The rows stay padded if no token is padding, or if packed rows would have the shape of one padded row.
    """
    rows = len(lengths)
    if sum(lengths) in (rows * tokens, tokens):
        yield
        return
    device, config = model.device, model.config
    seen = torch.arange(tokens) < torch.tensor(lengths)[:, None]
    packing = Packing(seen.flatten().nonzero()[:, 0].to(device, non_blocking=True), rows, tokens)

    def enter(layer: nn.Module, given: tuple, named: dict) -> tuple[tuple, dict]:
        # the hidden states of the first layer, and the positions that every layer is given
        def pack(t: Tensor) -> Tensor:
            return packing.pack(t) if t.dim() == 3 and t.shape[0] in (1, rows) and t.shape[1] == tokens else t

        return tree_map_only(Tensor, pack, (given, named))

    def leave(layer: nn.Module, given: tuple, output: Any) -> Any:
        return tree_map_only(Tensor, packing.unpack, output)

    stack = list(model.get_submodule(layers).children())
    hooks = [layer.register_forward_pre_hook(enter, with_kwargs=True) for layer in stack]
    hooks.append(stack[-1].register_forward_hook(leave))
    attention, config._attn_implementation = config._attn_implementation, NAME
    running = _running.set(packing)
    try:
        yield
    finally:
        _running.reset(running)
        config._attn_implementation = attention
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def can_pack(
    model: PreTrainedModel, layers: str, forward: Callable[[Tensor, Tensor], Tensor], students: int = 1
) -> bool:
    """Whether `forward(ids, mask)`, which runs `model` on the rows of all students, is the same for packed rows."""
    if not (model._supports_attention_backend and model._supports_sdpa):
        return False  # its attention cannot be replaced by name
    ids, mask = dummy_inputs(model.config, model.device)
    wanted = forward(ids, mask)
    try:
        with packed(model, layers, mask.sum(-1).tolist() * students, ids.shape[1]):
            return same_logits(forward(ids, mask), wanted)
    except RuntimeError:  # a layer that needs to know the rows, such as one with rotary positions of its own
        return False
