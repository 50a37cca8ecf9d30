"""More hostile files, for every place that takes one: a table, soft labels, a class map, a model, a run."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from support import hostile_files as files
from support.attack import answer
from support.hostile import CONFIGS, FILES, ROWS
from support.hostile import model as spoilt

PEAK = 2_000_000_000  # memory that a refusal may take [bytes]
SHORT = "--max-tokens 32 --steps 2 --teacher-steps 2 --threads 1"


def refused(words: str, folder: Path, limit: int = 2000) -> None:
    before = {path for path in folder.rglob("*") if "said" not in path.parts}
    said = answer(words.split(), folder / "said")
    assert said.code == 2, (said, words)
    lines = [line for line in said.lines if "error" in line or "Traceback" in line]
    assert len(lines) == 1 and lines[0].startswith("nanonet: error: "), said.lines[-20:]
    assert said.lines[-1] == lines[0] and len(lines[0]) < limit and lines[0].isprintable(), said.lines[-20:]
    assert said.peak < PEAK, f"{said.peak / 1e9:.1f} GB"
    assert {path for path in folder.rglob("*") if "said" not in path.parts} == before
    assert not Path("ran").exists() and not Path("evil").exists()


@pytest.mark.parametrize("kind", files.TABLES)
def test_a_table(kind: str, trained_run: Path, tiny_encoder: Path, tmp_path: Path) -> None:
    name, make = files.TABLES[kind]
    (tmp_path / "data").mkdir()
    make(tmp_path / "data")
    bound = "--max-data-bytes 20000000" if "bomb" in kind else ""
    refused(
        f"train --teacher {tiny_encoder} --data {tmp_path}/data/{name} {SHORT} --output {tmp_path}/out {bound}",
        tmp_path,
    )
    if "label" not in kind and "5,000" not in kind:  # predict reads no labels
        words = f"predict {tmp_path}/data/{name} --model {trained_run} --output {tmp_path}/out.jsonl {bound}"
        refused(words, tmp_path)


def data(folder: Path) -> Path:
    (folder / "data").mkdir()
    (folder / "data" / "train.jsonl").write_bytes(files.jsonl(*files.GOOD))
    return folder / "data"


@pytest.mark.parametrize("kind", files.SOFT_LABELS)
def test_soft_labels(kind: str, tiny_encoder: Path, tmp_path: Path) -> None:
    where = data(tmp_path)
    files.SOFT_LABELS[kind](tmp_path)
    (soft,) = tmp_path.glob("soft*")
    bound = "--max-data-bytes 20000000" if kind == "a bomb" else ""
    words = f"train --data {where} --soft-labels {soft} --student-model {tiny_encoder} {SHORT} {bound}"
    refused(f"{words} --output {tmp_path}/out", tmp_path)


@pytest.mark.parametrize("kind", files.CLASS_MAPS)
def test_a_class_map(kind: str, tiny_encoder: Path, tmp_path: Path) -> None:
    where = data(tmp_path)
    (tmp_path / "soft.csv").write_text(files.COLUMNS)
    files.CLASS_MAPS[kind](tmp_path)
    words = f"train --data {where} --soft-labels {tmp_path}/soft.csv --student-model {tiny_encoder} {SHORT}"
    refused(f"{words} --class-map {tmp_path}/map --output {tmp_path}/out", tmp_path)


@pytest.mark.parametrize(
    "kind", [kind for kind in (*CONFIGS, *FILES, "fifo", "zero", "bin shard") if kind not in ("labels", "types")]
)
def test_a_model_of_students(kind: str, tiny_encoder: Path, tmp_path: Path) -> None:
    where = data(tmp_path)
    bad = spoilt(tiny_encoder, tmp_path / "bad", kind)
    (tmp_path / "soft.csv").write_text(files.COLUMNS)
    words = f"train --data {where} --soft-labels {tmp_path}/soft.csv --student-model {bad} {SHORT}"
    refused(f"{words} --output {tmp_path}/out", tmp_path)


@pytest.mark.parametrize("kind", files.MODELS)
def test_a_model(kind: str, trained_run: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad"
    shutil.copytree(trained_run / "best", bad)
    files.MODELS[kind](bad)
    (tmp_path / "t.csv").write_text(ROWS)
    refused(f"nanonet.load {bad}", tmp_path)
    refused(f"predict {tmp_path}/t.csv --model {bad}", tmp_path)
    refused(f"evaluate --data {tmp_path}/t.csv --model {bad}", tmp_path)
    refused(f"export --model {bad} --output {tmp_path}/out", tmp_path)


@pytest.mark.parametrize("kind", files.HARMLESS)
def test_code_of_a_model_does_not_run(kind: str, trained_run: Path, tmp_path: Path) -> None:
    shutil.copytree(trained_run / "best", tmp_path / "bad")
    files.HARMLESS[kind](tmp_path / "bad")
    for module in ("evil.py", "bad/evil.py"):
        (tmp_path / module).write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    said = answer(["nanonet.load", str(tmp_path / "bad")], tmp_path / "said")
    assert said.code in (0, 2) and not (tmp_path / "ran").exists(), said


@pytest.mark.parametrize("kind", files.RUNS)
def test_a_run(kind: str, trained_run: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad"
    shutil.copytree(trained_run, bad)
    files.RUNS[kind](bad)
    refused(f"Distiller.load {bad}", tmp_path)
