"""Settings of a training run that make no sense, alone or together, are refused before anything is read."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import types
import typing
from collections.abc import Callable
from typing import Any

from nanonet.config.train import TrainConfig
from nanonet.errors import InputError
from nanonet.reference import DEFAULT_BETA

# the seeds of steps and students are multiples of this one, and have to fit into 64 bits
MAX_SEED = 2**32 - 1
CORES = os.cpu_count() or 1

# names of fields, whether a value is allowed, what else to give
RANGES: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
    (
        "students lora_rank labelled_batch unlabelled_batch gradient_accumulation embedding_width",
        lambda value: value >= 1,
        "give 1 or more",
    ),
    (
        "teacher_steps student_layers steps max_unlabelled max_test save_every threads seed",
        lambda value: value >= 0,
        "give 0 or more",
    ),
    ("labels_per_class", lambda value: value is None or value >= 0, "give 0 or more"),
    ("seed", lambda value: value <= MAX_SEED, f"give {MAX_SEED} or less"),
    ("threads", lambda value: value <= CORES, f"give {CORES} or less"),
    (
        "ce_weight teacher_weight peers_weight relation_weight learning_rate weight_decay max_grad_norm",
        lambda value: 0 <= value < float("inf"),
        "give 0 or more",
    ),
    ("sharpen lora_alpha", lambda value: 0 < value < float("inf"), "give a number above 0"),
    ("temperature", lambda value: 0.01 <= value <= 100, "give 0.01 to 100"),
    ("warmup lora_dropout test_fraction", lambda value: 0 <= value < 1, "give a fraction of at least 0 and below 1"),
    (
        "vocabulary",
        lambda value: value in ("", "auto", "all") or value.isascii() and value.isdecimal() and 0 < int(value) < 2**31,
        "give auto, all or a number of word pieces",
    ),
    ("beta", lambda value: value is None or 0 < value < 1, "give a number above 0 and below 1"),
)

# name of a field, whether its value contradicts the other settings, what to do
CONFLICTS: tuple[tuple[str, Callable[[TrainConfig], bool], str], ...] = (
    (
        "temperature",
        lambda c: c.divergence == "mse" and c.temperature != 1,
        "--divergence mse compares raw logits; leave it at 1",
    ),
    (
        "beta",
        lambda c: c.beta is not None and c.divergence not in DEFAULT_BETA,
        f"only --divergence {', '.join(DEFAULT_BETA)} have one; leave it out, or give one of these",
    ),
    (
        "targets",
        lambda c: c.teacher_mode == "online" and c.targets == "head",
        "an online teacher gets a head of its own; leave it at auto, or --teacher-mode frozen",
    ),
    (
        "peers_weight",
        lambda c: c.students == 1 and c.peers_weight not in (0, TrainConfig.peers_weight),
        "one student has no peers; leave it out, or give --students 2 or more",
    ),
    (
        "labels_per_class",
        lambda c: c.labels_per_class == 1 and c.targets != "head" and not c.soft_labels,
        "soft labels are cross-validated inside the labels; give 2 or more, or 0 for all",
    ),
    (
        "student_model",
        lambda c: c.teacher_mode == "online" and bool(c.student_model),
        "an online teacher reads the students' tokens; leave it out, or give --teacher-mode frozen",
    ),
    (
        "student_init",
        lambda c: c.student_init == "tuned" and bool(c.student_model or c.soft_labels or not c.teacher_steps),
        "no layer of the students' encoder is tuned there; leave it out",
    ),
    (
        "vocabulary",
        lambda c: c.teacher_mode == "online" and c.vocabulary not in ("", "auto", "all"),
        "an online teacher reads the students' tokens; give auto or all, or --teacher-mode frozen",
    ),
    (
        "relation_weight",
        lambda c: bool(c.relation_weight) and (bool(c.soft_labels) or c.targets == "head"),
        "it compares with embeddings, which soft labels from files or a head lack; give 0",
    ),
    (
        "soft_labels_are",
        lambda c: c.soft_labels_are != TrainConfig.soft_labels_are and not c.soft_labels,
        "there are no soft labels from files; give --soft-labels with it",
    ),
    (
        "soft_label_weights",
        lambda c: bool(c.soft_label_weights) and len(c.soft_label_weights) != len(c.soft_labels),
        "give one weight for every file of --soft-labels",
    ),
    (
        "soft_label_weights",
        lambda c: any(not 0 < weight < float("inf") for weight in c.soft_label_weights),
        "give numbers above 0",
    ),
    (
        "class_weight",
        lambda c: c.class_weight != "none" and not c.ce_weight,
        "it weighs the labelled rows in the term that --ce-weight 0 leaves out; give one of the two",
    ),
    (
        "uniform_prior",
        lambda c: c.uniform_prior and c.targets != "propagation",
        "it balances propagated targets; give --targets propagation with it",
    ),
    (
        "tuning",
        lambda c: c.student != "encoder" and c.tuning != "full",
        "a cnn or static student starts from scratch, so all of it is trained; leave it at full",
    ),
)

# whether a choice was made, its name, the fields that mean nothing under it
IDLE: tuple[tuple[Callable[[TrainConfig], bool], str, str], ...] = (
    (lambda c: c.student != "encoder", "--student {student}", "student_layers layer_mapping student_init"),
    (lambda c: c.student == "encoder", "--student encoder", "embedding_width"),
    (lambda c: bool(c.soft_labels), "--soft-labels", "teacher_mode teacher_steps teacher_tuning targets"),
    (lambda c: not c.teacher_steps, "--teacher-steps 0", "teacher_tuning"),
    (
        lambda c: c.data == "pydocs" and not c.unlabelled and not c.soft_labels,
        "--data pydocs",
        "text_column label_column test_fraction",
    ),
    (lambda c: c.tuning != "lora", "--tuning {tuning}", "lora_rank lora_alpha lora_dropout"),
)


def check_train(config: TrainConfig) -> None:
    """Refuse settings that make no sense alone or together.

    Raises:
        InputError: names the flag, what came, and what it takes.
    """
    if not config.output:
        raise InputError("--output is missing: name the folder that receives the students and the report")
    for names, allowed, cure in RANGES:
        for name in names.split():
            if not allowed(getattr(config, name)):
                _refuse(config, name, cure)
    for name, wrong, cure in CONFLICTS:
        if wrong(config):
            _refuse(config, name, cure)
    for chosen, choice, names in IDLE:
        for name in names.split() if chosen(config) else ():
            if getattr(config, name) != getattr(TrainConfig, name):
                _refuse(
                    config,
                    name,
                    f"it means nothing to {choice.format(tuning=config.tuning, student=config.student)}; leave it out",
                )
    if config.tensorboard and importlib.util.find_spec("tensorboard") is None:
        raise InputError("--tensorboard: tensorboard is not installed; pip install 'nanonet[tensorboard]'")
    if config.resume and config.overwrite:
        raise InputError("--resume and --overwrite: give one of them, to go on or to start again")


def check_types(config: TrainConfig) -> TrainConfig:
    """The settings as they are read from a file: a number of numpy is Python's, a whole number is one of a float's.

    Raises:
        InputError: names the setting, what came, and what it takes.
    """
    kinds = typing.get_type_hints(TrainConfig)
    return dataclasses.replace(config, **{n: _checked(n, value, kinds[n]) for n, value in vars(config).items()})


def _checked(name: str, value: Any, kind: Any) -> Any:
    """`value` as the type `kind`."""
    if typing.get_origin(kind) is tuple:
        if not isinstance(value, list | tuple):
            raise InputError(f"--{name.replace('_', '-')} {value!r:.40}: give a list")
        return tuple(_checked(name, item, typing.get_args(kind)[0]) for item in value)
    value = value.item() if hasattr(value, "item") else os.fspath(value) if isinstance(value, os.PathLike) else value
    allowed = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    if float in allowed and type(value) is int:
        value = float(value)
    plain = [k for k in allowed if typing.get_origin(k) is not typing.Literal]
    names = [word for k in allowed if k not in plain for word in typing.get_args(k)]
    if not (type(value) in plain or isinstance(value, str) and value in names):
        takes = f"one of {', '.join(names)}" if names else " or ".join(k.__name__ for k in plain)
        raise InputError(f"--{name.replace('_', '-')} {value!r:.40}: give {takes}")
    return value


def _refuse(config: TrainConfig, name: str, cure: str) -> None:
    value = getattr(config, name)
    shown = " ".join(map(str, value)) if isinstance(value, tuple) else value
    raise InputError(f"--{name.replace('_', '-')} {shown}: {cure}")
