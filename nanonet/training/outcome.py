"""The last stages of a run: the choice of the best student, the test, the export of the students, the report."""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import Tensor

from nanonet.cohort.extract import save_adapter, save_classifier, save_student
from nanonet.config.train import TrainConfig
from nanonet.errors import InputError
from nanonet.files import remove
from nanonet.models.pooled import pooled_classifier
from nanonet.ops import distill_terms
from nanonet.report import summary
from nanonet.teacher.frozen import TUNED_ENCODER
from nanonet.teacher.soft_labels import calibrate_confidence
from nanonet.teacher.source import EncoderSource
from nanonet.training import checkpoint
from nanonet.training.calibration import calibrate_students
from nanonet.training.frozen_teacher import Teacher
from nanonet.training.run import Run
from nanonet.training.speed import measure_models

KEPT_TEACHER = "teacher-classifier"  # folder of the teacher, where the user keeps it


def finish(run: Run, teacher: Teacher, config: TrainConfig) -> dict[str, Any]:
    """Choose, test, export and report; returns the report. `config` is what the report says the user gave.

    All processes choose and test; the first one writes and reports, the others return {}.
    """
    divergence, agreement = compare_on_validation(run, teacher)
    best = int(divergence.argmin())
    expected = teacher.frozen.choice.best_estimate
    if run.settings.general.calibrate and expected is not None:
        calibrate_students(run, expected, agreement)
    logits = test_logits(run, teacher)
    if not run.processes.is_first:
        return {}
    run.ensure_ours()
    export_students(run, best)
    if run.settings.general.keep_teacher:
        export_teacher(run, teacher)
    run.ensure_ours()
    teacher_speed, speed = measure_models(run, teacher)
    facts = summary.Facts(
        dataclasses.replace(config, steps=run.settings.optimizer.steps),
        run.data.name,
        run.data.classes,
        run.data.label,
        len(run.data.validation),
        run.views,
        run.mapping,
        divergence.tolist(),
        best,
        agreement.tolist(),
        run.data.test_in_train,
        run.data.labels_per_class,
        run.source.name,
        run.source.parameters,
        teacher_speed,
        speed,
        run.vocabulary.facts(),
    )
    report = summary.write_report(
        run.folder, facts, run.cohort, teacher.frozen.choice, logits, run.data.test_label, run.progress.seconds
    )
    remove(run.folder / checkpoint.NAME)
    remove(run.folder / TUNED_ENCODER)
    return report


def compare_on_validation(run: Run, teacher: Teacher) -> tuple[Tensor, Tensor]:
    """Each student's divergence (K,) from the teacher's soft labels of the validation rows, on which none was trained;
    of the training rows if there are too few to leave some out. The best student is chosen by it, without test labels.
    And the fraction (K,) of these rows to which it gives the teacher's label.

    Raises:
        InputError: a student's training diverged.
    """
    rows = run.data.validation if len(run.data.validation) else run.data.rows
    if run.online is not None:
        logits = run.logits(run.online, rows, "validation rows")[0]
    else:
        logits = teacher.logits(run, "validation" if len(run.data.validation) else "rows", "validation rows")
    soft_labels = calibrate_confidence(logits, teacher.frozen.choice.cv_accuracy) * run.settings.loss.sharpen
    students = run.logits(run.cohort, rows, "choosing the best")
    divergence = distill_terms(students, soft_labels)[1].mean(-1)
    if not divergence.isfinite().all():
        student = int((~divergence.isfinite()).nonzero()[0])
        raise InputError(f"the training of student {student} diverged: lower --learning-rate or raise --warmup")
    return divergence, (students.argmax(-1) == soft_labels.argmax(-1)).float().mean(-1)


def test_logits(run: Run, teacher: Teacher) -> dict[str, Tensor]:
    """Test logits: `students` (K,N,C), `teacher` (N,C) and `linear_probe` (N,C), if there are such; empty without a
    test set."""
    rows = run.data.test
    if not len(rows):
        return {}
    return {"students": run.logits(run.cohort, rows, "testing the students")} | teacher.test_logits(run)


def export_students(run: Run, best: int) -> None:
    """Write every student, its adapter if it has one, and the best student once more as `best`."""
    for k in range(run.cohort.students):
        save_student(run.cohort, k, run.folder / f"student-{k}", run.tokenizer)
        if run.cohort.tuning == "lora":
            save_adapter(run.cohort, k, run.folder / f"student-{k}-adapter", run.tokenizer)
    save_student(run.cohort, best, run.folder / "best", run.tokenizer)


def export_teacher(run: Run, teacher: Teacher) -> None:
    """Write the teacher as a classifier: the online one as a student is, a frozen one as its encoder and its head.

    The head scores every text but the training rows, whose soft labels may come from a rule over their neighbours.
    """
    folder = run.folder / KEPT_TEACHER
    if run.online is not None:
        save_student(run.online, 0, folder, run.tokenizer)
        return
    encoder, frozen, source = teacher.encoder, teacher.frozen, teacher.source
    assert encoder is not None and isinstance(source, EncoderSource), "prepare_run refuses the flag otherwise"
    model = pooled_classifier(encoder.model, encoder.pooling, frozen.weight, frozen.bias, run.data.classes)
    save_classifier(model, folder, source.tokenizer)
