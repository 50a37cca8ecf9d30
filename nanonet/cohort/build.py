"""Plain students cut from a teacher: any encoder of transformers, layers chosen, head new."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from nanonet.config.train import Tuning
from nanonet.errors import InputError
from nanonet.models.checks import CURE
from nanonet.models.parts import PER_LAYER, find_parts, want_biases


def plain_student(
    teacher: PreTrainedModel, layers: Sequence[int], labels: Sequence[str], tuning: Tuning, seed: int
) -> PreTrainedModel:
    """A plain sequence classifier with the teacher's chosen layers, its embeddings and a new head.

    The embeddings share the teacher's memory; all else is a copy. The head, a pooler included, is drawn by `seed`.
    Where `tuning` is "bias" and the architecture left its biases out, they are created as zeros, which changes no
    output, and the config says so.

    Raises:
        InputError: transformers has no such classifier, or a layer does not fit its slot.
    """
    config = copy.deepcopy(teacher.config)
    config.num_hidden_layers = len(layers)
    for name in PER_LAYER:
        if isinstance(values := getattr(config, name, None), list):
            setattr(config, name, [values[i] for i in layers])
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: i for i, label in enumerate(labels)}
    config.problem_type = None  # one of many, whatever the teacher's head was for
    if tuning == "bias":
        want_biases(config)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            model = AutoModelForSequenceClassification.from_config(config, dtype=teacher.dtype)
    except ValueError as error:
        raise InputError(f"--teacher: transformers has no text classifier for {config.model_type}; {CURE}") from error
    _copy_weights(teacher, model, layers)
    return model.eval()


@torch.no_grad()
def _copy_weights(teacher: PreTrainedModel, model: Any, layers: Sequence[int]) -> None:
    theirs, ours = find_parts(teacher), find_parts(model)
    source: dict[str, Tensor] = teacher.state_dict()
    kind = type(teacher).__name__
    for name, parameter in list(model.named_parameters()):
        part = ours.of(name)
        if part == "head":
            continue
        origin = theirs.base + name.removeprefix(ours.base)
        if part == "layers":
            slot, rest = name.removeprefix(ours.layers).split(".", 1)
            origin = f"{theirs.layers}{layers[int(slot)]}.{rest}"
        if origin in source and source[origin].shape != parameter.shape:
            raise InputError(f"--teacher: {kind} has a {origin} for all of its layers together; {CURE}")
        if origin in source and part == "embeddings":
            parent, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(parent), leaf, nn.Parameter(source[origin], requires_grad=False))
        elif origin in source:
            parameter.copy_(source[origin])
        elif name.endswith(".bias"):
            parameter.zero_()
        else:
            raise InputError(f"--layer-mapping: the teacher has no {origin}, which a student's {name} starts from")
