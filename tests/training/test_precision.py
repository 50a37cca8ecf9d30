"""`--precision auto`: the faster dtype is chosen once, stored, and changes nothing else."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from nanonet.config.settings import stage_settings
from nanonet.config.train import TrainConfig
from nanonet.training import checkpoint, precision
from nanonet.training.launch import launch
from nanonet.training.pipeline import train
from nanonet.training.run import prepare_run


@pytest.fixture
def config(tiny_encoder: Path, tiny_data: Path, tmp_path: Path) -> TrainConfig:
    names = {"output": tmp_path / "run", "data": tiny_data, "teacher": tiny_encoder}
    settings = dict(labels_per_class=5, teacher_steps=0, steps=4, students=1, save_every=2, max_tokens=32)
    return TrainConfig(
        **{name: str(path) for name, path in names.items()}, **settings, targets="classifier", precision="auto"
    )


def weights(folder: str | Path) -> dict[str, torch.Tensor]:
    return load_file(Path(folder) / "student-0" / "model.safetensors")


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(
    ("seconds", "chosen", "said"),
    [
        ({"float32": 100.0, "bfloat16": 95.0}, "float32", True),  # not faster by a tenth
        ({"float32": 100.0, "bfloat16": 80.0}, "bfloat16", True),
        ({"float32": 100.0}, "float32", True),  # a device without bfloat16
        ({"float32": 50.0, "bfloat16": 5.0}, "float32", False),  # a short run
    ],
)
def test_the_faster_dtype_is_chosen(
    seconds: dict[str, float], chosen: str, said: bool, tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.setattr(precision, "job_seconds", lambda run, names, rounds: seconds)
    run: Any = SimpleNamespace(accelerator=launch("auto", False, tmp_path))
    assert precision.choose_precision(run) == chosen
    assert (f"--precision auto: {chosen} (" in capsys.readouterr().err) == said


def test_a_run_is_that_of_the_chosen_dtype_even_if_it_is_resumed(config: TrainConfig, monkeypatch) -> None:
    named = dataclasses.replace(config, output=config.output + "-named", precision="bfloat16")
    train(named)
    monkeypatch.setattr(precision, "job_seconds", lambda *arguments: {"float32": 100.0, "bfloat16": 50.0})
    save = checkpoint.save

    def stop(*arguments) -> None:
        save(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("nanonet.training.loop.save", stop)
        train(config)
    assert yaml.safe_load((Path(config.output) / "config.yaml").read_text())["precision"] == "bfloat16"
    monkeypatch.setattr(precision, "job_seconds", lambda *arguments: pytest.fail("measured again"))
    report = train(dataclasses.replace(config, resume=True))
    assert report["config"]["precision"] == "bfloat16" and same(weights(config.output), weights(named.output))


def test_measuring_leaves_no_trace(config: TrainConfig) -> None:
    run = prepare_run(stage_settings(config), Path(config.output), launch("auto", False, Path(config.output)))
    before, state = {name: t.clone() for name, t in run.cohort.state_dict().items()}, torch.get_rng_state()
    seconds = precision.job_seconds(run, ["float32", "bfloat16"], 2)
    assert seconds.keys() == {"float32", "bfloat16"} and min(seconds.values()) > 0
    assert same(before, run.cohort.state_dict()) and torch.equal(state, torch.get_rng_state())
    assert not run.cohort.training and all(p.grad is None for p in run.cohort.parameters())


def test_students_are_tested_in_float32_as_they_are_exported(config: TrainConfig, tmp_path: Path) -> None:
    def logits(name: str) -> torch.Tensor:
        run = prepare_run(stage_settings(config), tmp_path, launch(name, False, tmp_path))
        assert run.accelerator.mixed_precision == {"float32": "no", "bfloat16": "bf16"}[name]
        return run.logits(run.cohort, run.data.test, "testing")

    assert torch.equal(logits("bfloat16"), logits("float32"))
