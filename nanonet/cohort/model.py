"""A cohort: K students in one model, and how it runs.

Stacking (stack.py, cnn.py) keeps the parameter names of the plain model; a stacked tensor gains a leading K. A weight
that is frozen and that every student has alike is stored once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from nanonet.cohort.hooks import captured_input, replaced_inputs
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


class CohortOutput(NamedTuple):
    """logits: (K,B,C); features: (K,B,D) input of the module that the caller named, else None."""

    logits: Tensor
    features: Tensor | None


class RowGroup(NamedTuple):
    """Rows of a batch that run together, cut to the `tokens` of the longest."""

    rows: list[int]
    tokens: int


class Cohort(nn.Module):
    """K students in one Hugging Face model. Made by `stack` or `build_cohort`.

    forward: input_ids, attention_mask (B,L), the same for every student, or (K,B,L) -> CohortOutput
        chunk: students that run at a time, by default K; 1 on a CPU, where all at once take 4 to 12% longer
            (2-layer MiniLM, K=2 and 4). The result is the same but for rounding and the masks of dropout
        perturbation: {student: (B,L,D)} added to the output of the embeddings: words, positions and norm together
        features: name of a module whose input (one vector a row) is returned as the features
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
        # what makes the logits; its input are the features of a row
        self.classifier = [name for name, module in model.named_modules() if isinstance(module, CohortLinear)][-1]
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
    ) -> CohortOutput:
        K = self.students
        if head_input:
            input_ids = input_ids[..., :1]
            attention_mask = torch.ones_like(input_ids)
        ids, mask = (t.expand(K, *t.shape[-2:]) for t in (input_ids, attention_mask))
        if chunk is None:
            chunk = 1 if ids.device.type == "cpu" or self.checkpointing else K
        seed = self._draw_seed(ids.device)
        run: Callable[..., CohortOutput] = partial(self.run, features=features)
        if self.checkpointing and torch.is_grad_enabled():
            run = partial(checkpoint, run, use_reentrant=False)
        groups = [] if perturbation or head_input else self._row_groups(mask)
        if chunk >= K and not groups:
            return run(0, K, ids, mask, perturbation, None, seed, head_input=head_input)
        # split once, not a slice per chunk: the backward is one concatenation, not a sum of K zero-padded gradients
        split = {name: tensor.split(chunk) for name, tensor in self._stacked_tensors()}
        outputs = []
        for i, start in enumerate(range(0, K, chunk)):
            own = slice(start, min(start + chunk, K))
            tensors = {name: pieces[i] for name, pieces in split.items()}
            if groups:
                outputs.append(_run_groups(run, own, ids[own], mask[own], tensors, seed, groups))
            else:
                read = {name: tensor[own] for name, tensor in (head_input or {}).items()}
                outputs.append(
                    run(own.start, own.stop, ids[own], mask[own], perturbation, tensors, seed, head_input=read)
                )
        return _cat(outputs, 0)

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
    ) -> CohortOutput:
        """The output of the k students start <= student < stop, whose stacked tensors are `tensors`.

        ids, mask: (k,B,L). seed: () int64 of LoRA's dropout, None leaves it out. Without `tensors` a part of the
        cohort runs detached: no gradient reaches the weights.
        """
        k, B, L = ids.shape
        if tensors is None and k < self.students:
            tensors = self.detached(start, stop)
        arguments = {"input_ids": ids.reshape(k * B, L), "attention_mask": mask.reshape(k * B, L)}
        replacements = {name: read.flatten(0, 1) for name, read in (head_input or {}).items()}
        with (
            self._active(start, stop, seed, perturbation or {}),
            nullcontext() if head_input else self._packed(mask),
            replaced_inputs(self.model, replacements),
            captured_input(self.model, features) as seen,
        ):
            if tensors is None:
                output = self.model(**arguments)
            else:
                output = torch.func.functional_call(self.model, tensors, (), arguments, tie_weights=False)
        # contiguous: a view would keep the hidden states of every token alive
        return CohortOutput(output.logits.view(k, B, -1), seen[0].reshape(k, B, -1).contiguous() if features else None)

    def _draw_seed(self, device: torch.device) -> Tensor | None:
        """The seed of LoRA's dropout in one forward; None where there is no such dropout."""
        if self.training and self.lora.dropout and self.tuning == "lora":
            return torch.randint(2**31, (), device=device)
        return None

    def _row_groups(self, mask: Tensor) -> list[RowGroup]:
        """Groups of rows of like length that run one after the other; none where all rows run together."""
        if mask.device.type != "cpu" or torch.compiler.is_compiling() or not 0 < self.group_rows < mask.shape[1]:
            return []
        lengths = _lengths(mask)
        groups = length_buckets(lengths, self.group_rows)
        return [RowGroup(rows, max(lengths[row] for row in rows)) for rows in groups] if len(groups) > 1 else []

    @contextmanager
    def _active(self, start: int, stop: int, seed: Tensor | None, perturbation: dict[int, Tensor]) -> Iterator[None]:
        """Within, the layers hold the students start <= student < stop, each under its perturbation."""
        span = self.span
        before = span.start, span.stop, span.seed
        span.start, span.stop = start, stop
        span.seed = None if seed is None else seed + start * CHUNK_STRIDE
        self._perturbation = [perturbation.get(student) for student in range(start, stop)]
        try:
            yield
        finally:
            span.start, span.stop, span.seed = before
            self._perturbation = []

    def _packed(self, mask: Tensor) -> AbstractContextManager:
        """Within, the layers run without padding where `packing` says so; mask (k,B,L)."""
        if mask.device.type not in self.packing or torch.compiler.is_compiling():
            return nullcontext()
        return packed(self.model, self.parts.layers[:-1], len(mask) * _lengths(mask), mask.shape[-1])

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


def _run_groups(
    run: Callable[..., CohortOutput],
    students: slice,
    ids: Tensor,
    mask: Tensor,
    tensors: dict[str, Tensor],
    seed: Tensor | None,
    groups: Sequence[RowGroup],
) -> CohortOutput:
    """`run` on one group of rows after another; the output in the order of the rows."""
    outputs = []
    for g, group in enumerate(groups):
        own = slice(None), group.rows, slice(group.tokens)
        own_seed = None if seed is None else seed + g * GROUP_STRIDE
        outputs.append(run(students.start, students.stop, ids[own], mask[own], None, tensors, own_seed))
    order = torch.tensor([row for group in groups for row in group.rows]).argsort()
    logits, features = _cat(outputs, 1)
    return CohortOutput(logits[:, order], None if features is None else features[:, order])


def _cat(outputs: Sequence[CohortOutput], dim: int) -> CohortOutput:
    features = [output.features for output in outputs if output.features is not None]
    return CohortOutput(
        torch.cat([output.logits for output in outputs], dim), torch.cat(features, dim) if features else None
    )


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
