"""Which checkpoints a run is resumed from."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from nanonet.config.train import TrainConfig
from nanonet.errors import InputError
from nanonet.teacher.make import make_frozen_teacher
from nanonet.tensor_file import load_tensors, save_tensors
from nanonet.training.checkpoint import NAME, save
from nanonet.training.pipeline import train


@pytest.fixture
def config(tiny_run: TrainConfig) -> TrainConfig:
    return dataclasses.replace(tiny_run, labels_per_class=4, teacher_steps=2, steps=6, save_every=3)


@pytest.fixture
def interrupt(monkeypatch: pytest.MonkeyPatch) -> Callable[[TrainConfig], Path]:
    """Train until the first checkpoint; returns its path."""

    def save_and_stop(*arguments: object) -> None:
        save(*arguments)
        raise KeyboardInterrupt

    def interrupt(config: TrainConfig) -> Path:
        with monkeypatch.context() as patch:
            patch.setattr("nanonet.training.loop.save", save_and_stop)
            with pytest.raises(KeyboardInterrupt):
                train(config)
        return Path(config.output) / NAME

    return interrupt


def test_what_is_no_checkpoint_of_this_run(config: TrainConfig, interrupt, tmp_path: Path) -> None:
    path = interrupt(config)
    tensors, metadata = load_tensors(path, "")
    good = tmp_path / "good.safetensors"
    shutil.move(path, good)
    resumed = dataclasses.replace(config, resume=True)

    def refused(match: str) -> None:
        with pytest.raises(InputError, match=match):
            train(resumed)

    for step in ("-1", "7", "999999999999"):
        save_tensors(path, tensors, metadata | {"step": step})
        refused("not a checkpoint of this run; delete it to start again")
    save_tensors(path, tensors, metadata | {"run": "0" * 64})
    refused("not a checkpoint of this run; delete it")
    save_tensors(path, {"x": torch.zeros(2)}, metadata)
    refused("not a checkpoint of this run; delete it")
    save_file(load_file(good), path, metadata)  # as older versions wrote it
    refused("written by an older version of nanonet; delete it to start again")
    stored = bytearray(good.read_bytes())
    stored[-5] ^= 1
    path.write_bytes(stored)
    refused("damaged .*digest.*; delete it to start again")
    shutil.move(good, path)
    train(resumed)
    assert not path.exists()


@pytest.mark.parametrize("change", [{"seed": 1}, {"divergence": "js"}, {"max_tokens": 6}], ids=str)
def test_a_checkpoint_of_another_run_is_refused(config: TrainConfig, change: dict, interrupt, tmp_path: Path) -> None:
    path = interrupt(config)
    other = dataclasses.replace(config, output=str(tmp_path / "other"), **change)
    shutil.copy(path, interrupt(other))
    with pytest.raises(InputError, match="not a checkpoint of this run; delete it to start again"):
        train(dataclasses.replace(other, resume=True))


def test_a_run_whose_folder_was_replaced_stops(config: TrainConfig, tmp_path: Path, monkeypatch) -> None:
    folder, successor = Path(config.output), []

    def replaced(*arguments: object) -> None:
        if not successor:
            folder.rename(tmp_path / "gone")
            folder.mkdir()
            (folder / "successor").write_text("x")
            successor.append(True)
        save(*arguments)

    monkeypatch.setattr("nanonet.training.loop.save", replaced)
    with pytest.raises(InputError, match="was deleted or replaced during this run, which stops"):
        train(config)
    assert [path.name for path in folder.iterdir()] == ["successor"]


def test_a_folder_that_was_replaced_while_the_teacher_was_made(
    config: TrainConfig, tmp_path: Path, monkeypatch
) -> None:
    folder = Path(config.output)

    def replaced(*arguments: object) -> object:
        shutil.rmtree(folder)
        folder.mkdir()
        return make_frozen_teacher(*arguments)

    monkeypatch.setattr("nanonet.training.frozen_teacher.make_frozen_teacher", replaced)
    with pytest.raises(InputError, match="was deleted or replaced during this run"):
        train(config)
    assert not list(folder.iterdir())
