"""Hostile models and tables: one clear line, exit code 2, little memory, no file's code run, nothing written."""

from __future__ import annotations

from pathlib import Path

import pytest
from support import hostile
from support.attack import answer

PEAK = 2_000_000_000  # memory that a refusal may take [bytes]
MODEL_COMMANDS = ["predict {table} --model {bad}", "export --model {bad} --output {out}"]
MODEL_COMMANDS += ["evaluate --model {bad} --data {table}"]
TEACHER = "train --teacher {bad} --data {table} --max-tokens 32 --steps 2 --output {out}"
TABLE_COMMANDS = ["train --teacher {encoder} --data {table} --max-tokens 32 --steps 2 --output {out}"]
TABLE_COMMANDS += ["evaluate --model {run} --data {table}"]


def refused(words: str, folder: Path) -> None:
    said = answer(words.split(), folder / "said")
    assert said.code == 2, (said, words)
    lines = [line for line in said.lines if "error" in line or "Traceback" in line]
    assert len(lines) == 1 and lines[0].startswith("nanonet: error: "), said.lines[-20:]
    assert said.lines[-1] == lines[0] and len(lines[0]) < 2000 and lines[0].isprintable(), said.lines[-20:]
    assert said.peak < PEAK, f"{said.peak / 1e9:.1f} GB"
    assert not (folder / "out").exists()


@pytest.mark.parametrize("kind", hostile.MODELS)
def test_a_hostile_model(kind: str, trained_run: Path, tiny_encoder: Path, tmp_path: Path) -> None:
    bad = hostile.model(trained_run / "best", tmp_path / "bad", kind)
    (tmp_path / "t.csv").write_text(hostile.ROWS)
    commands = MODEL_COMMANDS + [TEACHER] * (kind not in ("labels", "types"))  # a teacher's own labels do not count
    for words in commands:
        refused(words.format(bad=bad, table=tmp_path / "t.csv", out=tmp_path / "out"), tmp_path)


@pytest.mark.parametrize("kind", [*hostile.TABLES, "fifo", "zero"])
def test_a_hostile_table(kind: str, trained_run: Path, tiny_encoder: Path, tmp_path: Path) -> None:
    table = hostile.table(tmp_path / "data", kind)
    for words in TABLE_COMMANDS:
        places = {"encoder": tiny_encoder, "run": trained_run, "table": table, "out": tmp_path / "out"}
        refused(words.format(**places), tmp_path)
