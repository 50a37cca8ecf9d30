"""What a run may be launched with, and that it leaves the process as it was."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from nanonet.config.train import TrainConfig
from nanonet.device import threads
from nanonet.errors import InputError
from nanonet.training.pipeline import train


@pytest.fixture
def config(tiny_encoder: Path, tiny_data: Path, tmp_path: Path) -> dict:
    folders = {"output": str(tmp_path / "run"), "data": str(tiny_data), "teacher": str(tiny_encoder)}
    return folders | {"max_tokens": 32, "teacher_steps": 0, "steps": 2}


@pytest.mark.parametrize("kind", ["FSDP", "DEEPSPEED"])
def test_weights_cut_over_processes_are_refused(kind: str, config: dict, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(f"ACCELERATE_USE_{kind}", "true")  # what `accelerate launch` sets
    with pytest.raises(InputError, match=f"{kind} cuts weights .* --multi_gpu"):
        train(TrainConfig(**config))
    assert not Path(config["output"]).exists()


@pytest.mark.skipif(torch.accelerator.is_available(), reason="an accelerator has float16 arithmetic")
def test_float16_is_refused_on_a_cpu(config: dict):
    with pytest.raises(InputError, match="--precision float16: a CPU has no"):
        train(TrainConfig(**config, precision="float16"))
    assert not Path(config["output"]).exists()


def test_a_run_leaves_the_threads_as_they_were(config: dict):
    assert torch.get_num_threads() == 1
    report = train(TrainConfig(**config, threads=2))
    assert report["versions"]["threads"] == 2 and torch.get_num_threads() == 1


def test_threads_are_restored_after_an_error_and_none_is_asked_for_by_0():
    with pytest.raises(KeyError), threads(3):
        assert torch.get_num_threads() == 3
        with threads(0):
            assert torch.get_num_threads() == 3
        raise KeyError
    assert torch.get_num_threads() == 1
