"""The results of a run: report.json, and the same for a reader: report.html."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nanonet.cohort.model import Cohort, count_parameters
from nanonet.config.train import TrainConfig
from nanonet.files import write
from nanonet.inference.reliability import reliability
from nanonet.inference.scores import confusion, scores
from nanonet.report.html import render_html
from nanonet.teacher.selection import Choice
from nanonet.versions import versions

UNTESTED: dict[str, float | None] = {"accuracy": None, "macro_f1": None}


@dataclass(frozen=True, eq=False)
class Facts:
    """What a finished run knows of itself.

    label: (N,) of the training rows, -100 where unlabelled
    validation: number of validation rows, unlabelled rows that were not trained on
    mapping: teacher layers of each student
    divergence: of each student from the teacher's soft labels of the validation rows [nats]
    best: the student with the smallest divergence
    agreement: fraction of the validation rows to which each student gives the teacher's label
    test_in_train: number of test texts that are also training texts
    labels_per_class: labels drawn per class; 0 where every label is used
    teacher, parameters: name and size of the teacher; None where it is not a model but files of soft labels
    teacher_speed, speed: megabytes, rows_per_s and texts_per_s of the teacher and of each student, where measured
    vocabulary: word pieces of the students' encoder (before) and of the students (after), and why none went
    """

    config: TrainConfig
    name: str
    classes: list[str]
    label: Tensor
    validation: int
    views: list[str]
    mapping: list[list[int]]
    divergence: list[float]
    best: int
    agreement: list[float]
    test_in_train: int = 0
    labels_per_class: int = 0
    teacher: str = ""
    parameters: int | None = None
    teacher_speed: dict[str, Any] | None = None
    speed: Sequence[dict[str, Any]] = ()
    vocabulary: dict[str, Any] | None = None


def write_report(
    folder: Path,
    facts: Facts,
    cohort: Cohort,
    choice: Choice,
    outcome: Mapping[str, Tensor],
    test_label: list[int],
    seconds: Mapping[str, float],
) -> dict[str, Any]:
    """Write report.json and report.html into `folder`; returns what report.json holds.

    outcome: test logits: `students` (K,N,C), `teacher` (N,C) and `linear_probe` (N,C), NaN in rows that it was not
        tested on, if there are such; empty without a test set
    seconds: time of each stage [s]
    """
    students = outcome.get("students") if test_label else None
    probe, teacher = (outcome.get(name) if test_label else None for name in ("linear_probe", "teacher"))
    report = _finite(
        {
            "data": _data(facts, len(test_label)),
            "teacher": _teacher(facts, choice) | _scores(teacher, test_label) | _reliability(teacher, test_label),
            "linear_probe": None if probe is None else _probe(probe, test_label),
            "vocabulary": facts.vocabulary,
            "students": _students(facts, cohort, students, test_label),
            "best": facts.best,
            "ensemble": _scores(None if students is None else students.softmax(-1).mean(0).log(), test_label),
            "seconds": dict(seconds),
            # timings apart from the results, which a resumed run repeats
            "speed": {"teacher": facts.teacher_speed, "students": list(facts.speed)},
            "confusion": None if students is None else confusion(students[facts.best], test_label),
            "config": dataclasses.asdict(facts.config),
            "versions": versions() | _machine(cohort),
        }
    )
    write(folder / "report.html", render_html(report, read_metrics(folder / "metrics.jsonl")))
    # last: a run that has it is finished
    write(folder / "report.json", json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False))
    return report


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl; none where there is no such file."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _data(facts: Facts, test_rows: int) -> dict[str, Any]:
    labelled = int((facts.label >= 0).sum())
    return {
        "name": facts.name,
        "classes": facts.classes,
        "labelled": labelled,
        "unlabelled": len(facts.label) - labelled,
        "validation": facts.validation,
        "test": test_rows,
        "test_in_train": facts.test_in_train,
        "labels_per_class": facts.labels_per_class,
    }


def _teacher(facts: Facts, choice: Choice) -> dict[str, Any]:
    mode = facts.config.teacher_mode
    return {
        "name": facts.teacher,
        "mode": mode,
        "targets": choice.rule if mode == "frozen" else "online",
        "cross_validation": choice.accuracy,
        "cross_validated_labels": choice.tested,
        "expected_accuracy": choice.best_estimate,
        "parameters": facts.parameters,
    }


def _students(facts: Facts, cohort: Cohort, logits: Tensor | None, test_label: list[int]) -> list[dict[str, Any]]:
    total, trainable = count_parameters(cohort)
    return [
        {
            "layers": layers,
            "view": view,
            "tuning": facts.config.tuning,
            **_scores(None if logits is None else logits[k], test_label),
            **_reliability(None if logits is None else logits[k], test_label),
            "parameters": {"total": total, "trainable": trainable},
            "validation_divergence": facts.divergence[k],
            "validation_agreement": round(facts.agreement[k], 6),
        }
        for k, (layers, view) in enumerate(zip(facts.mapping, facts.views, strict=True))
    ]


def _scores(logits: Tensor | None, labels: list[int]) -> dict[str, float | None]:
    """accuracy and macro_f1 [fractions]; None without test rows."""
    if logits is None or not labels:
        return dict(UNTESTED)
    return {name: round(value, 6) for name, value in scores(logits, labels).items()}


def _probe(logits: Tensor, labels: list[int]) -> dict[str, Any]:
    """Its scores, and the number of test rows that they are of."""
    rows = (~logits.isnan().any(-1)).nonzero()[:, 0].tolist()
    return {**_scores(logits[rows], [labels[row] for row in rows]), "test": len(rows)}


def _reliability(logits: Tensor | None, labels: list[int]) -> dict[str, Any]:
    return {"reliability": None if logits is None or not labels else reliability(logits, labels)}


def _machine(cohort: Cohort) -> dict[str, Any]:
    return {
        "device": str(next(cohort.parameters()).device),
        "threads": torch.get_num_threads(),
        "processes": torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1,
    }


def _finite(value: Any) -> Any:
    """`value` with None for every number that JSON cannot hold."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
