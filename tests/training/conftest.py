"""A training of a tiny encoder that takes a second."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from nanonet.config.train import TrainConfig


@pytest.fixture
def tiny_run(tiny_encoder: Path, tiny_data: Path, tmp_path: Path) -> TrainConfig:
    """What the trainings of these tests share."""
    return TrainConfig(output=str(tmp_path / "run"), data=str(tiny_data), teacher=str(tiny_encoder), max_tokens=32)


@pytest.fixture
def config(tiny_run: TrainConfig) -> TrainConfig:
    sizes = dict(labels_per_class=5, teacher_steps=2, steps=12, labelled_batch=5, unlabelled_batch=11)
    return dataclasses.replace(tiny_run, **sizes, learning_rate=3e-3)
