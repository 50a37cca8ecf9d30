"""K plain students are stacked into one model: a cohort.

The embeddings are shared and frozen under every tuning. Linear layers, LayerNorms and dropouts become layers that hold
K students. The parameters of any other module are stacked without a layer of their own (`Cohort.unbatched`); the
students then run one at a time. So do those of an architecture whose forward mixes the rows of a batch.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from nanonet.cohort.build import plain_student
from nanonet.cohort.layers import CohortDropout, CohortLayerNorm, CohortLinear, Span
from nanonet.cohort.mapping import check_mapping
from nanonet.cohort.model import Cohort, Lora
from nanonet.cohort.packing import can_pack, find_key_value
from nanonet.config.train import Tuning
from nanonet.errors import InputError
from nanonet.models.checks import CURE
from nanonet.models.dummy_inputs import dummy_inputs, same_logits
from nanonet.models.pairs import model_inputs
from nanonet.models.parts import Part, Parts, find_classifier_layer, find_parts

LAYER_STRIDE = 7919  # between the dropout masks of two layers


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
        InputError: the layers do not fit their slots, or the architecture cannot be stacked.
    """
    check_mapping(teacher, mapping)
    models = [plain_student(teacher, layers, labels, tuning, seed * 1009 + k) for k, layers in enumerate(mapping)]
    return stack(models, tuning, lora=lora, seed=seed)


def stack(models: Sequence[PreTrainedModel], tuning: Tuning, *, lora: Lora | None = None, seed: int = 0) -> Cohort:
    """K plain sequence classifiers of one shape as one cohort in training mode; `models` are not changed.

    The first one's embeddings serve every student and share its memory. Proved before it is returned: the cohort's
    logits in training mode, without views, are those of the plain models. Where this holds for single students only,
    the cohort runs its students one at a time, and a line on stderr says so.

    Raises:
        InputError: other logits than the plain models'.
    """
    shapes = [{name: p.shape for name, p in model.named_parameters()} for model in models]
    if any(type(model) is not type(models[0]) for model in models) or any(shape != shapes[0] for shape in shapes):
        raise ValueError("models: expected K models of one class and shape")
    # before the copy, because BigBird replaces its attention in its first forward
    wanted = torch.stack([_plain_logits(model) for model in models])
    parts, lora, span = find_parts(models[0]), lora or Lora(), Span(0, len(models))
    shared = [p for name, p in models[0].named_parameters() if parts.of(name) == "embeddings"]
    skeleton = copy.deepcopy(models[0], {id(p): p for p in shared})
    unbatched = _stack_modules(skeleton, models, parts, tuning, lora, span, seed)
    classifier = find_classifier_layer(models[0])
    cohort = Cohort(skeleton, span, parts, tuning, lora, classifier, frozenset(unbatched)).train()
    _freeze(cohort)
    _choose_chunk(cohort, wanted)
    packs = partial(can_pack, skeleton, parts.layers[:-1], partial(_logits, cohort), cohort.students)
    if cohort.students_at_once == cohort.students and packs():
        key_value = find_key_value(skeleton, parts.layers[:-1])
        cohort.key_value = key_value if key_value and packs(key_value) else []
        cohort.packing = ("cpu",)  # where it was measured
    return cohort


def _stack_modules(
    skeleton: nn.Module,
    models: Sequence[PreTrainedModel],
    parts: Parts,
    tuning: Tuning,
    lora: Lora,
    span: Span,
    seed: int,
) -> list[str]:
    """Put layers of K students in the place of the skeleton's; returns the names of the unbatched parameters."""
    generator, unbatched = torch.Generator().manual_seed(seed), []
    for count, (name, module) in enumerate(list(skeleton.named_modules())):
        part = parts.of(name + ".")
        originals = [model.get_submodule(name) for model in models]
        if type(module) is nn.Dropout:
            skeleton.set_submodule(name, CohortDropout(span))
        elif part == "embeddings" or isinstance(module, nn.Embedding):
            pass
        elif type(module) is nn.Linear:
            frozen = part != "head" and tuning != "full"
            linear = CohortLinear(span, _stack(originals, "weight", share=frozen), _stack_or_none(originals, "bias"))
            if tuning == "lora" and part == "layers":
                linear.add_lora(lora.rank, lora.alpha, lora.dropout, count * LAYER_STRIDE, generator)
            skeleton.set_submodule(name, linear)
        elif type(module) is nn.LayerNorm and module.elementwise_affine:
            weight, bias = _stack(originals, "weight"), _stack_or_none(originals, "bias")
            skeleton.set_submodule(name, CohortLayerNorm(span, weight, bias, module.eps))
        else:
            for own, parameter in list(module.named_parameters(recurse=False)):
                full_name = f"{name}.{own}" if name else own
                stacked = _stack(originals, own, share=not _is_trained(full_name, part, tuning))
                if stacked.shape != parameter.shape:
                    setattr(module, own, nn.Parameter(stacked))
                    unbatched.append(full_name)
        for probability in ("attention_dropout", "dropout"):
            if isinstance(getattr(module, probability, None), float):
                setattr(module, probability, 0.0)
    return unbatched


