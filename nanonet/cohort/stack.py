"""K plain students stacked into one model: the cohort.

Stacking keeps the parameter names of the plain model; a stacked tensor gains a leading K. A weight that is frozen
and that every student has alike is stored once. The embeddings are shared and frozen under every tuning.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from nanonet.cohort.build import Parts, check_mapping, find_parts, plain_student, probe
from nanonet.cohort.layers import CohortConv2d, CohortDropout, CohortEmbedding, CohortLayerNorm, CohortLinear, Span
from nanonet.config import InputError, Tuning
from nanonet.data.batches import length_buckets

# between the dropout masks of two layers, of two chunks of students and of two groups of rows
LAYER_STRIDE, CHUNK_STRIDE, GROUP_STRIDE = 7919, 104729, 1299709


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
        entering: {name of a module: (K,B,D)} what it reads instead. Nothing below it matters then: one token a row runs
    group_rows: on a CPU, rows of like length run together, at most this many at a time, each group padded to its own
        longest; 0 runs all as they are padded. The result is the same but for rounding and the masks of dropout
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
        self.group_rows = 12
        self._perturbation: list[Tensor | None] = []
        self.embeddings().register_forward_hook(self._perturb)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        chunk: int | None = None,
        perturbation: dict[int, Tensor] | None = None,
        features: str = "",
        entering: dict[str, Tensor] | None = None,
    ) -> Tensor:
        K = self.students
        if entering:
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
        whole = perturbation or entering or torch.compiler.is_compiling() or ids.device.type != "cpu"
        if not whole and 0 < self.group_rows < ids.shape[1]:
            lengths = _lengths(mask)
            groups = length_buckets(lengths, self.group_rows)
        if chunk >= K and len(groups) < 2:
            return run(0, K, ids, mask, perturbation, None, seed, entering=entering)
        # split once, not a slice per chunk: the backward is one concatenation, not a sum of K zero-padded gradients
        tensors = {name: tensor.split(chunk) for name, tensor in self._stacked_tensors()}
        logits = []
        for i, start in enumerate(range(0, K, chunk)):
            stop = min(start + chunk, K)
            own = {name: parts[i] for name, parts in tensors.items()}
            if len(groups) < 2:
                read = {name: tensor[start:stop] for name, tensor in (entering or {}).items()}
                own_ids, own_mask = ids[start:stop], mask[start:stop]
                logits.append(run(start, stop, own_ids, own_mask, perturbation, own, seed, entering=read))
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
        entering: dict[str, Tensor] | None = None,
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
            for name, read in (entering or {}).items()
        ]
        if features:
            module = self.model.get_submodule(features)
            hooks.append(module.register_forward_pre_hook(lambda module, given: seen.append(given[0])))
        try:
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
    place = torch.arange(1, mask.shape[-1] + 1)
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


def build_cohort(
    teacher: PreTrainedModel,
    mapping: Sequence[Sequence[int]],
    labels: Sequence[str],
    tuning: Tuning,
    *,
    lora: Lora | None = None,
    seed: int = 0,
) -> Cohort:
    """A cohort of one student per list of teacher layers, each with its own new head.

    Raises:
        InputError: the layers do not fit their places, or the architecture cannot be stacked.
    """
    check_mapping(teacher, mapping)
    models = [plain_student(teacher, layers, labels, tuning, seed * 1009 + k) for k, layers in enumerate(mapping)]
    return stack(models, tuning, lora=lora, seed=seed)


def stack(models: Sequence[PreTrainedModel], tuning: Tuning, *, lora: Lora | None = None, seed: int = 0) -> Cohort:
    """K plain sequence classifiers of one shape as one cohort in training mode; `models` stay as they are.

    The first one's embeddings serve every student and share its memory. Proved before it is returned: the cohort's
    logits in training mode, without views, are those of the plain models.

    Raises:
        InputError: a layer kind that cannot be stacked, or other logits than the plain models'.
    """
    shapes = [{name: p.shape for name, p in model.named_parameters()} for model in models]
    if any(type(model) is not type(models[0]) for model in models) or any(shape != shapes[0] for shape in shapes):
        raise ValueError("models: expected K models of one class and shape")
    parts, lora, span = find_parts(models[0]), lora or Lora(), Span(0, len(models))
    shared = [p for name, p in models[0].named_parameters() if parts.of(name) == "embeddings"]
    skeleton = copy.deepcopy(models[0], {id(p): p for p in shared})
    generator = torch.Generator().manual_seed(seed)
    for count, (name, module) in enumerate(list(skeleton.named_modules())):
        part = parts.of(name + ".")
        originals = [model.get_submodule(name) for model in models]
        if type(module) is nn.Dropout:
            skeleton.set_submodule(name, CohortDropout(span))
        elif type(module) is nn.Linear and part != "embeddings":
            frozen = part != "head" and tuning != "full"
            linear = CohortLinear(span, _stack(originals, "weight", share=frozen), _stack_or_none(originals, "bias"))
            if tuning == "lora" and part == "layers":
                linear.add_lora(lora.rank, lora.alpha, lora.dropout, count * LAYER_STRIDE, generator)
            skeleton.set_submodule(name, linear)
        elif type(module) is nn.LayerNorm and part != "embeddings" and module.elementwise_affine:
            weight, bias = _stack(originals, "weight"), _stack_or_none(originals, "bias")
            skeleton.set_submodule(name, CohortLayerNorm(span, weight, bias, module.eps))
        elif (
            part != "embeddings"
            and not isinstance(module, nn.Embedding)
            and any(True for _ in module.parameters(recurse=False))
        ):
            raise InputError(
                f"--teacher: {name} is a {type(module).__name__}, which cannot be stacked;"
                " give an encoder made of Linear and LayerNorm, such as BERT, RoBERTa or ModernBERT"
            )
        if isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = 0.0
    cohort = Cohort(skeleton, span, parts, tuning, lora)
    _freeze(cohort)
    _prove(cohort, models)
    return cohort


def _stack(modules: Sequence[nn.Module], name: str, share: bool = False) -> Tensor:
    """(K,*) copies of the modules' parameters; one of them, without K, where they may be shared and are alike."""
    tensors = [getattr(module, name).detach() for module in modules]
    if share and all(torch.equal(tensor, tensors[0]) for tensor in tensors[1:]):
        return tensors[0].clone()
    return torch.stack(tensors)


