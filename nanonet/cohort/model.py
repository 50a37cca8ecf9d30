"""A cohort: K students in one model, and how it runs.

Stacking (stack.py, cnn.py) keeps the parameter names of the plain model; a stacked tensor gains a leading K. A weight
that is frozen and that every student has alike is stored once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from nanonet.cohort.layers import CohortConv2d, CohortDropout, CohortEmbedding, CohortLayerNorm, CohortLinear, Span
from nanonet.cohort.packing import packed
from nanonet.config.train import Tuning
from nanonet.data.batches import length_buckets
from nanonet.models.parts import Parts

# between the dropout masks of two chunks of students and of two groups of rows
CHUNK_STRIDE, GROUP_STRIDE = 104729, 1299709


@dataclass(frozen=True)
class Lora:
    """Adapters on every linear layer of the encoder's layers; their scale is alpha / rank."""

    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0


class Cohort(nn.Module):
    """K students in one Hugging Face model. Made by `stack` or `build_cohort`.

    forward: input_ids, attention_mask (B,L), the same for every student, or (K,B,L) -> logits (K,B,C)
        chunk: students that run at a time, by default K; 1 on a CPU, where all at once take 4 to 12% longer
            (2-layer MiniLM, K=2 and 4). The result is the same but for rounding and the masks of dropout
        perturbation: {student: (B,L,D)} added to the output of the embeddings: words, positions and norm together
        features: name of a module; return (K,B,C+D): behind its logits what this module reads of each row
        head_input: {name of a module: (K,B,D)} what it reads instead. Nothing below it matters: one token a row runs
    group_rows: on a CPU, rows of like length run together, at most this many at a time, each group padded to its own
        longest; 0 runs all as they are padded. The result is the same but for rounding and the masks of dropout
    packing: types of the devices on which layers see no padding at all (packing.py); the result is the same likewise
    checkpointing: keep no activations of a student's forward, make them again in the backward: the memory of one
        student instead of K, for a second forward. The students run one at a time then
    """

    def __init__(self, model: PreTrainedModel, span: Span, parts: Parts, tuning: Tuning, lora: Lora):
        super().__init__()
        self.model = model
        self.span = span
        self.students = span.students()
        self.parts = parts
        self.tuning = tuning
        self.lora = lora
        self.stacked = frozenset(_stacked_names(model))
        self.last = [name for name, module in model.named_modules() if isinstance(module, CohortLinear)][-1]
        self.checkpointing = False
        self.group_rows = 16
        self.packing: tuple[str, ...] = ()
        self._perturbation: list[Tensor | None] = []
        self.embeddings().register_forward_hook(self._perturb)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        chunk: int | None = None,
        perturbation: dict[int, Tensor] | None = None,
        features: str = "",
        head_input: dict[str, Tensor] | None = None,
    ) -> Tensor:
        K = self.students
        if head_input:
            input_ids = input_ids[..., :1]
            attention_mask = torch.ones_like(input_ids)
        ids, mask = (t.expand(K, *t.shape[-2:]) for t in (input_ids, attention_mask))
        if chunk is None:
            chunk = 1 if ids.device.type == "cpu" or self.checkpointing else K
        seed = None
        if self.training and self.lora.dropout and self.tuning == "lora":
            seed = torch.randint(2**31, (), device=ids.device)
        run = partial(self.run, features=features)
        if self.checkpointing and torch.is_grad_enabled():
            run = partial(checkpoint, run, use_reentrant=False)
        groups: list[list[int]] = []
        lengths: list[int] = []
        whole = perturbation or head_input or torch.compiler.is_compiling() or ids.device.type != "cpu"
        if not whole and 0 < self.group_rows < ids.shape[1]:
            lengths = _lengths(mask)
            groups = length_buckets(lengths, self.group_rows)
        if chunk >= K and len(groups) < 2:
            return run(0, K, ids, mask, perturbation, None, seed, head_input=head_input)
        # split once, not a slice per chunk: the backward is one concatenation, not a sum of K zero-padded gradients
        tensors = {name: tensor.split(chunk) for name, tensor in self._stacked_tensors()}
        logits = []
        for i, start in enumerate(range(0, K, chunk)):
            stop = min(start + chunk, K)
            own = {name: parts[i] for name, parts in tensors.items()}
            if len(groups) < 2:
                read = {name: tensor[start:stop] for name, tensor in (head_input or {}).items()}
                own_ids, own_mask = ids[start:stop], mask[start:stop]
                logits.append(run(start, stop, own_ids, own_mask, perturbation, own, seed, head_input=read))
                continue
            of_group = []
            for g, rows in enumerate(groups):
                some = slice(start, stop), rows, slice(max(lengths[row] for row in rows))
                mixed = None if seed is None else seed + g * GROUP_STRIDE
                of_group.append(run(start, stop, ids[some], mask[some], None, own, mixed))
            back = torch.tensor([row for rows in groups for row in rows]).argsort()
            logits.append(torch.cat(of_group, 1)[:, back])
        return torch.cat(logits)

    def run(
        self,
        start: int,
        stop: int,
        ids: Tensor,
        mask: Tensor,
        perturbation: dict[int, Tensor] | None = None,
        tensors: dict[str, Tensor] | None = None,
        seed: Tensor | None = None,
        features: str = "",
        head_input: dict[str, Tensor] | None = None,
    ) -> Tensor:
        """Logits (k,B,C) of the k students start <= student < stop, whose stacked tensors are `tensors`.

        ids, mask: (k,B,L). seed: () int64 of LoRA's dropout, None leaves it out. Without `tensors` a part of the
        cohort runs detached: no gradient reaches the weights.
        """
        k, B, L = ids.shape
        if tensors is None and k < self.students:
            tensors = self.detached(start, stop)
        span = self.span
        whole = span.start, span.stop, span.seed
        span.start, span.stop = start, stop
        span.seed = None if seed is None else seed + start * CHUNK_STRIDE
        self._perturbation = [(perturbation or {}).get(student) for student in range(start, stop)]
        arguments = {"input_ids": ids.reshape(k * B, L), "attention_mask": mask.reshape(k * B, L)}
        seen: list[Tensor] = []
        hooks = [
            self.model.get_submodule(name).register_forward_pre_hook(lambda *_, read=read: (read.flatten(0, 1),))
            for name, read in (head_input or {}).items()
        ]
        if features:
            module = self.model.get_submodule(features)
            hooks.append(module.register_forward_pre_hook(lambda module, given: seen.append(given[0])))
        without_padding: AbstractContextManager = nullcontext()
        if ids.device.type in self.packing and not head_input and not torch.compiler.is_compiling():
            without_padding = packed(self.model, self.parts.layers[:-1], k * _lengths(mask), L)
        try:
            with without_padding:
                if tensors is None:
                    output = self.model(**arguments)
                else:
                    output = torch.func.functional_call(self.model, tensors, (), arguments, tie_weights=False)
        finally:
            for hook in hooks:
                hook.remove()
            span.start, span.stop, span.seed = whole
            self._perturbation = []
        made = torch.cat([output.logits, seen[0]], -1) if features else output.logits
        return made.view(k, B, -1)

    def embeddings(self) -> nn.Module:
        """Whose output (B,L,D) the first layer reads."""
        return self.model.get_submodule(self.parts.embeddings[:-1])

    def detached(self, start: int, stop: int) -> dict[str, Tensor]:
        """The stacked tensors of some students, cut off from autograd."""
        return {name: tensor.detach()[start:stop] for name, tensor in self._stacked_tensors()}

    def set_dropout(self, probability: Sequence[float]) -> None:
        """The probability of every dropout of the network, per student; it acts in training only."""
        if len(probability) != self.students:
            raise ValueError(f"probability: expected {self.students} numbers, got {len(probability)}")
        for module in self.modules():
            if isinstance(module, CohortDropout):
                module.probability = tuple(probability)

    def _stacked_tensors(self) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in (*self.model.named_parameters(), *self.model.named_buffers()):
            if name in self.stacked:
                yield name, tensor

    def _perturb(self, module: nn.Module, arguments: tuple, output: Tensor) -> Tensor | None:
        if all(delta is None for delta in self._perturbation):
            return None
        rows = output.chunk(len(self._perturbation))
        pairs = zip(rows, self._perturbation, strict=True)
        return torch.cat([row if delta is None else row + delta for row, delta in pairs])


