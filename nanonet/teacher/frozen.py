"""The frozen teacher: what the students are told about every row, made once and kept in the run's folder.

Its embeddings come from an encoder (encoder.py), as it is or tuned on the labels. Its soft targets come from a rule of
targets.py over these embeddings; a linear head that says the same scores rows that were not among them.
N rows, D features, C classes.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from nanonet.config.train import TrainConfig
from nanonet.errors import InputError
from nanonet.files import atomic_write
from nanonet.teacher.selection import Choice
from nanonet.teacher.soft_labels import (
    STRENGTH,
    Array,
    calibrate_confidence,
    classify,
    diffuse,
    linear,
    neighbour_graph,
    propagate,
    self_train,
)

NAME = "targets.safetensors"
SURE = 0.5  # of the rows that the teacher gives to a class, those it is tuned on further


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


def spread(
    config: TrainConfig, choice: Choice, x: Array, label: NDArray[np.int64], classes: int
) -> tuple[Array, LogisticRegression]:
    """Probabilities (N,C) of every row by the rule that was chosen, and a classifier that says the same."""
    head = (
        self_train(x, label) if choice.rule in ("self_training", "diffusion") else classify(x, label, choice.strength)
    )
    if choice.rule in ("classifier", "self_training"):
        return head.predict_proba(x), head
    graph = neighbour_graph(x)
    if choice.rule == "diffusion":
        p = diffuse(graph, head.predict_proba(x))
    else:
        p = propagate(graph, label, classes, config.uniform_prior)
    # the classifier that scores new rows learns what was found for these
    return p, classify(x, np.where(label >= 0, label, p.argmax(1)), choice.strength)


def surest(p: Array, label: NDArray[np.int64]) -> NDArray[np.int64]:
    """Labels (N,) of the labelled rows and of the surest SURE of those that p (N,C) gives to each class, else -100."""
    guess, found = p.argmax(1), label.copy()
    for c in range(p.shape[1]):
        rows = np.flatnonzero((guess == c) & (label < 0))
        best = rows[np.argsort(-p[rows, c], kind="stable")[: int(SURE * len(rows))]]
        found[best] = c
    return found


def make_teacher(
    config: TrainConfig, choice: Choice, embedding: Tensor, label: Tensor, classes: int, few: Tensor
) -> FrozenTeacher:
    """Make the soft targets of every row by the rule that was chosen.

    embedding: (N,D) float32, L2-normalised; label: (N,) int64, -100 where unlabelled.
    few: the labelled rows as the pretrained encoder embeds them, for the floor.
    """
    y = label.numpy()
    p, head = spread(config, choice, embedding.double().numpy(), y, classes)
    logits = torch.from_numpy(np.log(np.maximum(p, 1e-12))).float()
    soft = calibrate_confidence(logits, choice.cv_accuracy) * config.sharpen
    floor = classify(few.double().numpy(), y[y >= 0], STRENGTH)
    kept = embedding.half() if config.relation_weight else embedding[:0].half()
    return FrozenTeacher(soft, kept, *linear(head), *linear(floor), choice)


def save_teacher(folder: Path, teacher: FrozenTeacher, key: str) -> None:
    """Write `folder`/targets.safetensors. key: what it was made of, by kept.fingerprint."""
    tensors = {k: v.contiguous() for k, v in vars(teacher).items() if isinstance(v, Tensor)}
    with atomic_write(folder / NAME) as temporary:
        save_file(tensors, temporary, {"choice": json.dumps(vars(teacher.choice)), "key": key})


def load_teacher(folder: Path, key: str) -> FrozenTeacher:
    """Read what `save_teacher` wrote.

    Raises:
        InputError: it is damaged, or was made of other texts, labels or weights than `key` says.
    """
    try:
        with safe_open(folder / NAME, "pt") as file:
            choice, of = Choice(**json.loads(file.metadata()["choice"])), file.metadata()["key"]
            teacher = FrozenTeacher(**{name: file.get_tensor(name) for name in file.keys()}, choice=choice)  # noqa: SIM118
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{folder / NAME}: damaged ({error}); delete it, and its copy in --teacher-cache") from error
    if of != key:
        raise InputError(
            f"--resume: the run in {folder} was begun with other texts, labels or teacher weights; give the same ones,"
            " or --overwrite to start again"
        )
    return teacher
