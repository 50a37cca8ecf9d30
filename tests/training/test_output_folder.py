"""Runs that are killed at the worst moment, and what --overwrite replaces."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
from support.grids import slow

from nanonet.config.train import TrainConfig
from nanonet.errors import InputError
from nanonet.training.output_folder import REPLACED, OutputFolder
from nanonet.training.pipeline import train

FILES = {"config.yaml", "metrics.jsonl", "report.html", "report.json", "targets.safetensors"}
FINISHED = FILES | {"best", "student-0", "student-1"}


class Killed(BaseException):
    """What stands for SIGKILL: nothing in the program may handle it."""


@pytest.fixture
def config(tiny_run: TrainConfig) -> TrainConfig:
    return dataclasses.replace(tiny_run, labels_per_class=4, teacher_steps=2, steps=4, save_every=2)


def names(folder: str | Path) -> set[str]:
    return {path.name for path in Path(folder).iterdir()}


def kill_at(monkeypatch: pytest.MonkeyPatch, config: TrainConfig, place: str) -> None:
    """Run until the function at `place` is called; on the way out nothing is tidied."""

    def killed(*arguments: object, **options: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(place, killed)
        patch.setattr("nanonet.training.output_folder._move_back", lambda folder: None)
        with pytest.raises(Killed):
            train(config)


@pytest.mark.parametrize(
    "place",
    [
        slow("nanonet.training.frozen_teacher.save_teacher"),
        "nanonet.training.loop.restore",
        slow("nanonet.training.outcome.export_students"),
        "nanonet.report.summary.render_html",
        slow("nanonet.report.summary._finite"),
        "nanonet.training.outcome.remove",
    ],
)
def test_a_run_killed_anywhere_is_completed(config: TrainConfig, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    other = dataclasses.replace(config, output=config.output + "-uninterrupted")
    expected = train(other)
    kill_at(monkeypatch, config, place)
    assert names(config.output) != FINISHED
    assert (Path(config.output) / "report.json").exists() == (place == "nanonet.training.outcome.remove")
    result = train(dataclasses.replace(config, resume=True))
    assert names(config.output) == FINISHED and result["students"] == expected["students"]
    for student in ("student-0", "best"):
        a, b = (Path(c.output) / student / "model.safetensors" for c in (config, other))
        assert a.read_bytes() == b.read_bytes()
    with pytest.raises(InputError, match="is finished; give --overwrite"):
        train(dataclasses.replace(config, resume=True))


def test_a_run_without_its_page_gets_it(config: TrainConfig) -> None:
    first = train(config)
    page = Path(config.output) / "report.html"
    before = page.read_text()
    page.unlink()  # older versions wrote it after report.json
    assert train(dataclasses.replace(config, resume=True)) == json.loads(json.dumps(first))
    assert page.read_text() == before


def test_leftovers_are_swept_by_whoever_has_the_lock(config: TrainConfig) -> None:
    folder = Path(config.output)
    leftovers = {".checkpoint.safetensors.123", ".report.json.9", ".student-0.new-123", ".best.old-4"}
    others = {".notes", ".git", ".student-0", ".thesis.tex.123"}
    with OutputFolder(config).open():
        for name in leftovers | others:
            path = folder / name
            path.mkdir() if "student" in name or "best" in name else path.write_text("x")
        with pytest.raises(InputError, match="another run"), OutputFolder(config).open():
            pass
        assert names(folder) >= leftovers
    with OutputFolder(dataclasses.replace(config, resume=True)).open():
        assert names(folder) == others | {"config.yaml"}


def test_what_is_replaced_stays_aside_until_the_new_run_is_finished(config: TrainConfig, monkeypatch) -> None:
    train(config)
    folder = Path(config.output)
    old = (folder / "report.json").read_bytes()
    again = dataclasses.replace(config, overwrite=True, seed=1)
    kill_at(monkeypatch, again, "nanonet.training.outcome.export_students")
    assert (folder / REPLACED / "report.json").read_bytes() == old and not (folder / "report.json").exists()
    # a second try replaces the killed run, not what it was to replace
    kill_at(monkeypatch, again, "nanonet.training.outcome.export_students")
    assert (folder / REPLACED / "report.json").read_bytes() == old
    train(dataclasses.replace(again, overwrite=False, resume=True))
    assert names(folder) == FINISHED and (folder / "report.json").read_bytes() != old
    report = train(again)
    assert names(folder) == FINISHED and report["config"]["seed"] == 1


def test_a_run_that_fails_without_checkpoints_puts_back_what_it_replaced(config: TrainConfig) -> None:
    train(config)
    before = {path: path.read_bytes() for path in sorted(Path(config.output).rglob("*")) if path.is_file()}
    with pytest.raises(InputError, match="diverged"):
        train(dataclasses.replace(config, overwrite=True, learning_rate=1e30, save_every=0))
    assert {path: path.read_bytes() for path in sorted(Path(config.output).rglob("*")) if path.is_file()} == before
    with pytest.raises(InputError, match="diverged"):
        train(dataclasses.replace(config, overwrite=True, learning_rate=1e30))
    # a run with checkpoints can be resumed: what was replaced stays aside
    assert {"checkpoint.safetensors", REPLACED} <= names(config.output)


@pytest.mark.parametrize("stop", ["write", "rename"])
def test_an_overwrite_killed_while_it_moves_things_aside_loses_nothing(
    config: TrainConfig, stop: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(config)
    folder = Path(config.output)
    report = (folder / "report.json").read_bytes()
    calls, rename = [], Path.rename

    def third(path: Path, target: Path) -> Path:
        if REPLACED in str(target) and not path.name.startswith("."):
            calls.append(path)
            if len(calls) == 3:
                raise Killed
        return rename(path, target)

    def killed(path: Path, text: str) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        if stop == "rename":
            patch.setattr(Path, "rename", third)
        else:
            patch.setattr("nanonet.training.output_folder.write", killed)
        with pytest.raises(Killed), OutputFolder(dataclasses.replace(config, overwrite=True)).open():
            pass
    with OutputFolder(dataclasses.replace(config, overwrite=True)).open():
        assert names(folder) == {"config.yaml", REPLACED} and names(folder / REPLACED) == FINISHED
        assert (folder / REPLACED / "report.json").read_bytes() == report


@pytest.mark.parametrize("count", range(1, 9))
def test_moving_back_may_be_killed_at_any_file(
    config: TrainConfig, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = dataclasses.replace(config, save_every=0)
    folder, overwrite = Path(config.output), dataclasses.replace(config, overwrite=True)
    with OutputFolder(config).open():
        for name in FINISHED - {"config.yaml"}:
            (folder / name).write_text("old")
    calls, rename = [], Path.rename

    def killed(path: Path, target: Path) -> Path:
        calls.append(path)
        if len(calls) == count:
            raise Killed
        return rename(path, target)

    with pytest.raises(Killed), OutputFolder(overwrite).open():
        (folder / "metrics.jsonl").write_text("new")
        monkeypatch.setattr(Path, "rename", killed)
        raise Killed
    monkeypatch.undo()
    assert len(calls) == min(count, 8)
    with OutputFolder(overwrite).open():
        assert names(folder) == {"config.yaml", REPLACED} and names(folder / REPLACED) == FINISHED
        assert all((folder / REPLACED / name).read_text() == "old" for name in FINISHED - {"config.yaml"})


def test_a_run_killed_before_it_had_settings_leaves_a_folder_that_is_free(config: TrainConfig) -> None:
    folder = Path(config.output)
    folder.mkdir()
    (folder / ".config.yaml.123").write_text("steps: ")
    with OutputFolder(config).open():
        assert names(folder) == {"config.yaml"}


@pytest.mark.parametrize("name", ["thesis.tex", ".git", slow("src"), slow("notes.txt")])
def test_a_folder_with_anything_else_is_not_emptied(config: TrainConfig, name: str) -> None:
    train(config)
    other = Path(config.output) / name
    other.mkdir() if "." not in name[1:] else other.write_text("x")
    before = names(config.output)
    with pytest.raises(InputError, match=f"holds {name}, which nanonet train did not write"):
        train(dataclasses.replace(config, overwrite=True))
    assert names(config.output) == before
    shutil.rmtree(other) if other.is_dir() else other.unlink()
    train(dataclasses.replace(config, overwrite=True))
