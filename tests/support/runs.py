"""Whole trainings, in this process or by flags in others, and what they leave behind."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import torch
from safetensors.torch import load_file

from nanonet.config.train import TrainConfig
from nanonet.training.pipeline import train

MODES: dict[str, dict] = {
    "frozen": {},
    "online": {"teacher_mode": "online", "teacher_steps": 4},
}
MODES["head"] = MODES["online"] | {"tuning": "head"}  # the students' and the teacher's backbone features are cached


def weights(folder: str | Path, student: int = 0) -> dict[str, torch.Tensor]:
    return load_file(Path(folder) / f"student-{student}" / "model.safetensors")


def run(config: TrainConfig, name: str, **changes) -> tuple[dict, dict]:
    output = str(Path(config.output).with_name(name))
    result = train(dataclasses.replace(config, output=output, **changes))
    return result, weights(output)


def distance(a: dict, b: dict) -> float:
    assert a.keys() == b.keys()
    return max((a[name] - b[name]).abs().max().item() for name in a)


def records(config: TrainConfig, name: str) -> list[dict]:
    lines = (Path(config.output).with_name(name) / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def flags_of(config: TrainConfig) -> list[str]:
    changed = {k: v for k, v in dataclasses.asdict(config).items() if v != getattr(TrainConfig(), k)}
    return [part for k, v in changed.items() for part in (f"--{k.replace('_', '-')}", *([] if v is True else [str(v)]))]
