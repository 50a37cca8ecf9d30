"""A classifier from disk: how long its texts may be."""

from __future__ import annotations

from pathlib import Path

import pytest

from nanonet.config.commands import EvaluateConfig
from nanonet.files import read_small
from nanonet.inference import classifier as module
from nanonet.inference.classifier import load_classifier


def test_the_length_is_the_runs_own(trained_run: Path) -> None:
    classifier = load_classifier(trained_run / "best")
    long = ["cat " * 60]
    assert classifier.encode(long, 0).lengths == [32]  # the run's --max-tokens
    assert classifier.encode(long, 48).lengths == [48]
    assert EvaluateConfig().max_tokens == 0


def test_what_the_run_says_is_read_once(trained_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = []
    monkeypatch.setattr(module, "read_small", lambda path: read.append(path) or read_small(path))
    classifier = load_classifier(trained_run / "best")
    for _ in range(3):
        assert classifier.encode(["cat " * 60], 0).lengths == [32]
    assert [path.name for path in read].count("config.yaml") == 1
