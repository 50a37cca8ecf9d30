"""The training loop: steps (step.py), a line of metrics for each, checkpoints."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import Tensor

from nanonet.cohort.model import Cohort
from nanonet.cohort.views import set_views
from nanonet.config.settings import BatchSettings, LossSettings, OptimizerSettings
from nanonet.data.batches import BatchPlan
from nanonet.losses import DistillLoss, balanced_weight
from nanonet.training.checkpoint import Checkpoints, restore, save
from nanonet.training.metrics import Metrics
from nanonet.training.optimizer import LEARNING_RATE, TEACHER_LEARNING_RATE, learning_rate, make_optimizer
from nanonet.training.step import StepResult, Trainer, train_step
from nanonet.training.training_set import OnlineTeacher, TrainingSet


def fit(
    cohort: Cohort,
    views: list[str],
    rows: TrainingSet,
    online: OnlineTeacher | None,
    *,
    loss: LossSettings,
    optimizer: OptimizerSettings,
    batches: BatchSettings,
    accelerator: Accelerator,
    checkpoints: Checkpoints,
    metrics: Path,
    report: Callable[[dict], Any] = lambda record: None,
) -> None:
    """Train `cohort` in place; the record of each step is a line of the file `metrics`, also given to `report`."""
    set_views(cohort, views)
    trainer = _trainer(cohort, views, rows, online, loss, optimizer, batches, accelerator)
    start = restore(checkpoints, trainer.trained, accelerator, optimizer.steps)
    log = Metrics(metrics, start, accelerator.is_main_process)
    for step in range(start, optimizer.steps):
        began = time.perf_counter()
        record = _record(trainer, step, train_step(trainer, step), began)
        log.write(record)
        report(record)
        if checkpoints.every and (step + 1) % checkpoints.every == 0 and step + 1 < optimizer.steps:
            log.flush()
            save(checkpoints, trainer.trained, accelerator, step + 1)
    log.close()
    cohort.eval()


def _trainer(
    cohort: Cohort,
    views: list[str],
    rows: TrainingSet,
    online: OnlineTeacher | None,
    loss: LossSettings,
    optimizer: OptimizerSettings,
    batches: BatchSettings,
    accelerator: Accelerator,
) -> Trainer:
    """The models and optimizers as `accelerator` prepares them, the loss and the plan of the batches."""
    model, students_optimizer = accelerator.prepare(cohort, make_optimizer(cohort, optimizer.weight_decay))
    trained = {"students": (cohort, students_optimizer)}
    peaks = {"students": optimizer.learning_rate or LEARNING_RATE[cohort.tuning]}
    teacher = None
    if online:
        teacher, teacher_optimizer = accelerator.prepare(
            online.model, make_optimizer(online.model, optimizer.weight_decay)
        )
        trained["teacher"] = (online.model, teacher_optimizer)
        peaks["teacher"] = TEACHER_LEARNING_RATE[online.model.tuning]
    count = rows.labelled
    weight = balanced_weight(rows.label, cohort.model.config.num_labels) if loss.class_weight == "balanced" else None  # type: ignore[arg-type]
    plan = BatchPlan(
        rows.label[:count].tolist(),
        rows.encoded.lengths[count:],
        batches.labelled_batch,
        batches.unlabelled_batch,
        batches.seed,
    )
    return Trainer(
        loss=loss,
        optimizer=optimizer,
        batches=batches,
        accelerator=accelerator,
        rows=rows,
        views=views,
        cohort=cohort,
        model=model,
        online=online,
        teacher=teacher,
        trained=trained,
        peaks=peaks,
        criterion=_criterion(loss, weight),
        teacher_criterion=DistillLoss(peers_weight=0.0, class_weight=weight),
        plan=plan,
    )


def _criterion(loss: LossSettings, class_weight: Tensor | None) -> DistillLoss:
    """The loss of the students."""
    return DistillLoss(
        loss.ce_weight,
        loss.teacher_weight,
        loss.peers_weight,
        temperature=loss.temperature,
        divergence=loss.divergence,
        beta=loss.beta,
        weight_rows=loss.confidence,
        class_weight=class_weight,
    )


def _record(trainer: Trainer, step: int, result: StepResult, began: float) -> dict[str, Any]:
    """The line of metrics.jsonl that describes a step; reading the loss waits for the device."""
    record = {
        "step": step,
        "loss": round(result.loss.item(), 6),
        **{name: _rounded(result.means[i]) for i, name in enumerate(("ce", "teacher", "peers"))},
        "grad_norm": _rounded(result.norms),
        "learning_rate": learning_rate(trainer.optimizer, step, trainer.peaks["students"]),
        "rows_per_s": round(result.rows / (time.perf_counter() - began), 1),
    }
    if trainer.online:
        record["teacher_ce"] = round(result.teacher_loss.item(), 6)
    if result.relation is not None:
        record["relation"] = _rounded(result.relation)
    return record


def _rounded(values: Tensor) -> list[float]:
    return [round(value, 6) for value in values.tolist()]
