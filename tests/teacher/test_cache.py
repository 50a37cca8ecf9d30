"""Teachers and backbone features that several runs share."""

from __future__ import annotations

import dataclasses
import os
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file
from support.grids import slow

from nanonet.config.train import TrainConfig
from nanonet.errors import InputError
from nanonet.models.load import load_encoder
from nanonet.teacher.cache import ensure_writable
from nanonet.training.pipeline import train


@pytest.fixture
def config(tiny_encoder: Path, tiny_data: Path, tmp_path: Path) -> TrainConfig:
    return TrainConfig(
        output=str(tmp_path / "first"),
        data=str(tiny_data),
        teacher=str(tiny_encoder),
        teacher_cache=str(tmp_path / "cache"),
        labels_per_class=4,
        teacher_steps=3,
        steps=3,
        max_tokens=32,
    )


def entries(config: TrainConfig) -> list[str]:
    return sorted(path.name for path in Path(config.teacher_cache).iterdir())


def test_a_cached_teacher_is_restored_and_changes_nothing(config: TrainConfig) -> None:
    first = train(config)
    assert "tuning on pseudo-labels" in first["seconds"] and len(entries(config)) == 1
    other = dataclasses.replace(config, output=config.output + "-2", peers_weight=1.0, steps=2)
    second = train(other)
    assert "tuning on pseudo-labels" not in second["seconds"] and len(entries(config)) == 1
    assert second["teacher"] == first["teacher"] and second["linear_probe"] == first["linear_probe"]
    again = dataclasses.replace(config, output=config.output + "-3")
    train(again)
    a, b = (load_file(Path(c.output) / "student-0" / "model.safetensors") for c in (config, again))
    assert all(a[name].equal(b[name]) for name in a)


CHANGES: list[dict] = [
    dict(seed=1),
    dict(teacher_steps=2),
    dict(teacher_steps=0),
    dict(targets="propagation"),
    dict(labels_per_class=5),
    dict(max_unlabelled=50),
    dict(max_tokens=5),
    dict(sharpen=2.0),
]


def test_whatever_decides_a_teacher_makes_another(config: TrainConfig) -> None:
    train(config)
    for made, change in enumerate(CHANGES, 1):
        train(dataclasses.replace(config, output=f"{config.output}-{made}", **change))
        assert len(entries(config)) == made + 1, change


def test_a_changed_encoder_makes_another(config: TrainConfig, tmp_path: Path) -> None:
    train(config)
    shutil.copytree(config.teacher, tmp_path / "encoder")
    model = load_encoder(config.teacher)
    model.encoder.layer[0].output.dense.bias.data[0] += 1e-3
    model.save_pretrained(tmp_path / "encoder")
    train(dataclasses.replace(config, output=config.output + "-2", teacher=str(tmp_path / "encoder")))
    assert len(entries(config)) == 2
    (tmp_path / "encoder" / "1_Pooling").mkdir()
    (tmp_path / "encoder" / "1_Pooling" / "config.json").write_text('{"pooling_mode_cls_token": true}')
    train(dataclasses.replace(config, output=config.output + "-3", teacher=str(tmp_path / "encoder")))
    assert len(entries(config)) == 3
    shutil.copytree(config.teacher, tmp_path / "elsewhere")
    train(dataclasses.replace(config, output=config.output + "-4", teacher=str(tmp_path / "elsewhere")))
    assert len(entries(config)) == 3  # the same encoder in another place is the same


def test_a_damaged_entry_is_named(config: TrainConfig) -> None:
    train(config)
    entry = Path(config.teacher_cache) / entries(config)[0] / "targets.safetensors"
    entry.write_bytes(entry.read_bytes()[:100])
    with pytest.raises(InputError, match=r"targets\.safetensors: damaged .*--teacher-cache"):
        train(dataclasses.replace(config, output=config.output + "-2"))


@pytest.mark.parametrize("lost", ["targets.safetensors", "teacher"])
def test_a_damaged_entry_is_found_before_a_run_is_overwritten(config: TrainConfig, lost: str) -> None:
    train(config)
    path, report = Path(config.teacher_cache) / entries(config)[0] / lost, Path(config.output) / "report.json"
    shutil.rmtree(path) if path.is_dir() else path.write_bytes(b"")
    before = report.read_bytes()
    with pytest.raises(InputError, match=f"{lost}: .* delete "):
        train(dataclasses.replace(config, overwrite=True))
    assert report.read_bytes() == before and (Path(config.output) / "best").is_dir()


@pytest.mark.parametrize("mode", ["frozen", slow("online")])
def test_cached_backbone_features_change_nothing(config: TrainConfig, mode: str) -> None:
    config = dataclasses.replace(config, teacher_mode=mode, teacher_steps=3, tuning="head", steps=8)
    alone = dataclasses.replace(config, output=config.output + "-0", teacher_cache="")
    again = dataclasses.replace(config, output=config.output + "-1")
    results = [train(each) for each in (alone, config, again)]
    stages = [[name for name in result["seconds"] if "frozen layers" in name] for result in results]
    assert stages[0] == stages[1] and stages[0] and not stages[2]
    cached = [name for name in entries(config) if name.startswith("backbone-")]
    assert len(cached) == len(stages[0])
    weights = [load_file(Path(c.output) / "student-1" / "model.safetensors") for c in (alone, config, again)]
    for other in weights[1:]:
        assert all(weights[0][name].equal(tensor) for name, tensor in other.items())
    # other texts and other layers make others; an online teacher has the same layers under every mapping
    train(dataclasses.replace(config, output=config.output + "-2", max_tokens=5))
    train(dataclasses.replace(config, output=config.output + "-3", layer_mapping="bottom-top"))
    found = [name for name in entries(config) if name.startswith("backbone-")]
    assert len(found) == len(cached) + (3 if mode == "online" else 2)
    path = Path(config.teacher_cache) / cached[0]
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(InputError, match=r"backbone-\w+\.safetensors: damaged .*delete it"):
        train(dataclasses.replace(config, overwrite=True))
    assert (Path(config.output) / "best").is_dir()


def test_what_killed_runs_left_in_the_cache_is_swept_after_a_day(tmp_path: Path) -> None:
    ours = [f".{'0' * 32}.a1_x", f".backbone-{'f' * 32}.safetensors.77"]
    others = ["0" * 32, f"backbone-{'f' * 32}.safetensors", ".git", ".backbone-notes"]
    for name in ours + others:
        (tmp_path / name).mkdir() if "." not in name[1:] else (tmp_path / name).write_text("x")
    (tmp_path / ours[0]).unlink()
    (tmp_path / ours[0]).mkdir()
    ensure_writable(tmp_path)  # another run may be writing them
    assert {path.name for path in tmp_path.iterdir()} == {*ours, *others}
    for path in tmp_path.iterdir():
        os.utime(path, (0, 0))
    ensure_writable(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == set(others)


def test_a_cache_that_cannot_be_written_is_named(config: TrainConfig, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(InputError, match="--teacher-cache .*give a folder"):
        train(config)
