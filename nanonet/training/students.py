"""The training stage of a run: its students, and its online teacher, with cached backbone features where they help."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from nanonet.cohort.cnn import LEARNING_RATE as CNN_LEARNING_RATE
from nanonet.cohort.model import Cohort
from nanonet.cohort.static import LEARNING_RATE as STATIC_LEARNING_RATE
from nanonet.teacher import cache as teacher_cache
from nanonet.training.backbone import (
    BackboneFeatures,
    cached_backbone_features,
    compute_backbone_features,
    open_backbone_features,
)
from nanonet.training.checkpoint import Checkpoints
from nanonet.training.frozen_teacher import Teacher
from nanonet.training.loop import fit
from nanonet.training.run import Run, build_online, build_students
from nanonet.training.training_set import OnlineTeacher, TrainingSet

FROM_SCRATCH = {"cnn": CNN_LEARNING_RATE, "static": STATIC_LEARNING_RATE}


def check_cached_features(run: Run) -> None:
    """Read this run's backbone features in the cache: damaged ones are found before a run is overwritten for them.

    Raises:
        InputError: they are damaged.
    """
    for model in filter(None, (run.cohort, run.online)):
        path = _features_path(run, model)
        if path and path.exists():
            open_backbone_features(path)


def start_from_teacher(run: Run, teacher: Teacher) -> Run:
    """The run with the models that start from the frozen teacher's encoder: its online teacher, and, where the user
    wants it, the students.

    A trained classifier that gives its own logits has no other layers than those that its students have already.
    """
    settings, frozen, encoder = run.settings, teacher.frozen, teacher.encoder
    if encoder is None:
        return run
    if settings.cohort.tuned_init:
        run = replace(run, cohort=build_students(settings, encoder.model, run.mapping, run.data.classes))
        run.vocabulary.cut(run.cohort)
    if settings.teacher.online:
        head = frozen.weight, frozen.bias
        online = build_online(settings, encoder.model, encoder.pooling, *head, run.data.classes)
        run.vocabulary.cut(online)
        run = replace(run, online=online)
    return run


def train_students(run: Run, teacher: Teacher) -> None:
    """Train the cohort in place, and the online teacher beside it."""
    settings, general = run.settings, run.settings.general
    online, rows = _online_teacher(run, teacher), _training_set(run, teacher)
    optimizer = settings.optimizer
    if settings.cohort.student in FROM_SCRATCH and not optimizer.learning_rate:
        optimizer = replace(optimizer, learning_rate=FROM_SCRATCH[settings.cohort.student])
    if general.tensorboard:
        run.accelerator.init_trackers("tensorboard")
    run.ensure_ours()
    with run.progress.stage("training the students", optimizer.steps) as tick:
        fit(
            run.cohort,
            run.views,
            rows,
            online,
            loss=settings.loss,
            optimizer=optimizer,
            batches=settings.batches,
            accelerator=run.accelerator,
            checkpoints=Checkpoints(run.folder, run.digest, general.save_every, general.resume, run.ensure_ours),
            metrics=run.folder / "metrics.jsonl",
            report=partial(_report, run, tick),
        )
    for tracker in run.accelerator.trackers:  # end_training() would also end the process group, which is still needed
        tracker.finish()


def _online_teacher(run: Run, teacher: Teacher) -> OnlineTeacher | None:
    if run.online is None:
        return None
    features = _backbone_features(run, run.online, "the teacher's frozen layers")
    return OnlineTeacher(run.online, teacher.frozen.choice.cv_accuracy, features)


def _training_set(run: Run, teacher: Teacher) -> TrainingSet:
    viewed = set(run.views) != {"none"}  # a view changes the backbone's output
    return TrainingSet(
        encoded=run.data.rows,
        label=run.data.label,
        soft_labels=teacher.frozen.soft_labels,
        pad_id=run.pad_id,
        embedding=teacher.frozen.embedding if run.settings.loss.relation_weight else None,
        backbone=None if viewed else _backbone_features(run, run.cohort, "the students' frozen layers"),
    )


def _report(run: Run, tick: Callable[[int, str], None], record: dict[str, Any]) -> None:
    """Show a step on the terminal and, if the user asks for it, in TensorBoard."""
    tick(1, f"loss {record['loss']:.4f}, {record['rows_per_s']:.0f} rows/s")
    if run.settings.general.tensorboard:
        numbers = {name: value for name, value in record.items() if isinstance(value, float)}
        run.accelerator.log(numbers, step=record["step"])


def _features_path(run: Run, model: Cohort) -> Path | None:
    """The file of a cohort's backbone features in the cache; None without a cache or where layers are trained."""
    if run.cache is None or run.settings.cohort.tuning != "head":
        return None
    return run.cache / teacher_cache.backbone_features_name(model, run.data.rows, run.settings.general.precision)


def _backbone_features(run: Run, model: Cohort, stage: str) -> BackboneFeatures | None:
    """A cohort's backbone features of the training rows, if it trains heads alone, on more rows than there are."""
    batches = run.settings.batches
    visits = run.settings.optimizer.steps * (batches.labelled_batch + batches.unlabelled_batch)
    if run.settings.cohort.tuning != "head" or visits < len(run.data.rows):
        return None

    def make() -> BackboneFeatures | None:
        with run.progress.stage(stage, len(run.data.rows)) as tick, run.accelerator.autocast():
            model.to(run.device)
            return compute_backbone_features(model, run.data.rows, run.pad_id, run.device, tick, run.processes)

    path = _features_path(run, model)
    return make() if path is None else cached_backbone_features(path, make, run.processes)