def _lengths(mask: Tensor) -> list[int]:
    """Up to where any student sees each row [tokens], at least 1: mask (K,B,L)."""
    place = torch.arange(1, mask.shape[-1] + 1, device=mask.device)
    return (mask.amax(0) * place).amax(-1).clamp(min=1).tolist()


def _stacked_names(model: nn.Module) -> Iterator[str]:
    for path, module in model.named_modules():
        if isinstance(module, CohortLinear):
            names = ["weight"] if module.weight.dim() == 3 else []
            names += ["bias", "lora_a", "lora_b", "scale"]
        elif isinstance(module, CohortLayerNorm | CohortConv2d | CohortEmbedding):
            names = ["weight", "bias"]
        else:
            continue
        yield from (f"{path}.{name}" for name in names if getattr(module, name, None) is not None)


def count_parameters(cohort: Cohort) -> tuple[int, int]:
    """(total, trainable) parameters of one student: of the plain model that it leaves as, and those that are trained,
    adapters included."""
    total = trainable = 0
    for name, parameter in cohort.model.named_parameters():
        count = parameter.numel() // (cohort.students if name in cohort.stacked else 1)
        total += 0 if name.endswith((".lora_a", ".lora_b")) else count
        trainable += count if parameter.requires_grad else 0
    return total, trainable


def matrix_names(cohort: Cohort) -> frozenset[str]:
    """The parameters that weight decay is for: weights of linear layers, convolutions and adapters, never biases, norms
    or embeddings.

    By layer, not by dimensions: a stacked bias has two.
    """
    return frozenset(
        f"{path}.{name}"
        for path, module in cohort.named_modules()
        if isinstance(module, CohortLinear | CohortConv2d)
        for name in ("weight", "lora_a", "lora_b")
        if getattr(module, name, None) is not None
    )
