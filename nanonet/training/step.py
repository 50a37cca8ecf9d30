"""One optimizer step of the students, and of their online teacher.

Everything random in a step is a function of (seed, step): the rows, the views, the dropout. So a checkpoint stores
weights and optimizer state only, and a killed run that is resumed ends with the weights of one that was not.

A step's rows are one global batch. It is cut over processes and micro-batches, and every part divides by the counts
of the global batch: any number of processes and micro-batches computes the same step.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from nanonet.cohort.model import Cohort
from nanonet.cohort.views import view_batch
from nanonet.config.settings import BatchSettings, LossSettings, OptimizerSettings
from nanonet.data.batches import BatchPlan, collate
from nanonet.losses import DistillLoss, relation_loss
from nanonet.teacher.soft_labels import calibrate_confidence
from nanonet.training.backbone import BackboneFeatures
from nanonet.training.checkpoint import Trained
from nanonet.training.optimizer import clip_per_student, learning_rate, step_all
from nanonet.training.training_set import OnlineTeacher, TrainingSet


@dataclass(frozen=True, eq=False)
class Trainer:
    """What every step uses.

    model, teacher: the cohort and the online teacher as `accelerator.prepare` returns them
    trained: {"students", "teacher": (module, optimizer)}; peaks: their peak learning rates
    """

    loss: LossSettings
    optimizer: OptimizerSettings
    batches: BatchSettings
    accelerator: Accelerator
    rows: TrainingSet
    views: list[str]
    cohort: Cohort
    model: Any
    online: OnlineTeacher | None
    teacher: Any
    trained: Trained
    peaks: dict[str, float]
    criterion: DistillLoss
    teacher_criterion: DistillLoss
    plan: BatchPlan

    @property
    def parts(self) -> int:
        """Parts of a step: processes times micro-batches."""
        return self.accelerator.num_processes * self.batches.gradient_accumulation

    def part(self, micro_batch: int) -> slice:
        """The rows of a step that are this process's part of a micro-batch."""
        world = self.accelerator.num_processes
        return slice(micro_batch * world + self.accelerator.process_index, None, self.parts)


@dataclass(frozen=True, eq=False)
class MicroBatch:
    """B rows of a step: row numbers, ids and mask (B,L), label (B,), soft labels (B,C) and embedding (B,D) or None.

    soft_labels: what the students learn from; frozen: the frozen teacher's, which their online teacher learns from
    last: the last of its step, whose gradients the processes exchange
    """

    rows: list[int]
    ids: Tensor
    mask: Tensor
    label: Tensor
    soft_labels: Tensor
    frozen: Tensor
    embedding: Tensor | None
    last: bool


@dataclass(frozen=True, eq=False)
class StepResult:
    """What a step measured, over all processes.

    rows: their number; means: (3,K) of ce, teacher and peers; norms: (K,) of the students' gradients before clipping
    """

    rows: int
    loss: Tensor
    means: Tensor
    teacher_loss: Tensor
    norms: Tensor
    relation: Tensor | None


def train_step(trainer: Trainer, step: int) -> StepResult:
    """Train the students, and their online teacher, on the rows of `step`, counted from 0."""
    accelerator, device = trainer.accelerator, trainer.accelerator.device
    labelled, unlabelled = trainer.plan.rows(step)
    batch = labelled + [row + trainer.rows.labelled for row in unlabelled]
    torch.manual_seed(_step_seed(trainer, step))
    trainer.model.train()
    for name, (_, optimizer) in trainer.trained.items():
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(trainer.optimizer, step, trainer.peaks[name])
    loss, teacher_loss = torch.zeros((), device=device), torch.zeros((), device=device)
    means = torch.zeros(3, trainer.cohort.students, device=device)
    # soft terms are divided by the rows, not by their confidence: a batch of low confidence pulls less
    denominators = torch.tensor([len(labelled), len(batch)], dtype=torch.float32, device=device)
    soft_labels = online_soft_labels(trainer, trainer.online, batch) if trainer.online else None
    for i in range(trainer.batches.gradient_accumulation):
        micro_batch = _micro_batch(trainer, batch, i, soft_labels)
        part_loss, part_means, relation = _students_backward(trainer, micro_batch, step, denominators)
        loss, means = loss + part_loss, means + part_means
        if trainer.online:
            teacher_loss = teacher_loss + _teacher_backward(trainer, trainer.online, micro_batch, denominators)
    accelerator.unscale_gradients()
    norms = {
        name: clip_per_student(module.parameters(), trainer.optimizer.max_grad_norm)
        for name, (module, _) in trainer.trained.items()
    }
    step_all([optimizer.optimizer for _, optimizer in trainer.trained.values()], accelerator.scaler)
    loss, means, teacher_loss = (accelerator.reduce(t, "sum") for t in (loss, means, teacher_loss))
    return StepResult(len(batch), loss, means, teacher_loss, norms["students"], relation)


