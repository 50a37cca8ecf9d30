"""Plain students cut from a teacher: any encoder of transformers, layers chosen, head new.

The parts of a model are found, not written down per architecture: the layers are the one ModuleList as long as
`num_hidden_layers`, the embeddings are the branch that holds the word embeddings, the head is what lies outside
the base model, and a pooler.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from nanonet.config.train import Tuning
from nanonet.errors import InputError
from nanonet.models.dummy_inputs import dummy_inputs
from nanonet.models.parts import find_parts

# ModernBERT's ways to have no biases; tuning them needs them created
BIAS_FLAGS = ("attention_bias", "mlp_bias", "norm_bias", "classifier_bias")


@torch.no_grad()
def check_encoder(teacher: PreTrainedModel, layers: bool) -> None:
    """Refuse a teacher that needs more than ids and a mask, or whose `layers` have to be found and are not.

    Raises:
        InputError: names its kind.
    """
    if layers:
        find_parts(teacher)
    ids, mask = dummy_inputs(teacher.config)
    try:
        shape = teacher(input_ids=ids, attention_mask=mask).last_hidden_state.shape
    except Exception as error:  # whatever an architecture makes of them
        shape, why = (), f" ({type(error).__name__}: {(str(error).strip() or '?').splitlines()[0]:.100})"
    else:
        why = ""
    if shape[:2] != ids.shape:
        raise InputError(
            f"--teacher: {type(teacher).__name__} makes no vector of every token from ids and a mask alone{why};"
            " give an encoder such as BERT, RoBERTa or ModernBERT"
        )


def check_mapping(teacher: PreTrainedModel, mapping: Sequence[Sequence[int]]) -> None:
    """Refuse students whose layers do not fit the slots that they are put in.

    ModernBERT's first layer has no attention norm, and a slot has one attention type for every student.

    Raises:
        InputError: names the student and the layer, and proposes a mapping that fits.
    """
    kinds = _layer_kinds(teacher)
    # a slot is built like the teacher's layer of that place, and is of the type that student 0 asks for
    fits = []
    for slot, layer in enumerate(mapping[0]):
        alike = [i for i, kind in enumerate(kinds) if kind[0] == kinds[slot][0]]
        wanted = kinds[_nearest(alike, layer)]
        fits.append([i for i in alike if kinds[i] == wanted])
    for k, layers in enumerate(mapping):
        for slot, layer in enumerate(layers):
            if layer not in fits[slot]:
                same_parts = kinds[layer][0] == kinds[slot][0]
                what = f"{kinds[layer][1]}, not {kinds[fits[slot][0]][1]}" if same_parts else "other parts (norms)"
                raise InputError(
                    f"--layer-mapping: student {k} has layer {layer} in place {slot}, which has {what};"
                    f" this one fits: {_proposal(fits, mapping)}"
                )


def _layer_kinds(teacher: PreTrainedModel) -> list[tuple[frozenset[str], str]]:
    """(parameter names, attention type) of every layer."""
    layers = teacher.get_submodule(find_parts(teacher).layers[:-1])
    types = getattr(teacher.config, "layer_types", None) or [""] * teacher.config.num_hidden_layers
    names = [frozenset(name for name, _ in layer.named_parameters()) for layer in layers.children()]
    return list(zip(names, types, strict=True))


def _nearest(options: Sequence[int], layer: int) -> int:
    return min(options, key=lambda i: (abs(i - layer), i))


def _proposal(fits: list[list[int]], mapping: Sequence[Sequence[int]]) -> str:
    """Each layer replaced by the nearest that fits, if possible above the one before and new in its place."""
    proposed: list[list[int]] = []
    for layers in mapping:
        chosen: list[int] = []
        for slot, layer in enumerate(layers):
            above = [i for i in fits[slot] if not chosen or i > chosen[-1]] or fits[slot]
            unused = [i for i in above if all(other[slot] != i for other in proposed)] or above
            chosen.append(_nearest(unused, layer))
        proposed.append(chosen)
    return ";".join(",".join(map(str, chosen)) for chosen in proposed)


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
    if getattr(config, "layer_types", None):
        config.layer_types = [teacher.config.layer_types[i] for i in layers]
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: i for i, label in enumerate(labels)}
    config.problem_type = None  # one of many, whatever the teacher's head was for
    if tuning == "bias":
        for flag in BIAS_FLAGS:
            if getattr(config, flag, None) is False:
                setattr(config, flag, True)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            model = AutoModelForSequenceClassification.from_config(config, dtype=teacher.dtype)
    except ValueError as error:
        raise InputError(
            f"--teacher: transformers has no text classifier for {config.model_type};"
            " give an encoder such as BERT, RoBERTa or ModernBERT"
        ) from error
    _copy_weights(teacher, model, layers)
    return model.eval()


@torch.no_grad()
def _copy_weights(teacher: PreTrainedModel, model: Any, layers: Sequence[int]) -> None:
    theirs, ours = find_parts(teacher), find_parts(model)
    source: dict[str, Tensor] = teacher.state_dict()
    for name, parameter in list(model.named_parameters()):
        part = ours.of(name)
        if part == "head":
            continue
        origin = theirs.base + name.removeprefix(ours.base)
        if part == "layers":
            slot, rest = name.removeprefix(ours.layers).split(".", 1)
            origin = f"{theirs.layers}{layers[int(slot)]}.{rest}"
        if origin in source and part == "embeddings":
            parent, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(parent), leaf, nn.Parameter(source[origin], requires_grad=False))
        elif origin in source:
            parameter.copy_(source[origin])
        elif name.endswith(".bias"):
            parameter.zero_()
        else:
            raise InputError(f"--layer-mapping: the teacher has no {origin}, which a student's {name} starts from")
