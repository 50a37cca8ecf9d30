"""A classifier from disk: how long its texts may be."""

from __future__ import annotations

from pathlib import Path

from nanonet.config.commands import EvaluateConfig
from nanonet.inference.classifier import load_classifier


def test_the_length_is_the_runs_own(trained_run: Path) -> None:
    classifier = load_classifier(trained_run / "best")
    long = ["cat " * 60]
    assert classifier.encode(long, 0).lengths == [32]  # the run's --max-tokens
    assert classifier.encode(long, 48).lengths == [48]
    assert EvaluateConfig().max_tokens == 0
