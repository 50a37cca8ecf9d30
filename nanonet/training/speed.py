"""Size and speed of a run's teacher and students, each as the plain model that is exported."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from nanonet.cohort.extract import student
from nanonet.cohort.model import Cohort
from nanonet.inference.forward import logits_of
from nanonet.inference.speed import measure_speed, megabytes, parameters_and_buffers
from nanonet.models.pairs import model_inputs
from nanonet.models.pooled import pool
from nanonet.teacher.source import EncoderSource
from nanonet.training.frozen_teacher import Teacher
from nanonet.training.run import Run

Speed = dict[str, Any]  # megabytes, rows_per_s, texts_per_s
SECONDS = 2.0  # for all models


def measure_models(run: Run, teacher: Teacher) -> tuple[Speed | None, list[Speed]]:
    """Of the teacher, None where no model of it is at hand, and of each student; on validation rows, else training
    rows, in float32 on the run's device."""
    K = run.cohort.students
    seconds = SECONDS / (2 * (K + 1))
    with run.progress.stage("measuring the speed", K + 1) as tick:
        online = run.online
        of_teacher = _of_encoder(teacher, seconds) if online is None else _of_student(run, online, 0, seconds)
        tick(1)
        students = []
        for k in range(K):
            students.append(_of_student(run, run.cohort, k, seconds))
            tick(1)
    return of_teacher, students


def _of_student(run: Run, cohort: Cohort, k: int, seconds: float) -> Speed:
    model: Any = student(cohort, k)
    rows = run.data.validation if len(run.data.validation) else run.data.rows
    found = measure_speed(logits_of(model.to(run.device)), rows, run.pad_id, run.device, seconds)
    return {"megabytes": megabytes(*parameters_and_buffers(model))} | found


def _of_encoder(teacher: Teacher, seconds: float) -> Speed | None:
    """Of a frozen teacher that is an encoder and a head."""
    source, encoder = teacher.source, teacher.encoder
    if encoder is None or not isinstance(source, EncoderSource):
        return None
    model: Any = encoder.model.eval().to(encoder.device)  # type: ignore[arg-type]

    def forward(ids: Tensor, mask: Tensor) -> Tensor:
        return pool(model(**model_inputs(model.config, ids, mask)).last_hidden_state, mask, encoder.pooling)

    rows = source.data.validation if len(source.data.validation) else source.data.rows
    size = megabytes(*parameters_and_buffers(model), teacher.frozen.weight, teacher.frozen.bias)
    return {"megabytes": size} | measure_speed(forward, rows, encoder.pad_id, encoder.device, seconds)