@torch.no_grad()
def online_soft_labels(trainer: Trainer, online: OnlineTeacher, batch: list[int]) -> Tensor:
    """Logits (B,C) of the online teacher for all rows of a step, in eval mode, without views, calibrated together.

    Every process computes its own rows and receives the others': the calibration is that of the global batch.
    """
    accelerator, rows = trainer.accelerator, trainer.rows
    device = accelerator.device
    classes: Any = online.model.model.config.num_labels
    logits = torch.zeros(len(batch), classes, device=device)
    online.model.eval()
    for i in range(trainer.batches.gradient_accumulation):
        part = trainer.part(i)
        ids, mask = (t.to(device) for t in collate(rows.encoded, batch[part], rows.pad_id))
        with accelerator.autocast():
            head_input = _head_input(online.backbone, batch[part], device)
            logits[part] = online.model(ids, mask, head_input=head_input).logits[0].float()
    return calibrate_confidence(accelerator.reduce(logits, "sum"), online.cv_accuracy) * trainer.loss.sharpen


def _students_backward(
    trainer: Trainer, batch: MicroBatch, step: int, denominators: Tensor
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Forward and backward of the students on a micro-batch: loss (), means (3,K), relation loss (K,), all detached."""
    device, relation = batch.ids.device, None
    with _synchronised(trainer, trainer.model, batch.last), trainer.accelerator.autocast():
        rows = torch.tensor(batch.rows, device=device)
        seed = _step_seed(trainer, step)
        viewed = view_batch(trainer.cohort, trainer.views, batch.ids, batch.mask, seed, rows)
        head_input = _head_input(trainer.rows.backbone, batch.rows, device)
        features = "" if batch.embedding is None else trainer.cohort.classifier
        output = trainer.model(**viewed, features=features, head_input=head_input)
        loss, means = trainer.criterion(
            output.logits,
            batch.soft_labels,
            batch.label,
            progress=step / trainer.optimizer.steps,
            denominators=denominators,
        )
        if batch.embedding is not None:
            relation = relation_loss(output.features, batch.embedding)
            loss = loss + trainer.loss.relation_weight * relation.sum()
    # DDP averages over the processes; the denominators are already those of all of them
    trainer.accelerator.backward(loss * trainer.accelerator.num_processes)
    return loss.detach(), means, relation


def _teacher_backward(trainer: Trainer, online: OnlineTeacher, batch: MicroBatch, denominators: Tensor) -> Tensor:
    """Forward and backward of the online teacher on a micro-batch: its loss (), detached."""
    with _synchronised(trainer, trainer.teacher, batch.last), trainer.accelerator.autocast():
        head_input = _head_input(online.backbone, batch.rows, batch.ids.device)
        logits = trainer.teacher.train()(batch.ids, batch.mask, head_input=head_input).logits
        loss, _ = trainer.teacher_criterion(logits, batch.frozen, batch.label, denominators=denominators)
    trainer.accelerator.backward(loss * trainer.accelerator.num_processes)
    return loss.detach()


def _micro_batch(trainer: Trainer, batch: list[int], i: int, online: Tensor | None) -> MicroBatch:
    """This process's rows of micro-batch i. online: soft labels of the whole step, if the teacher makes them now.

    All are copied before the forward is queued: a GPU would run a later copy only after the forward.
    """
    rows, device, part = trainer.rows, trainer.accelerator.device, trainer.part(i)
    own = batch[part]
    ids, mask = (t.to(device) for t in collate(rows.encoded, own, rows.pad_id))
    frozen = rows.soft_labels[own].to(device)
    soft_labels = frozen if online is None else online[part]
    embedding = None if rows.embedding is None else rows.embedding[own].to(device)
    last = i == trainer.batches.gradient_accumulation - 1
    return MicroBatch(own, ids, mask, rows.label[own].to(device), soft_labels, frozen, embedding, last)


def _synchronised(trainer: Trainer, model: Any, last: bool) -> AbstractContextManager:
    """Within, a backward exchanges gradients with the other processes only if it is the last of its step."""
    return nullcontext() if last else trainer.accelerator.no_sync(model)


def _step_seed(trainer: Trainer, step: int) -> int:
    return trainer.batches.seed * 1_000_003 + step


def _head_input(backbone: BackboneFeatures | None, rows: list[int], device: torch.device) -> dict[str, Tensor] | None:
    """The argument `head_input` of `Cohort.forward` for these rows."""
    return None if backbone is None else {name: value.to(device) for name, value in backbone[rows].items()}