def _stack(modules: Sequence[nn.Module], name: str, share: bool = False) -> Tensor:
    """(K,*) copies of the modules' parameters; one of them, without K, where they may be shared and are equal."""
    tensors = [getattr(module, name).detach() for module in modules]
    if share and all(torch.equal(tensor, tensors[0]) for tensor in tensors[1:]):
        return tensors[0].clone()
    return torch.stack(tensors)


def _stack_or_none(modules: Sequence[nn.Module], name: str) -> Tensor | None:
    return None if getattr(modules[0], name) is None else _stack(modules, name)


def _is_trained(name: str, part: Part, tuning: Tuning) -> bool:
    """Whether a parameter is trained: the head always; of the rest every bias, the adapters, everything but the
    embeddings, or nothing."""
    wanted = {
        "bias": name.endswith(".bias"),
        "lora": name.endswith((".lora_a", ".lora_b")),
        "full": True,
        "head": False,
    }[tuning]
    return part == "head" or (part != "embeddings" and wanted)


def _freeze(cohort: Cohort) -> None:
    for name, parameter in cohort.model.named_parameters():
        # what is not stacked is shared by the students: embeddings, wherever they lie, and frozen weights
        trained = name in cohort.stacked and _is_trained(name, cohort.parts.of(name), cohort.tuning)
        parameter.requires_grad_(trained)


@torch.no_grad()
def _plain_logits(model: PreTrainedModel) -> Tensor:
    """Of a plain model in eval mode on the dummy inputs."""
    ids, mask = dummy_inputs(model.config, model.device)
    training = model.training
    logits = model.eval()(**model_inputs(model.config, ids, mask)).logits
    model.train(training)
    return logits


@torch.no_grad()
def _choose_chunk(cohort: Cohort, wanted: Tensor) -> None:
    """Let the cohort run all its students at once, or one at a time, whichever gives the plain models' logits."""
    ids, mask = dummy_inputs(cohort.model.config, cohort.model.device)
    problem, architecture = "", type(cohort.model).__name__
    for at_once in (cohort.students, 1):
        if cohort.unbatched and at_once > 1:
            continue
        cohort.students_at_once = at_once
        try:
            # in training mode, so that a dropout that was not found shows as well
            with _first_sizes(cohort) as sizes:
                same = same_logits(_logits(cohort, ids, mask), wanted)
        except RuntimeError as error:
            problem = str(error).splitlines()[0]
            continue
        # rows, or the tokens of all rows: of another tensor, a small model's logits may hide the mixing of students
        rows = at_once * len(ids)
        if same and (at_once == 1 or sizes <= {rows, rows * ids.shape[1]}):
            if at_once < cohort.students:
                print(
                    f"nanonet: {architecture} cannot be stacked: its {cohort.students} students run one at a time,"
                    " which is slower on a GPU",
                    file=sys.stderr,
                )
            return
        problem = "other logits than one by one"
    raise InputError(f"--teacher: {architecture} cannot be stacked: its students together give {problem}; {CURE}")


@contextmanager
def _first_sizes(cohort: Cohort) -> Iterator[set[int]]:
    """Yields a set that receives the first size of whatever the layers of K students read."""
    sizes: set[int] = set()
    hooks = [
        module.register_forward_pre_hook(lambda module, given: sizes.add(given[0].shape[0]))
        for module in cohort.modules()
        if isinstance(module, CohortLinear | CohortLayerNorm)
    ]
    try:
        yield sizes
    finally:
        for hook in hooks:
            hook.remove()


def _logits(cohort: Cohort, ids: Tensor, mask: Tensor) -> Tensor:
    """Of all students, as many at once as the cohort can run; draws nothing from the caller's random numbers."""
    with torch.random.fork_rng(devices=[]):
        return cohort(ids, mask, chunk=cohort.students).logits
