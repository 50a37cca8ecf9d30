"""What starts from the frozen teacher: an online teacher, and students."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

import nanonet
from nanonet.config.train import TrainConfig
from nanonet.models.load import load_encoder
from nanonet.training.optimizer import TEACHER_LEARNING_RATE
from nanonet.training.pipeline import train


@pytest.fixture
def config(tiny_run: TrainConfig) -> TrainConfig:
    return dataclasses.replace(
        tiny_run,
        labels_per_class=5,
        teacher_steps=4,
        targets="classifier",
        steps=2,
        keep_teacher=True,
        vocabulary="all",
    )


def layers(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The weights of the encoder layers of a classifier."""
    return {name: tensor for name, tensor in model.base_model.state_dict().items() if name.startswith("encoder.layer")}


@pytest.mark.parametrize(
    ("init", "tuning", "wanted"),
    [
        ("pretrained", "bias", "pretrained"),
        ("tuned", "full", "tuned"),
        ("auto", "bias", "tuned"),
        ("auto", "full", "pretrained"),
    ],
)
def test_students_start_from_the_layers_that_are_asked_for(init, tuning, wanted: str, config: TrainConfig) -> None:
    train(dataclasses.replace(config, student_init=init, tuning=tuning, learning_rate=1e-12, layer_mapping="1,3;0,2"))
    pretrained = load_encoder(config.teacher).state_dict()
    tuned = nanonet.load(Path(config.output) / "teacher-classifier").model.base_model.state_dict()
    start = tuned if wanted == "tuned" else pretrained
    assert any(not torch.equal(pretrained[name], tuned[name]) for name in pretrained if "layer.1." in name)
    for k, mapping in enumerate(((1, 3), (0, 2))):
        student = layers(nanonet.load(config.output, k).model)
        for name, tensor in student.items():
            slot = int(name.split(".")[2])
            origin = name.replace(f"layer.{slot}.", f"layer.{mapping[slot]}.")
            torch.testing.assert_close(tensor, start[origin], rtol=0, atol=1e-7)


@pytest.mark.parametrize("tuning", ["full", "bias"])
def test_an_online_teacher_begins_as_the_frozen_one(tuning: str, config: TrainConfig, monkeypatch) -> None:
    monkeypatch.setitem(TEACHER_LEARNING_RATE, tuning, 1e-12)
    config = dataclasses.replace(config, tuning=tuning)  # type: ignore[arg-type]
    frozen = train(config)
    online = train(dataclasses.replace(config, teacher_mode="online", output=config.output + "-online"))
    assert online["teacher"]["accuracy"] == frozen["teacher"]["accuracy"]
    assert online["teacher"]["cross_validation"] == frozen["teacher"]["cross_validation"]
    kept = [nanonet.load(Path(folder) / "teacher-classifier") for folder in (config.output, config.output + "-online")]
    texts = ["the goal was late", "bread and cheese", "rain"]
    first, second = (torch.from_numpy(model.predict_proba(texts)) for model in kept)
    torch.testing.assert_close(first, second, rtol=1e-5, atol=1e-6)


def test_an_online_teacher_moves_from_there(config: TrainConfig) -> None:
    train(config)
    train(dataclasses.replace(config, teacher_mode="online", output=config.output + "-online"))
    kept = [nanonet.load(Path(folder) / "teacher-classifier") for folder in (config.output, config.output + "-online")]
    first, second = (layers(model.model) for model in kept)
    assert first.keys() == second.keys() and any(not torch.equal(first[name], second[name]) for name in first)
