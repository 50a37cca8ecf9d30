"""The frozen teacher: soft labels of every training row, made once and stored in the run's folder.

Its embeddings come from an encoder (encoder.py), pretrained or tuned on the labels. Its soft labels come from a rule of
soft_labels.py over these embeddings; a linear head, fitted to the rule's labels, scores all other rows.
N rows, D features, C classes.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from nanonet.config.settings import TeacherSettings
from nanonet.errors import InputError
from nanonet.files import apply_umask
from nanonet.models.load import load_encoder, quiet
from nanonet.teacher.encoder import Encoder
from nanonet.teacher.neighbours import neighbour_graph
from nanonet.teacher.selection import Choice
from nanonet.teacher.soft_labels import (
    INVERSE_REGULARISATION,
    Array,
    Embedding,
    Labels,
    calibrate_confidence,
    classify,
    diffuse,
    linear_head,
    propagate,
    self_train,
)
from nanonet.tensor_file import folder_digest, load_tensors, save_tensors

NAME = "targets.safetensors"
TUNED_ENCODER = "teacher"  # folder of the tuned encoder, until the run is finished
VERSION = 9  # of the teacher's files and of how it is made: raised where a change makes other ones of the same input
MOST_CONFIDENT = 0.5  # the share of the rows of each predicted class whose pseudo-labels the encoder is tuned on


@dataclass(frozen=True, eq=False)
class FrozenTeacher:
    """soft_labels (N,C): logits of every row. embedding (N,D) float16, or (0,D) if no relation loss needs it.
    weight (C,D), bias (C,): the head that scores embeddings of other rows.
    probe_weight, probe_bias: the linear probe, a logistic regression on the labelled rows' pretrained embeddings, which
    a student should beat.
    encoder_digest: of the tuned encoder's folder, "" if the encoder is not tuned

    Where the soft labels are not made from embeddings (`teacher_of_logits`), all tensors but the first are empty."""

    soft_labels: Tensor
    embedding: Tensor
    weight: Tensor
    bias: Tensor
    probe_weight: Tensor
    probe_bias: Tensor
    choice: Choice
    encoder_digest: str = ""

    def logits(self, embedding: Tensor) -> Tensor:
        """(N,D) -> (N,C)"""
        return embedding @ self.weight.T + self.bias

    def linear_probe(self, embedding: Tensor) -> Tensor:
        """(N,D) by the pretrained encoder -> (N,C)"""
        return embedding @ self.probe_weight.T + self.probe_bias


def apply_rule(
    choice: Choice, embedding: Embedding, label: Labels, classes: int, uniform_prior: bool
) -> tuple[Array, LogisticRegression]:
    """Probabilities (N,C) of every row by the chosen rule, and a classifier fitted to the labels that it gives."""
    if choice.rule in ("self_training", "diffusion"):
        classifier = self_train(embedding, label)
    else:
        classifier = classify(embedding, label, choice.inverse_regularisation)
    if choice.rule in ("classifier", "self_training"):
        return classifier.predict_proba(embedding), classifier
    graph = neighbour_graph(embedding)
    if choice.rule == "diffusion":
        p = diffuse(graph, classifier.predict_proba(embedding))
    else:
        p = propagate(graph, label, classes, uniform_prior)
    return p, classify(embedding, np.where(label >= 0, label, p.argmax(1)), choice.inverse_regularisation)


def pseudo_labels(p: Array, label: Labels) -> Labels:
    """Labels (N,) of the labelled rows and of the most confident rows of each class of p (N,C), else -100."""
    predicted, found = p.argmax(1), label.copy()
    for c in range(p.shape[1]):
        rows = np.flatnonzero((predicted == c) & (label < 0))
        most_confident = rows[np.argsort(-p[rows, c], kind="stable")[: int(MOST_CONFIDENT * len(rows))]]
        found[most_confident] = c
    return found


def teacher_of_embeddings(
    settings: TeacherSettings, choice: Choice, embedding: Tensor, label: Tensor, classes: int, pretrained: Tensor
) -> FrozenTeacher:
    """The teacher that the chosen rule makes of embeddings.

    embedding: (N,D) float32, L2-normalised; label: (N,) int64, -100 where unlabelled.
    pretrained: embeddings of the labelled rows by the pretrained encoder, for the linear probe.
    """
    y = label.numpy()
    p, head = apply_rule(choice, embedding.numpy(), y, classes, settings.uniform_prior)
    logits = torch.from_numpy(np.log(np.maximum(p, 1e-12))).float()
    soft_labels = calibrate_confidence(logits, choice.cv_accuracy) * settings.sharpen
    probe = classify(pretrained.numpy(), y[y >= 0], INVERSE_REGULARISATION)
    stored = embedding.half() if settings.store_embedding else embedding[:0].half()
    return FrozenTeacher(soft_labels, stored, *linear_head(head), *linear_head(probe), choice)


def teacher_of_logits(
    settings: TeacherSettings, rule: str, logits: Tensor, label: Tensor, own: Tensor
) -> FrozenTeacher:
    """The teacher whose soft labels are there already.

    Where rows of its `own` have labels, its accuracy on them is measured, and its confidence set to it.
    logits: (N,C) float32; label: (N,) int64, -100 where unlabelled; own: (N,) bool, the rows that it has not got from
    the labels.
    """
    tested = own & (label >= 0)
    correct = (logits.argmax(-1) == label)[tested].double()
    choice = Choice(rule, 0.0, {rule: float(correct.mean())} if len(correct) else {}, len(correct))
    soft_labels = calibrate_confidence(logits, choice.cv_accuracy) * settings.sharpen
    none = torch.empty(0, 0)
    return FrozenTeacher(soft_labels, none, none, none, none, none, choice)


def save_teacher(folder: Path, teacher: FrozenTeacher, key: str) -> None:
    """Write `folder`/targets.safetensors, after the tuned encoder if there is one.

    key: cache.fingerprint of the teacher's input
    """
    tensors = {name: value for name, value in vars(teacher).items() if isinstance(value, Tensor)}
    encoder = folder / TUNED_ENCODER
    metadata = {
        "version": str(VERSION),
        "choice": json.dumps(vars(teacher.choice)),
        "key": key,
        "encoder": folder_digest(encoder) if encoder.is_dir() else "",
    }
    save_tensors(folder / NAME, tensors, metadata)


def load_teacher(folder: Path, key: str) -> FrozenTeacher:
    """Read what `save_teacher` wrote.

    Raises:
        InputError: it is damaged, of another version, or was made of other texts, labels or weights than `key` says.
    """
    cure = "delete it, and its copy in --teacher-cache"
    tensors, metadata = load_tensors(folder / NAME, cure)
    if metadata.get("version") != str(VERSION):
        raise InputError(f"{folder / NAME}: written by another version of nanonet; {cure}")
    if metadata["key"] != key:
        raise InputError(
            f"--resume: the run in {folder} was begun with other texts, labels or teacher weights; give the same ones,"
            " or --overwrite to start again"
        )
    choice = Choice(**json.loads(metadata["choice"]))
    return FrozenTeacher(**tensors, choice=choice, encoder_digest=metadata["encoder"])


def save_tuned_encoder(folder: Path, encoder: Encoder) -> None:
    """Write a tuned encoder, before `save_teacher` writes its digest."""
    with quiet():
        encoder.model.save_pretrained(folder / TUNED_ENCODER)
    apply_umask(folder / TUNED_ENCODER)


def load_tuned_encoder(folder: Path, teacher: FrozenTeacher, pretrained: Encoder) -> Encoder:
    """The tuned encoder of `teacher`, which lies beside it in `folder`.

    Raises:
        InputError: it is gone, or damaged.
    """
    path = folder / TUNED_ENCODER
    cure = f"delete {folder}, a run or an entry of --teacher-cache"
    if not (path / "config.json").is_file():
        raise InputError(f"{path}: the tuned teacher is gone; {cure}")
    if folder_digest(path) != teacher.encoder_digest:
        raise InputError(f"{path}: damaged (its bytes do not match their digest); {cure}")
    return replace(pretrained, model=load_encoder(str(path)))