def _stack_or_none(modules: Sequence[nn.Module], name: str) -> Tensor | None:
    return None if getattr(modules[0], name) is None else _stack(modules, name)


def _freeze(cohort: Cohort) -> None:
    """The head is always trained; of the rest every bias, the adapters, everything but embeddings, or nothing."""
    for name, parameter in cohort.model.named_parameters():
        body = {
            "bias": name.endswith(".bias"),
            "lora": name.endswith((".lora_a", ".lora_b")),
            "full": True,
            "head": False,
        }[cohort.tuning]
        part = cohort.parts.of(name)
        # what is not stacked is shared by the students: embeddings, wherever they lie, and frozen weights
        parameter.requires_grad_(name in cohort.stacked and part != "embeddings" and (part == "head" or body))


@torch.no_grad()
def _prove(cohort: Cohort, models: Sequence[PreTrainedModel]) -> None:
    """In training mode, so that a dropout that was not found shows as well."""
    device = next(cohort.parameters()).device
    ids, mask = probe(cohort.model.config, device)
    wanted = []
    for model in models:
        training = model.training
        wanted.append(model.eval()(input_ids=ids, attention_mask=mask).logits)
        model.train(training)
    try:
        with torch.random.fork_rng(devices=[]):
            logits = cohort.train()(ids, mask, chunk=cohort.students)
        problem = "" if alike(logits, torch.stack(wanted)) else "other logits than apart"
    except RuntimeError as error:
        problem = str(error).splitlines()[0]
    if problem:
        raise InputError(
            f"--teacher: {type(cohort.model).__name__} cannot be stacked: its students together give {problem};"
            " give an encoder such as BERT, RoBERTa or ModernBERT, or --students 1"
        )


def alike(a: Tensor, b: Tensor) -> bool:
    """Equal but for rounding: logits."""
    return bool(torch.allclose(a, b, rtol=1e-3, atol=1e-4 * max(1.0, float(b.abs().max()))))


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
