"""A training of a tiny encoder that takes a second."""

from __future__ import annotations

from pathlib import Path

import pytest

from nanonet.config.train import TrainConfig


@pytest.fixture
def config(tiny_encoder: Path, tiny_data: Path, tmp_path: Path) -> TrainConfig:
    return TrainConfig(
        output=str(tmp_path / "run"),
        data=str(tiny_data),
        teacher=str(tiny_encoder),
        labels_per_class=5,
        teacher_steps=2,
        steps=12,
        labelled_batch=5,
        unlabelled_batch=11,
        learning_rate=3e-3,
        max_tokens=32,
    )
