"""What a run was worth, in numbers: report.json, and the same for a person to look at: report.html."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from nanonet.cohort.model import Cohort, count_parameters
from nanonet.config.train import TrainConfig
from nanonet.files import write
from nanonet.inference.scores import confusion, scores
from nanonet.report.html import page
from nanonet.teacher.selection import Choice
from nanonet.versions import versions

UNTESTED: dict[str, float | None] = {"accuracy": None, "macro_f1": None}


@dataclass(frozen=True, eq=False)
class Facts:
    """What the job knows when it is done.

    label: (N,) of the training rows, -100 where unlabelled; held: how many unlabelled rows were kept from training
    mapping: teacher layers of each student; gap: each one's divergence from the soft targets of held rows [nats]
    best: the student that was chosen by it
    """

    config: TrainConfig
    name: str
    classes: list[str]
    label: Tensor
    held: int
    views: list[str]
    mapping: list[list[int]]
    gap: list[float]
    best: int


def write_report(
    folder: Path,
    facts: Facts,
    cohort: Cohort,
    encoder: PreTrainedModel,
    choice: Choice,
    outcome: Mapping[str, Tensor],
    test_label: list[int],
    seconds: Mapping[str, float],
) -> dict[str, Any]:
    """Write report.json and report.html into `folder`; returns what report.json holds.

    outcome: test logits: `students` (K,N,C), `teacher` (N,C) and `floor` (N,C); empty where there is no test set
    seconds: what the stages took [s]
    """
    total, trainable = count_parameters(cohort)
    machine = {
        "device": str(next(cohort.parameters()).device),
        "threads": torch.get_num_threads(),
        "processes": torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1,
    }
    config, students = facts.config, outcome.get("students")
    floor, labelled = outcome.get("floor"), int((facts.label >= 0).sum())

    def measured(logits: Tensor | None) -> dict[str, float | None]:
        if logits is None or not test_label:
            return dict(UNTESTED)
        return {name: round(value, 6) for name, value in scores(logits, test_label).items()}

    report = {
        "data": {
            "name": facts.name,
            "classes": facts.classes,
            "labelled": labelled,
            "unlabelled": len(facts.label) - labelled,
            "held": facts.held,
            "test": len(test_label),
        },
        "teacher": {
            "name": config.teacher,
            "mode": config.teacher_mode,
            "targets": choice.rule if config.teacher_mode == "frozen" else "online",
            "cross_validation": choice.accuracy,
            **measured(outcome.get("teacher")),
            "parameters": sum(p.numel() for p in encoder.parameters()),
        },
        "floor": measured(floor) if floor is not None and test_label else None,
        "students": [
            {
                "layers": layers,
                "view": view,
                "tuning": config.tuning,
                **measured(None if students is None else students[k]),
                "parameters": {"total": total, "trainable": trainable},
                "held_divergence": facts.gap[k],
            }
            for k, (layers, view) in enumerate(zip(facts.mapping, facts.views, strict=True))
        ],
        "best": facts.best,
        "ensemble": measured(None if students is None else students.softmax(-1).mean(0).log()),
        "seconds": dict(seconds),
        "confusion": None if students is None or not test_label else confusion(students[facts.best], test_label),
        "config": dataclasses.asdict(config),
        "versions": versions() | machine,
    }
    report = _finite(report)
    write(folder / "report.json", json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False))
    write(folder / "report.html", page(report, read_metrics(folder / "metrics.jsonl")))
    return report


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl; none where there is no such file."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _finite(value: Any) -> Any:
    """`value` with None for every number that JSON does not have."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
