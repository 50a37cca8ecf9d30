"""The files of a frozen teacher: which are loaded, and which are refused with one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from nanonet.config.settings import teacher_settings
from nanonet.config.train import TrainConfig
from nanonet.data.batches import Encoded
from nanonet.errors import InputError
from nanonet.models.load import load_encoder
from nanonet.teacher import cache, frozen
from nanonet.teacher.encoder import Encoder
from nanonet.teacher.frozen import (
    NAME,
    TUNED_ENCODER,
    VERSION,
    FrozenTeacher,
    load_teacher,
    load_tuned_encoder,
    save_teacher,
    save_tuned_encoder,
)
from nanonet.teacher.selection import Choice
from nanonet.tensor_file import load_tensors, save_tensors


@pytest.fixture
def teacher() -> FrozenTeacher:
    N, C, D = 6, 3, 4
    numbers = torch.Generator().manual_seed(0)
    shapes = ((N, C), (N, D), (C, D), (C,), (C, D), (C,))
    tensors = [torch.randn(*shape, generator=numbers) for shape in shapes]
    return FrozenTeacher(*tensors, Choice("diffusion", 10.0, {"diffusion": 0.75, "classifier": 0.5}))


@pytest.fixture
def encoder(tiny_encoder: Path) -> Encoder:
    return Encoder(load_encoder(str(tiny_encoder)), "mean", 0, torch.device("cpu"))


def test_a_teacher_and_its_tuned_encoder_are_loaded(teacher: FrozenTeacher, encoder: Encoder, tmp_path: Path) -> None:
    save_tuned_encoder(tmp_path, encoder)
    modes = {path.stat().st_mode & 0o777 for path in (tmp_path / "teacher").iterdir()}
    assert modes == {(tmp_path / "teacher").stat().st_mode & 0o666}  # those of the umask
    save_teacher(tmp_path, teacher, "key")
    loaded = load_teacher(tmp_path, "key")
    for name, value in vars(teacher).items():
        same = getattr(loaded, name)
        assert same.equal(value) if isinstance(value, torch.Tensor) else same == value or name == "encoder_digest", name
    weights = load_tuned_encoder(tmp_path, loaded, encoder).model.state_dict()
    assert all(weights[name].equal(tensor) for name, tensor in encoder.model.state_dict().items())


def test_an_older_versions_teacher_is_refused_with_one_line(teacher: FrozenTeacher, tmp_path: Path) -> None:
    old = {"soft": teacher.soft_labels, "embedding": teacher.embedding, "weight": teacher.weight, "bias": teacher.bias}
    old |= {"floor_weight": teacher.probe_weight, "floor_bias": teacher.probe_bias}
    choice = json.dumps({"rule": "diffusion", "strength": 10.0, "accuracy": {"diffusion": 0.75}})
    save_file(old, tmp_path / NAME, {"choice": choice, "key": "key"})  # as version 7 wrote it
    with pytest.raises(
        InputError, match=r"targets\.safetensors: written by an older version of nanonet; delete it, and"
    ):
        load_teacher(tmp_path, "key")


def test_another_versions_teacher_is_refused_with_one_line(teacher: FrozenTeacher, tmp_path: Path) -> None:
    save_teacher(tmp_path, teacher, "key")
    tensors, metadata = load_tensors(tmp_path / NAME, "")
    save_tensors(tmp_path / NAME, tensors, metadata | {"version": str(VERSION + 1)})
    with pytest.raises(InputError, match="written by another version of nanonet; delete it, and its copy"):
        load_teacher(tmp_path, "key")


def test_a_version_makes_entries_of_its_own(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, label = Encoded(torch.tensor([2, 3], dtype=torch.int32), torch.tensor([0, 2])), torch.tensor([0])
    arguments = teacher_settings(TrainConfig()), rows, label, encoder.model, "mean"
    first = cache.fingerprint(*arguments)
    assert first == cache.fingerprint(*arguments)
    monkeypatch.setattr(cache, "VERSION", VERSION + 1)
    assert first != cache.fingerprint(*arguments)


@pytest.mark.parametrize("change", ["byte", "file", "folder"])
def test_a_damaged_tuned_encoder_is_refused(
    change: str, teacher: FrozenTeacher, encoder: Encoder, tmp_path: Path
) -> None:
    save_tuned_encoder(tmp_path, encoder)
    save_teacher(tmp_path, teacher, "key")
    loaded, folder = load_teacher(tmp_path, "key"), tmp_path / TUNED_ENCODER
    if change == "byte":
        path = folder / "model.safetensors"
        stored = bytearray(path.read_bytes())
        stored[-3] ^= 1
        path.write_bytes(stored)
        assert len(load_file(path)) == len(encoder.model.state_dict())  # it would load
    elif change == "file":
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"hidden_act": "relu"}))
    else:
        folder.rename(tmp_path / "elsewhere")
    with pytest.raises(InputError, match=r"teacher: (damaged|the tuned teacher is gone).*; delete "):
        load_tuned_encoder(tmp_path, loaded, encoder)


def test_the_name_of_the_file_stays() -> None:
    assert (frozen.NAME, frozen.TUNED_ENCODER) == ("targets.safetensors", "teacher")  # in the folders of older runs
