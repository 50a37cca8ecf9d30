"""How a run's frozen teacher is made: tuned on the labels, its rule chosen, tuned on its most confident pseudo-labels.

The processes of a run share the work. Whole tunings that do not wait for one another, on the labels and on those of
each fold, run in different processes; the rows of any other tuning, and of the embeddings, are divided.
N rows, n rows of the trial, D features.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from nanonet.config.settings import TeacherSettings
from nanonet.data.batches import Encoded
from nanonet.data.prepare import RunData
from nanonet.processes import ALONE
from nanonet.progress import Progress
from nanonet.teacher.encoder import Encoder, tuning_steps
from nanonet.teacher.frozen import FrozenTeacher, apply_rule, pseudo_labels, teacher_of_embeddings
from nanonet.teacher.selection import Choice, choose, expected_accuracy, make_trial
from nanonet.teacher.soft_labels import Embedding, Labels

Tune = Callable[[Encoder, Tensor, int, str], Encoder]  # encoder, labels (N,), steps, name of the stage


def make_frozen_teacher(
    settings: TeacherSettings, pretrained: Encoder, data: RunData, progress: Progress
) -> tuple[FrozenTeacher | None, Encoder]:
    """Make the frozen teacher, None in all processes but the first, and its encoder, tuned on the labels, then on the
    most confident pseudo-labels of each class."""
    processes = pretrained.processes
    rows, label, classes = data.rows, data.label, len(data.classes)
    labelled = int((label >= 0).sum())
    tune = partial(_tune, rows, settings.seed, progress)
    encoder, tuned = pretrained, list[Embedding]()
    if settings.tuned:
        encoder, tuned = _tune_side_by_side(settings, tune, pretrained, rows, label, classes, progress)
    embedding = embed(progress, encoder, rows, "embedding the texts")
    choice, said = processes.from_first(lambda: _choose(settings, embedding, label, classes, tuned, progress))
    if settings.tuned and (label < 0).any():
        found = processes.from_first(lambda: _pseudo_labels(settings, choice, embedding, label, classes))
        encoder = tune(encoder, found, -(-settings.max_steps // 2), "tuning on pseudo-labels")
        embedding = embed(progress, encoder, rows, "embedding them again")
    pretrained_embedding = pretrained.embed(rows[range(labelled)]) if settings.tuned else embedding[label >= 0]
    if not processes.is_first:
        return None, encoder
    teacher = teacher_of_embeddings(settings, choice, embedding, label, classes, pretrained_embedding)
    return replace(teacher, choice=_with_expected(settings, choice, said, teacher.soft_labels, label, classes)), encoder


def _with_expected(
    settings: TeacherSettings, choice: Choice, said: list[Labels], soft_labels: Tensor, label: Tensor, classes: int
) -> Choice:
    """The choice with the accuracy to expect of the soft labels (N,C) that were made by it."""
    assert choice.cv_accuracy is not None, "the folds have labels"
    labelled = int((label >= 0).sum())
    unlabelled = make_trial(label.numpy(), classes, settings.seed, settings.tuned).rows[labelled:]
    final = soft_labels[unlabelled].argmax(-1).numpy()
    return replace(choice, expected=expected_accuracy(choice.cv_accuracy, [s[labelled:] for s in said], final))


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


def _tune_side_by_side(
    settings: TeacherSettings,
    tune: Tune,
    pretrained: Encoder,
    rows: Encoded,
    label: Tensor,
    classes: int,
    progress: Progress,
) -> tuple[Encoder, list[Embedding]]:
    """The encoder tuned on the labels; and of each fold the trial's embeddings (n,D) by one tuned on its labels."""
    processes, alone = pretrained.processes, replace(pretrained, processes=ALONE)
    trial = make_trial(label.numpy(), classes, settings.seed, tuned=True)
    jobs = list(range(1 + len(trial.label)))
    encoder = alone if processes.is_first else alone.copied()
    tuned: dict[int, Embedding] = {}
    for job in processes.part(jobs):
        known, stage = label, "tuning on the labels"
        if job:
            known, stage = torch.full((len(rows),), -100), "tuning for a fold"
            known[trial.rows] = torch.from_numpy(trial.label[job - 1])
        steps = tuning_steps(settings.max_steps, int((known >= 0).sum()))
        found = tune(alone, known, steps, stage)
        if job:
            embedding = embed(progress, found, rows[trial.rows.tolist()], "embedding for a fold")
            tuned[job] = embedding.numpy()
        else:
            encoder = found
    encoder = encoder.take_from(0, processes)
    everywhere = {job: array for part in processes.gather_objects(tuned) for job, array in part.items()}
    return encoder, [everywhere[job] for job in jobs[1:]]


def _pseudo_labels(settings: TeacherSettings, choice: Choice, embedding: Tensor, label: Tensor, classes: int) -> Tensor:
    p, _ = apply_rule(choice, embedding.numpy(), label.numpy(), classes, settings.uniform_prior)
    return torch.from_numpy(pseudo_labels(p, label.numpy()))


def _choose(
    settings: TeacherSettings,
    embedding: Tensor,
    label: Tensor,
    classes: int,
    tuned: list[Embedding],
    progress: Progress,
) -> tuple[Choice, list[Labels]]:
    with progress.stage("choosing the rule", 1) as tick:
        x, y = embedding.numpy(), label.numpy()
        choice, said = choose(x, y, classes, settings.targets, settings.seed, settings.uniform_prior, tuned)
        tick(1, choice.rule)
    return choice, said
