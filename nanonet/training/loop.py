"""The training loop: one teacher, a cohort of K students, one loss. What happens in a step stands in `fit`, in order.

Everything random in a step is a function of (seed, step): the rows, the views, the dropout. So a checkpoint holds
weights and optimizer state only, and a run that was killed and resumed ends where it would have ended.

A step's rows are one global batch. It is cut over processes and micro-batches, and every part divides by the counts
of the whole: any number of processes and micro-batches computes the same step.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from nanonet.cohort.model import Cohort
from nanonet.cohort.views import set_views, view_batch
from nanonet.config.train import TrainConfig
from nanonet.data.batches import BatchPlan, Encoded, collate
from nanonet.errors import InputError
from nanonet.losses import DistillLoss, relation_loss
from nanonet.ops import distill_loss
from nanonet.teacher.soft_labels import calibrate_confidence
from nanonet.training.backbone import BackboneFeatures
from nanonet.training.checkpoint import restore, save
from nanonet.training.metrics import Metrics
from nanonet.training.optimizer import (
    LEARNING_RATE,
    TEACHER_LEARNING_RATE,
    clip_per_student,
    learning_rate,
    make_optimizer,
    step_all,
)


@dataclass(frozen=True, eq=False)
class TrainingSet:
    """What is trained on: N texts, the labelled ones first.

    encoded: N rows of token ids; label: (N,) int64, -100 where unlabelled
    soft: (N,C) logits of a frozen teacher, or None where the teacher trains online or there is none
    embedding: (N,D) of that teacher, or None where relations weigh nothing
    backbone: what the students' heads read of every text, where nothing else of them is trained
    """

    encoded: Encoded
    label: Tensor
    soft: Tensor | None
    pad_id: int
    embedding: Tensor | None = None
    backbone: BackboneFeatures | None = None

    @property
    def labelled(self) -> int:
        return int((self.label >= 0).sum())


@dataclass(frozen=True, eq=False)
class OnlineTeacher:
    """A teacher that trains on the labels beside its students.

    cv_accuracy: the cross-validated accuracy; the mean confidence of the soft labels is set to it
    backbone: cached input of its head, if the head is all that is trained
    """

    model: Cohort
    cv_accuracy: float
    backbone: BackboneFeatures | None = None


def check_parts(config: TrainConfig, labelled: int, unlabelled: int, world: int) -> None:
    """Refuse steps of fewer rows than processes times micro-batches: some part would have nothing to do; and relations
    between rows of several parts, which never meet.

    Raises:
        InputError: names the numbers and the flags.
    """
    parts = world * config.gradient_accumulation
    if config.relation_weight and parts > 1:
        raise InputError(
            f"--relation-weight {config.relation_weight}: it compares all rows of a step, which {world} x"
            f" {config.gradient_accumulation} parts would keep apart; use one process and --gradient-accumulation 1"
        )
    sides = ((labelled, config.labelled_batch), (unlabelled, config.unlabelled_batch))
    fewest = sum(n // -(-n // size) for n, size in sides if n)  # the batches of an epoch differ by one row at most
    if fewest < parts:
        raise InputError(
            f"--gradient-accumulation {config.gradient_accumulation}: a step of {fewest} rows cannot be cut into"
            f" {world} x {config.gradient_accumulation} parts; lower it or raise --unlabelled-batch"
        )


def fit(
    config: TrainConfig,
    cohort: Cohort,
    views: list[str],
    rows: TrainingSet,
    accelerator: Accelerator,
    folder: Path,
    online: OnlineTeacher | None = None,
    report: Callable[[dict], Any] = lambda record: None,
) -> None:
    """Train `cohort` in place; one line a step in `folder`/metrics.jsonl, also given to `report`."""
    world, rank, device = accelerator.num_processes, accelerator.process_index, accelerator.device
    parts = world * config.gradient_accumulation
    lengths = rows.encoded.lengths
    count = rows.labelled
    plan = BatchPlan(
        rows.label[:count].tolist(),
        lengths[count:],
        config.labelled_batch,
        config.unlabelled_batch,
        config.seed,
    )
    start_ramp = 0.1 if online else 0.0
    criterion = DistillLoss(
        config.ce_weight,
        config.teacher_weight,
        config.peers_weight,
        temperature=config.temperature,
        divergence=config.divergence,
        teacher_ramp=(start_ramp, 3 * start_ramp),
        peers_ramp=(2 * start_ramp, 2 * start_ramp + 0.1),
        weight_rows=config.confidence,
    )
    set_views(cohort, views)
    optimizer = make_optimizer(cohort, config.weight_decay)
    model, optimizer = accelerator.prepare(cohort, optimizer)
    trained = {"students": (cohort, optimizer)}
    peaks = {"students": config.learning_rate or LEARNING_RATE[config.tuning]}
    if online:
        teacher, teacher_optimizer = accelerator.prepare(
            online.model, make_optimizer(online.model, config.weight_decay)
        )
        trained["teacher"] = (online.model, teacher_optimizer)
        peaks["teacher"] = TEACHER_LEARNING_RATE[config.tuning]
    start = restore(folder, trained, accelerator) if config.resume else 0
    log = Metrics(folder / "metrics.jsonl", start, accelerator.is_main_process)

    for step in range(start, config.steps):
        began = time.perf_counter()
        labelled, unlabelled = plan.rows(step)
        batch = labelled + [row + count for row in unlabelled]
        torch.manual_seed(config.seed * 1_000_003 + step)
        model.train()
        for name, (_, each) in trained.items():
            for group in each.param_groups:
                group["lr"] = learning_rate(config, step, peaks[name])
        means = torch.zeros(3, cohort.students, device=device)
        loss = torch.zeros((), device=device)
        teacher_loss = torch.zeros((), device=device)
        # soft terms are divided by the rows, not by their confidence: a batch that is unsure pulls less
        denominators = torch.tensor([len(labelled), len(batch)], dtype=torch.float32, device=device)
        soft = _online_soft(online, rows, batch, accelerator, config) if online else None
        for part in range(config.gradient_accumulation):
            own = slice(part * world + rank, None, parts)
            own_rows = batch[own]
            last = part == config.gradient_accumulation - 1
            ids, mask = (t.to(device) for t in collate(rows.encoded, own_rows, rows.pad_id))
            label = rows.label[own_rows].to(device)
            with nullcontext() if last else accelerator.no_sync(model), accelerator.autocast():
                seen = view_batch(
                    cohort, views, ids, mask, config.seed * 1_000_003 + step, torch.tensor(own_rows, device=device)
                )
                head_input = _head_input(rows.backbone, own_rows, device)
                # fetched before the forward is queued, for whose end a GPU's copy would wait
                if soft is not None:
                    part_soft: Tensor | None = soft[own]
                else:
                    part_soft = None if rows.soft is None else rows.soft[own_rows].to(device)
                near = None if rows.embedding is None else rows.embedding[own_rows].to(device)
                output = model(**seen, features="" if near is None else cohort.classifier, head_input=head_input)
                if near is not None:
                    relation = relation_loss(output.features, near)
                part_loss, part_means = criterion(
                    output.logits, part_soft, label, progress=step / config.steps, denominators=denominators
                )
                if near is not None:
                    part_loss = part_loss + config.relation_weight * relation.sum()
            # DDP averages over the processes; the denominators are already those of all of them
            accelerator.backward(part_loss * world)
            loss, means = loss + part_loss.detach(), means + part_means
            if online:
                with nullcontext() if last else accelerator.no_sync(teacher), accelerator.autocast():
                    # the labelled rows, which come first; where there is none, a row that counts nothing
                    few = max(1, int((rows.label[own_rows] >= 0).sum()))
                    head_input = _head_input(online.backbone, own_rows[:few], device)
                    answer = teacher.train()(ids[:few], mask[:few], head_input=head_input).logits
                    part_loss, _ = distill_loss(answer, None, label[:few], denominators=denominators)
                accelerator.backward(part_loss * world)
                teacher_loss = teacher_loss + part_loss.detach()
        accelerator.unscale_gradients()
        norms = {name: clip_per_student(each.parameters(), config.max_grad_norm) for name, (each, _) in trained.items()}
        step_all([each.optimizer for _, each in trained.values()], accelerator.scaler)
        loss, means, teacher_loss = (accelerator.reduce(t, "sum") for t in (loss, means, teacher_loss))
        record = {
            "step": step,
            "loss": round(loss.item(), 6),
            **{name: _numbers(means[i]) for i, name in enumerate(("ce", "teacher", "peers"))},
            "grad_norm": _numbers(norms["students"]),
            "learning_rate": learning_rate(config, step, peaks["students"]),
            "rows_per_s": round(len(batch) / (time.perf_counter() - began), 1),
        }
        if online:
            record["teacher_ce"] = round(teacher_loss.item(), 6)
        if rows.embedding is not None:
            record["relation"] = _numbers(relation)
        log.write(record)
        report(record)
        if config.save_every and (step + 1) % config.save_every == 0 and step + 1 < config.steps:
            log.flush()
            save(folder, trained, accelerator, step + 1)
    log.close()
    cohort.eval()


@torch.no_grad()
def _online_soft(
    online: OnlineTeacher, rows: TrainingSet, batch: list[int], accelerator: Accelerator, config: TrainConfig
) -> Tensor:
    """The online teacher's logits (B,C) of the whole step, in eval mode on the texts as they are, softened as one.

    Every process runs its own rows and gets the others': the temperature is the batch's, however it is cut.
    """
    world, device = accelerator.num_processes, accelerator.device
    classes: Any = online.model.model.config.num_labels
    logits = torch.zeros(len(batch), classes, device=device)
    online.model.eval()
    for part in range(config.gradient_accumulation):
        own = slice(part * world + accelerator.process_index, None, world * config.gradient_accumulation)
        ids, mask = (t.to(device) for t in collate(rows.encoded, batch[own], rows.pad_id))
        with accelerator.autocast():
            head_input = _head_input(online.backbone, batch[own], device)
            logits[own] = online.model(ids, mask, head_input=head_input).logits[0].float()
    return calibrate_confidence(accelerator.reduce(logits, "sum"), online.cv_accuracy) * config.sharpen


def _head_input(backbone: BackboneFeatures | None, rows: list[int], device: torch.device) -> dict[str, Tensor] | None:
    """What `Cohort.forward` takes of these texts' backbone."""
    return None if backbone is None else {name: read.to(device) for name, read in backbone[rows].items()}


def _numbers(values: Tensor) -> list[float]:
    return [round(value, 6) for value in values.tolist()]
