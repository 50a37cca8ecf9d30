"""A cohort: K students in one model, and how it runs.

Stacking (stack.py, cnn.py) keeps the parameter names of the plain model; a stacked tensor gains a leading K. A frozen
weight that is equal in all students is stored once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from nanonet.cohort.hooks import captured_input, replaced_inputs
from nanonet.cohort.layers import CohortConv2d, CohortDropout, CohortEmbedding, CohortLayerNorm, CohortLinear, Span
from nanonet.cohort.output import CohortOutput, cat, lengths, row_groups, run_groups
from nanonet.cohort.packing import packed
from nanonet.config.train import Tuning
from nanonet.errors import InputError
from nanonet.models.pairs import model_inputs
from nanonet.models.parts import Parts

CHUNK_STRIDE = 104729  # between the dropout masks of two chunks of students


@dataclass(frozen=True)
class Lora:
    """Adapters on every linear layer of the encoder's layers, scaled by alpha / rank."""

    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0


class Cohort(nn.Module):
    """K students in one Hugging Face model. Made by `stack` or `build_cohort`.

    classifier: name of the linear layer that makes the logits; its input are the features of a row
    unbatched: names of stacked parameters whose modules know nothing of K. They get one student's slice, so that the
        students run one at a time
    students_at_once: the most that one forward of the model can hold, K or 1; a larger chunk is cut to it
    forward: input_ids, attention_mask (B,L), the same for every student, or (K,B,L) -> CohortOutput
        chunk: students that run at once. By default K; on a CPU 1, because all at once take 4 to 12% longer there
            (2-layer MiniLM, K=2 and 4). Changes rounding and the masks of dropout, nothing else
        perturbation: {student: (B,L,D)} added to the output of the embeddings: words, positions and norm together
        features: name of a module whose input, one vector a row, is returned as the features
        head_input: {name of a module: (K,B,D)} read by it in place of its input. The layers below it then run on one
            token a row, because their output is not used
    group_rows: on a CPU, rows of like length run together in groups of at most so many, each group padded to its
        longest row; 0 runs all rows as they are padded. Changes rounding and the masks of dropout, nothing else
    group_above: padded tokens from which on rows are grouped: each group reads all weights and adds to all gradients
    packing: types of the devices on which the layers run without padding (packing.py); changes the same
    key_value: modules that make the keys and the values of the last layer, if the head reads the first token alone: the
        rest of that layer then runs on no other token, where rows are packed
    checkpointing: a student's activations are not stored, but computed again in the backward: the memory of one
        student instead of K, for a second forward. The students then run one at a time
    """

    def __init__(
        self,
        model: PreTrainedModel,
        span: Span,
        parts: Parts,
        tuning: Tuning,
        lora: Lora,
        classifier: str,
        unbatched: frozenset[str] = frozenset(),
    ):
        super().__init__()
        self.model = model
        self.span = span
        self.students = span.students()
        self.parts = parts
        self.tuning = tuning
        self.lora = lora
        self.classifier = classifier
        self.unbatched = unbatched
        self.stacked = frozenset(_stacked_names(model)) | unbatched
        self.students_at_once = 1 if unbatched else self.students
        self.checkpointing = False
        self.group_rows = 16
        self.group_above = 1536
        self.packing: tuple[str, ...] = ()
        self.key_value: list[str] = []
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
        chunk = min(chunk, self.students_at_once)
        seed = self._draw_seed(ids.device)
        run: Callable[..., CohortOutput] = partial(self.run, features=features)
        if self.checkpointing and torch.is_grad_enabled():
            run = partial(checkpoint, run, use_reentrant=False)
        # a perturbation is given for rows as they are padded
        may_group = ids.device.type == "cpu" and not (perturbation or head_input or torch.compiler.is_compiling())
        large = 0 < self.group_rows < ids.shape[1] and mask[0].numel() > self.group_above
        groups = row_groups(mask, self.group_rows) if may_group and large else []
        if chunk >= K and not groups:
            return run(0, K, ids, mask, perturbation, None, seed, head_input=head_input)
        # split once, not a slice per chunk: the backward is one concatenation, not a sum of K zero-padded gradients
        split = {name: tensor.split(chunk) for name, tensor in self._stacked_tensors()}
        outputs = []
        for i, start in enumerate(range(0, K, chunk)):
            own = slice(start, min(start + chunk, K))
            tensors = {name: pieces[i] for name, pieces in split.items()}
            run_own = partial(run, own.start, own.stop, tensors=tensors)
            if groups:
                outputs.append(run_groups(run_own, ids[own], mask[own], seed, groups))
            else:
                read = {name: tensor[own] for name, tensor in (head_input or {}).items()}
                outputs.append(run_own(ids[own], mask[own], perturbation, seed=seed, head_input=read))
        return cat(outputs, 0)

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

        ids, mask: (k,B,L). seed: () int64 of LoRA's dropout, None for no dropout. Without `tensors` a part of the
        cohort runs detached: no gradient reaches the weights.
        """
        k, B, L = ids.shape
        if tensors is None and k < self.students:
            tensors = self.detached(start, stop)
        if self.unbatched:
            tensors = {
                name: tensor[0] if name in self.unbatched else tensor
                for name, tensor in (tensors or dict(self._stacked_tensors())).items()
            }
        arguments = model_inputs(self.model.config, ids.reshape(k * B, L), mask.reshape(k * B, L))
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
        if features and seen[0].dim() != 2:
            what = f"--relation-weight: {features} of {type(self.model).__name__}"
            raise InputError(f"{what} reads every token, not one vector of each text; leave it out")
        # contiguous: a view would keep the hidden states of every token alive
        return CohortOutput(output.logits.view(k, B, -1), seen[0].reshape(k, B, -1).contiguous() if features else None)

    def _draw_seed(self, device: torch.device) -> Tensor | None:
        """The seed of LoRA's dropout in one forward; None where there is no such dropout."""
        if self.training and self.lora.dropout and self.tuning == "lora":
            return torch.randint(2**31, (), device=device)
        return None

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
        return packed(self.model, self.parts.layers[:-1], len(mask) * lengths(mask), mask.shape[-1], self.key_value)

    def embeddings(self) -> nn.Module:
        """The module whose output (B,L,D) the first layer reads."""
        return self.model.get_submodule(self.parts.embeddings[:-1])

    def detached(self, start: int, stop: int) -> dict[str, Tensor]:
        """The stacked tensors of some students, detached from autograd."""
        return {name: tensor.detach()[start:stop] for name, tensor in self._stacked_tensors()}

    def set_dropout(self, probability: Sequence[float]) -> None:
        """The probability of every dropout of the network, per student, unless its own `least` is more; it acts in
        training only."""
        if len(probability) != self.students:
            raise ValueError(f"probability: expected {self.students} numbers, got {len(probability)}")
        for module in self.modules():
            if isinstance(module, CohortDropout):
                module.probability = tuple(max(p, module.least) for p in probability)

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

    By layer, not by dimensions: a stacked bias has two. Of other modules' parameters those of two or more dimensions
    apart from K.
    """
    of_layers = {
        f"{path}.{name}"
        for path, module in cohort.named_modules()
        if isinstance(module, CohortLinear | CohortConv2d)
        for name in ("weight", "lora_a", "lora_b")
        if getattr(module, name, None) is not None
    }
    others = {f"model.{name}" for name in cohort.unbatched if cohort.model.get_parameter(name).dim() > 2}
    return frozenset(of_layers | others)
