"""K plain students are stacked into one model: a cohort.

The embeddings are shared and frozen under every tuning.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from nanonet.cohort.build import check_mapping, plain_student
from nanonet.cohort.layers import CohortDropout, CohortLayerNorm, CohortLinear, Span
from nanonet.cohort.model import Cohort, Lora
from nanonet.cohort.packing import can_pack
from nanonet.config.train import Tuning
from nanonet.errors import InputError
from nanonet.models.dummy_inputs import dummy_inputs, same_logits
from nanonet.models.parts import find_parts

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

    def cohort_logits(ids: Tensor, mask: Tensor) -> Tensor:
        return cohort(ids, mask, chunk=cohort.students).logits

    if can_pack(skeleton, parts.layers[:-1], cohort_logits, cohort.students):
        cohort.packing = ("cpu",)  # where it was measured
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
    ids, mask = dummy_inputs(cohort.model.config, device)
    wanted = []
    for model in models:
        training = model.training
        wanted.append(model.eval()(input_ids=ids, attention_mask=mask).logits)
        model.train(training)
    try:
        with torch.random.fork_rng(devices=[]):
            logits = cohort.train()(ids, mask, chunk=cohort.students).logits
        problem = "" if same_logits(logits, torch.stack(wanted)) else "other logits than apart"
    except RuntimeError as error:
        problem = str(error).splitlines()[0]
    if problem:
        raise InputError(
            f"--teacher: {type(cohort.model).__name__} cannot be stacked: its students together give {problem};"
            " give an encoder such as BERT, RoBERTa or ModernBERT, or --students 1"
        )
