"""Students whose confidence is set before export."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from support.grids import slow

from nanonet.config.train import TrainConfig
from nanonet.inference.classifier import load
from nanonet.training import calibration
from nanonet.training.pipeline import train


@pytest.mark.parametrize("tuning", ["full", slow("lora")])
def test_the_head_is_scaled_and_no_answer_changes(
    tiny_encoder: Path, tiny_data: Path, tmp_path: Path, tuning: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = TrainConfig(str(tmp_path / "plain"), str(tiny_data), labels_per_class=5, teacher_steps=0, steps=12)
    config = dataclasses.replace(config, teacher=str(tiny_encoder), learning_rate=3e-3, max_tokens=32, tuning=tuning)
    plain = train(dataclasses.replace(config, calibrate=False))
    seen = []

    def watched(run, accuracy, agreement):
        original(run, accuracy, agreement)
        logits = run.logits(run.cohort, run.data.validation, "again")
        seen.append((logits.softmax(-1).amax(-1).mean(-1).tolist(), accuracy, agreement.tolist()))

    original = calibration.calibrate_students
    monkeypatch.setattr("nanonet.training.outcome.calibrate_students", watched)
    found = train(dataclasses.replace(config, output=str(tmp_path / "scaled")))
    means, accuracy, agreement = seen[0]
    assert accuracy == found["teacher"]["expected_accuracy"]
    # no surer than it agrees with its teacher, and a quarter of the way from chance (1/3) to certainty at least
    assert means == pytest.approx([max(min(accuracy, share), 1 / 2) for share in agreement], abs=2e-3)
    texts = [json.loads(line)["text"] for line in (tiny_data / "test.jsonl").read_text().splitlines()]
    for k, (before, after) in enumerate(zip(plain["students"], found["students"], strict=True)):
        assert before["accuracy"] == after["accuracy"] and before["validation_divergence"] == pytest.approx(
            after["validation_divergence"], abs=1e-5
        )
        p, q = (torch.from_numpy(load(tmp_path / run, k).predict_proba(texts)) for run in ("plain", "scaled"))
        assert torch.equal(p.argmax(-1), q.argmax(-1)) and (p - q).abs().max() > 1e-3
        # what is exported is what was measured
        assert q.amax(-1).mean().item() == pytest.approx(after["reliability"]["mean_confidence"], abs=1e-3)
