"""Packed rows: from the first layer to the last, the tokens of all rows stand one after the other, without padding.

Embeddings and head read padded rows; the layers read one row of T tokens. Only attention has to know where a row ends:
it unpacks queries, keys and values, runs torch's `sdpa`, and packs its output. The rest of a layer is token by token.

Where the head reads the first token of a row alone, so does the last layer, but for its keys and values: this spares
more than a third of the work of two layers.
R rows, padded to L tokens; T tokens that are not padding; H heads of d features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only
from torch.utils.hooks import RemovableHandle
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from nanonet.models.dummy_inputs import dummy_inputs, same_logits

NAME = "nanonet_packed"  # of the attention, as transformers knows it
KEY_VALUE = (("key", "value"), ("k_proj", "v_proj"), ("k_lin", "v_lin"))  # layers that make them, as models call them


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
    """index: (T,) int64, which of the R*L tokens are not padding. first: (R,) int64, where each row begins among the T.

    key_value: keys and values (1,T,H*d) of all tokens, while a layer runs on the first tokens alone
    """

    index: Tensor
    first: Tensor
    rows: int
    tokens: int
    key_value: dict[int, Tensor] = field(default_factory=dict)

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
    """query, key, value: (1,H,T,d); mask: of the padded rows -> (1,T,H,d)

    In a layer that runs on the first tokens R stands for T.
    """
    packing = _running.get()
    if not packing.key_value:
        query, key, value = (packing.unpack(t.transpose(1, 2)).transpose(1, 2) for t in (query, key, value))
        return packing.pack(_sdpa(module, query, key, value, mask, **options)), None
    d = query.shape[-1]
    key, value = (packing.unpack(packing.key_value[i].unflatten(-1, (-1, d))).transpose(1, 2) for i in range(2))
    mask = mask if mask is None else mask[..., :1, :]
    return _sdpa(module, query.permute(2, 1, 0, 3), key, value, mask, **options).transpose(0, 1), None


def _sdpa(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **options: Any) -> Tensor:
    """transformers' `sdpa`, (R,H,L,d) -> (R,L,H,d); in training in float32 where a CPU has bfloat16: the backward of
    torch's flash attention takes 5 to 7 times as long in bfloat16 there."""
    dtype = query.dtype
    if not (query.requires_grad and dtype == torch.bfloat16 and query.device.type == "cpu"):
        return sdpa_attention_forward(module, query, key, value, mask, **options)[0]
    query, key, value = (t.float() for t in (query, key, value))
    mask = mask if mask is None or mask.dtype == torch.bool else mask.float()
    with torch.autocast("cpu", enabled=False):
        return sdpa_attention_forward(module, query, key, value, mask, **options)[0].to(dtype)


AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, sdpa_mask)


@contextmanager
def packed(
    model: PreTrainedModel, layers: str, lengths: list[int], tokens: int, key_value: Sequence[str] = ()
) -> Iterator[None]:
    """Within, `model` runs rows of these `lengths`, padded to `tokens`, packed through its `layers`.

    They stay as they are if packed rows would have the shape of one padded row.
    key_value: names of the modules that make the keys and the values of the last layer, if the rest of it runs on the
        first token of each row alone; its output is then (R,1,D)
    """
    rows = len(lengths)
    if sum(lengths) == tokens:
        yield
        return
    device, config = model.device, model.config
    ends = torch.tensor(lengths)
    index, first = (torch.arange(tokens) < ends[:, None]).flatten().nonzero()[:, 0], ends.cumsum(0) - ends
    index, first = (t.to(device, non_blocking=True) for t in (index, first))
    packing = Packing(index, first, rows, tokens)

    def enter(layer: nn.Module, given: tuple, named: dict) -> tuple[tuple, dict]:
        # the hidden states of the first layer, and the positions that every layer is given
        def pack(t: Tensor) -> Tensor:
            return packing.pack(t) if t.dim() == 3 and t.shape[0] in (1, rows) and t.shape[1] == tokens else t

        return tree_map_only(Tensor, pack, (given, named))

    def leave(layer: nn.Module, given: tuple, output: Any) -> Any:
        def unpack(t: Tensor) -> Tensor:
            return t.transpose(0, 1) if key_value else packing.unpack(t)

        return tree_map_only(Tensor, unpack, output)

    stack = list(model.get_submodule(layers).children())
    hooks = [layer.register_forward_pre_hook(enter, with_kwargs=True) for layer in stack]
    hooks.append(stack[-1].register_forward_hook(leave))
    if key_value:
        hooks += _first_tokens(stack[-1], [model.get_submodule(name) for name in key_value], packing)
    attention, config._attn_implementation = config._attn_implementation, NAME
    running = _running.set(packing)
    try:
        yield
    finally:
        _running.reset(running)
        config._attn_implementation = attention
        for hook in hooks:
            hook.remove()


def _first_tokens(layer: nn.Module, key_value: list[nn.Module], packing: Packing) -> list[RemovableHandle]:
    """Hooks that give `layer` the first token of each row, (1,R,D), and its `key_value` all tokens, (1,T,D)."""
    whole: list[Tensor] = []

    def narrow(layer: nn.Module, given: tuple) -> tuple:
        whole[:] = [given[0]]
        return given[0][:, packing.first], *given[1:]

    def widen(module: nn.Module, given: tuple) -> tuple:
        return tuple(whole)

    def keep(module: nn.Module, given: tuple, output: Tensor, i: int) -> Tensor:
        packing.key_value[i] = output
        return output[:, packing.first]  # of the shape that the layer expects; attention reads what was kept

    def clear(layer: nn.Module, given: tuple, output: Any) -> None:
        packing.key_value.clear()

    hooks = [layer.register_forward_pre_hook(narrow), layer.register_forward_hook(clear)]
    for i, module in enumerate(key_value):
        hooks += [module.register_forward_pre_hook(widen), module.register_forward_hook(partial(keep, i=i))]
    return hooks


def find_key_value(model: PreTrainedModel, layers: str) -> list[str]:
    """Names of the modules that make the keys and the values of the last layer; [] if they are not two."""
    last = f"{layers}.{len(list(model.get_submodule(layers).children())) - 1}."
    names = [name for name, _ in model.named_modules() if name.startswith(last)]
    found = [[n for n in names if n.endswith(f".{end}")] for pair in KEY_VALUE for end in pair]
    pairs = [[*key, *value] for key, value in zip(found[::2], found[1::2], strict=True) if len(key) == len(value) == 1]
    return pairs[0] if len(pairs) == 1 else []


@torch.no_grad()
def can_pack(
    model: PreTrainedModel,
    layers: str,
    forward: Callable[[Tensor, Tensor], Tensor],
    students: int = 1,
    key_value: Sequence[str] = (),
) -> bool:
    """Whether `forward(ids, mask)`, which runs `model` on the rows of all students, is the same for packed rows.

    key_value: as in `packed`
    """
    if not (model._supports_attention_backend and model._supports_sdpa):
        return False  # its attention cannot be replaced by name
    ids, mask = dummy_inputs(model.config, model.device)
    wanted = forward(ids, mask)
    try:
        with packed(model, layers, mask.sum(-1).tolist() * students, ids.shape[1], key_value):
            return same_logits(forward(ids, mask), wanted)
    except (RuntimeError, IndexError):  # a layer that needs to know the rows, such as one with positions of its own
        return False
