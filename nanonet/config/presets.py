"""Presets of `nanonet train`: each sets the fields that make up one paper's system.

A preset is gone before a TrainConfig is made: what the user gives wins over it, and config.yaml holds plain values.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

from nanonet.config.check import IDLE
from nanonet.config.train import TrainConfig
from nanonet.errors import InputError


@dataclass(frozen=True)
class Preset:
    """system: the paper's, in a few words; generated: whether its unlabelled texts come from `nanonet generate`"""

    paper: str
    system: str
    settings: Mapping[str, Any]
    generated: bool = False


# Fields are set even to their default where the paper's system rests on them. What the papers leave open, and the
# encoder, which depends on what can be downloaded, keep their defaults.
PRESETS: Mapping[str, Preset] = {
    "nanonet": Preset(
        "arXiv 2602.06093",
        "two students that tune their biases alone, each under its view, learn from an online teacher and each other",
        {
            "teacher_mode": "online",
            "students": 2,
            "student": "encoder",
            "layer_mapping": "interleaved",
            "tuning": "bias",
            "views": "dropout,cutoff",
            "divergence": "kl",
            "peers_weight": 0.1,
        },
    ),
    "transformer-to-cnn": Preset(
        "arXiv 1909.03508",
        "one convolutional student of a tuned transformer",
        {
            "teacher_mode": "frozen",
            "students": 1,
            "student": "cnn",
            "embedding_width": 100,
            "tuning": "full",
            "peers_weight": 0.0,
            "max_unlabelled": 10_000,
            "steps": 800,
        },
    ),
    "generation-distillation": Preset(
        "arXiv 2002.00733",
        "one student of about 1.1M parameters learns from all the texts that `nanonet generate` wrote",
        {
            "teacher_mode": "frozen",
            "students": 1,
            "student": "cnn",
            "embedding_width": 22,
            "tuning": "full",
            "peers_weight": 0.0,
            "max_unlabelled": 0,
            "steps": 800,
        },
        generated=True,
    ),
}
# what `nanonet generate` has to be told as `nanonet train` is, so that both draw the same labelled rows
SHARED = ("text_column", "label_column", "labels_per_class", "test_fraction", "seed")
CHOICES: Any = Literal[tuple(PRESETS)]  # type: ignore[valid-type]


def presets_of(config: type) -> Mapping[str, Preset]:
    """The presets of a command's settings; only `nanonet train` has any."""
    return PRESETS if config is TrainConfig else {}


def expand(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a preset under those that the user gave.

    A setting of the preset that means nothing beside the given ones is left out.

    Raises:
        InputError: there is no such preset.
    """
    if name not in PRESETS:
        raise InputError(f"--preset {name}: give one of {', '.join(PRESETS)}")
    settings = PRESETS[name].settings
    known = {field.name for field in fields(TrainConfig)}
    config = TrainConfig(**{**settings, **{field: given[field] for field in given if field in known}})
    idle = {field for chosen, _, names in IDLE if chosen(config) for field in names.split()}
    return {**{field: value for field, value in settings.items() if field not in idle}, **given}


def require_texts(name: str, given: Mapping[str, Any]) -> None:
    """Refuse a preset that learns from generated texts where no unlabelled ones are given.

    Raises:
        InputError: names the command that writes them.
    """
    if not PRESETS[name].generated or given.get("unlabelled"):
        return
    shared = [field for field in SHARED if given.get(field)]
    flags = "".join(f" --{field.replace('_', '-')} {shlex.quote(str(given[field]))}" for field in shared)
    data = shlex.quote(given.get("data") or "DIR")
    raise InputError(
        f"--preset {name}: --unlabelled is missing; give it the file that this writes: "
        f"nanonet generate --model gpt2 --labelled {data}{flags} --count 20000 --output generated.jsonl"
    )


def flags_of(name: str) -> str:
    """The flags that a preset stands for, as a user writes them."""
    return " ".join(f"--{field.replace('_', '-')} {value}" for field, value in PRESETS[name].settings.items())
