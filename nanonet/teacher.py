"""The frozen teacher: what the students are told about every row, made once and kept in the run's folder.

Its embeddings come from an encoder (encoder.py), as it is, tuned on the labels, or both. Its soft targets come from a
rule of targets.py over these embeddings; a linear head that says the same scores rows that were not among them.
N rows, D features, C classes.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from nanonet.choice import Choice
from nanonet.config import InputError, TrainConfig
from nanonet.targets import STRENGTH, classify, diffuse, linear, neighbour_graph, propagate, self_train, soften

NAME = "targets.safetensors"


@dataclass(frozen=True, eq=False)
class FrozenTeacher:
    """soft (N,C): logits of every row. embedding (N,D) float16, or (0,D) where nothing is made of it later.
    weight (C,D), bias (C,): the head that scores other rows' embeddings.
    floor_weight, floor_bias: the logistic regression on the labelled rows as the pretrained encoder embeds them, which
    a student has to beat."""

    soft: Tensor
    embedding: Tensor
    weight: Tensor
    bias: Tensor
    floor_weight: Tensor
    floor_bias: Tensor
    choice: Choice

    def logits(self, embedding: Tensor) -> Tensor:
        """(N,D) -> (N,C)"""
        return embedding @ self.weight.T + self.bias

    def floor(self, embedding: Tensor) -> Tensor:
        """(N,D), of the pretrained encoder as it is -> (N,C)"""
        return embedding @ self.floor_weight.T + self.floor_bias


def make_teacher(
    config: TrainConfig, choice: Choice, embedding: Tensor, label: Tensor, classes: int, few: Tensor
) -> FrozenTeacher:
    """Make the soft targets of every row by the rule that was chosen.

    embedding: (N,D) float32, L2-normalised, of the kind that was chosen; label: (N,) int64, -100 where unlabelled.
    few: the labelled rows as the pretrained encoder embeds them, for the floor.
    """
    x, y = embedding.double().numpy(), label.numpy()
    graph = neighbour_graph(x) if choice.rule in ("diffusion", "propagation") else None
    if choice.rule in ("self_training", "diffusion"):
        head = self_train(x, y)
    else:
        head = classify(x, y, choice.strength)
    if graph is not None:
        p = (
            diffuse(graph, head.predict_proba(x))
            if choice.rule == "diffusion"
            else propagate(graph, y, classes, config.uniform_prior)
        )
        # the classifier that scores new rows learns what was found for these
        head = classify(x, np.where(y >= 0, y, p.argmax(1)), choice.strength)
    weight, bias = linear(head)
    logits = embedding @ weight.T + bias if graph is None else torch.from_numpy(np.log(np.maximum(p, 1e-12))).float()
    soft = soften(logits, choice.trust) * config.sharpen
    floor = classify(few.double().numpy(), y[y >= 0], STRENGTH)
    kept = embedding.half() if config.relation_weight else embedding[:0].half()
    return FrozenTeacher(soft, kept, weight, bias, *linear(floor), choice)


def save_teacher(folder: Path, teacher: FrozenTeacher) -> None:
    """Write `folder`/targets.safetensors, to a temporary name first."""
    tensors = {k: v.contiguous() for k, v in vars(teacher).items() if isinstance(v, Tensor)}
    temporary = folder / f".{NAME}.{os.getpid()}"
    save_file(tensors, temporary, {"choice": json.dumps(vars(teacher.choice))})
    temporary.rename(folder / NAME)


def load_teacher(folder: Path) -> FrozenTeacher:
    """Read what `save_teacher` wrote.

    Raises:
        InputError: it is damaged.
    """
    try:
        with safe_open(folder / NAME, "pt") as file:
            choice = Choice(**json.loads(file.metadata()["choice"]))
            return FrozenTeacher(**{name: file.get_tensor(name) for name in file.keys()}, choice=choice)  # noqa: SIM118
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{folder / NAME}: damaged ({error}); delete it, and its copy in --teacher-cache") from error
