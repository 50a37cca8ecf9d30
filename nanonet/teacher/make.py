"""How a run's frozen teacher is made: tuned on the labels, its rule chosen, tuned on its most confident pseudo-labels.

N rows, D features.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from nanonet.config.settings import TeacherSettings
from nanonet.data.batches import Encoded
from nanonet.data.prepare import RunData
from nanonet.progress import Progress
from nanonet.teacher.encoder import Encoder, tuning_steps
from nanonet.teacher.frozen import FrozenTeacher, apply_rule, pseudo_labels, teacher_of_embeddings
from nanonet.teacher.selection import Choice, Retune, choose
from nanonet.teacher.soft_labels import Labels

Tune = Callable[[Encoder, Tensor, int, str], Encoder]  # encoder, labels (N,), steps, name of the stage


def make_frozen_teacher(
    settings: TeacherSettings, pretrained: Encoder, data: RunData, progress: Progress
) -> tuple[FrozenTeacher, Encoder]:
    """Make the frozen teacher and its encoder, tuned on the labels, then on the most confident pseudo-labels of each
    class."""
    rows, label, classes = data.rows, data.label, len(data.classes)
    labelled = int((label >= 0).sum())
    tune = partial(_tune, rows, settings.seed, progress)
    encoder, retune = pretrained, None
    if settings.tuned:
        encoder = tune(pretrained, label, tuning_steps(settings.max_steps, labelled), "tuning on the labels")
        retune = _retune(tune, pretrained, rows, settings.max_steps)
    embedding = embed(progress, encoder, rows, "embedding the texts")
    choice = _choose(settings, embedding, label, classes, retune, progress)
    if settings.tuned and (label < 0).any():
        p, _ = apply_rule(choice, embedding.numpy(), label.numpy(), classes, settings.uniform_prior)
        found = torch.from_numpy(pseudo_labels(p, label.numpy()))
        encoder = tune(encoder, found, -(-settings.max_steps // 2), "tuning on pseudo-labels")
        embedding = embed(progress, encoder, rows, "embedding them again")
    pretrained_embedding = pretrained.embed(rows[range(labelled)]) if settings.tuned else embedding[label >= 0]
    teacher = teacher_of_embeddings(settings, choice, embedding, label, classes, pretrained_embedding)
    return teacher, encoder


def embed(progress: Progress, encoder: Encoder, rows: Encoded, stage: str) -> Tensor:
    """Embeddings (N,D) of the rows, as a stage of `progress`."""
    with progress.stage(stage, len(rows)) as tick:
        return encoder.embed(rows, tick)


def _tune(
    rows: Encoded, seed: int, progress: Progress, encoder: Encoder, label: Tensor, steps: int, stage: str
) -> Encoder:
    """`encoder` tuned on the rows that have a label (N,) of at least 0."""
    labelled = (label >= 0).nonzero()[:, 0]
    with progress.stage(stage, steps) as tick:
        return encoder.tuned(rows[labelled.tolist()], label[labelled], steps, seed, tick)


def _retune(tune: Tune, pretrained: Encoder, rows: Encoded, max_steps: int) -> Retune:
    """What `choose` calls in each fold: an encoder tuned on the fold's visible labels embeds the trial rows."""

    def retune(visible: Labels, trial: Labels) -> Tensor:
        label = torch.full((len(rows),), -100)
        label[trial] = torch.from_numpy(visible)
        steps = tuning_steps(max_steps, int((label >= 0).sum()))
        return tune(pretrained, label, steps, "tuning for a fold").embed(rows[trial.tolist()])

    return retune


def _choose(
    settings: TeacherSettings,
    embedding: Tensor,
    label: Tensor,
    classes: int,
    retune: Retune | None,
    progress: Progress,
) -> Choice:
    with progress.stage("choosing the rule", 1) as tick:
        x, y = embedding.numpy(), label.numpy()
        choice = choose(x, y, classes, settings.targets, settings.seed, settings.uniform_prior, retune)
        tick(1, choice.rule)
    return choice
