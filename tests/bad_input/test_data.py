"""Texts and labels that will not do, for training, evaluating and predicting."""

from __future__ import annotations

import gzip
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from nanonet.cli.main import main

# files in the working folder, arguments (see conftest.py), fragments of the message
Case = tuple[dict[str, str | bytes], str, list[str]]

ROWS = "".join(json.dumps({"text": f"cat bread rain {n}", "label": ["a", "b"][n % 2]}) + "\n" for n in range(40))
GZIP = gzip.compress((ROWS * 50).encode())

DATA: dict[str, Case] = {
    "no such file": ({}, "train --data {here}/nope.csv --output {out}", ["nope.csv", "does not exist", "give a file"]),
    "no such column": (
        {"a.csv": "text,class\na,0\n"},
        "train --data {here}/a.csv --output {out}",
        ["line 1", "'class'"],
    ),
    "one class": ({"a.csv": "text,label\na,x\nb,x\n"}, "train --data {here}/a.csv --output {out}", ["two classes"]),
    "too few rows of a class": (
        {"a.jsonl": ROWS},
        "train --data {here}/a.jsonl --labels-per-class 30 --teacher {encoder} --max-tokens 32 --output {out}",
        ["class 'a'", "30", "lower it"],
    ),
    "unknown label": (
        {"d/train.jsonl": ROWS, "d/labels.json": '["a", "c"]'},
        "train --data {here}/d --output {out}",
        ["line 2", "'b'", "'a', 'c'"],
    ),
    "empty texts": (
        {"a.csv": "text,label\n,x\n ,y\n"},
        "train --data {here}/a.csv --output {out}",
        ["a.csv", "no rows"],
    ),
    "latin-1": ({"a.csv": b"text,label\ncaf\xe9,x\n"}, "train --data {here}/a.csv --output {out}", ["line 2", "utf-8"]),
    "broken gzip": (
        {"a.jsonl.gz": GZIP[: len(GZIP) // 2]},
        "train --data {here}/a.jsonl.gz --output {out}",
        ["a.jsonl.gz", "ends too early", "again"],
    ),
    "broken JSON": (
        {"a.jsonl": ROWS + '{"text" "a"}\n'},
        "train --data {here}/a.jsonl --output {out}",
        ["line 41", "invalid JSON"],
    ),
    "empty unlabelled file": (
        {"u.csv": ""},
        "train --unlabelled {here}/u.csv {shared}",
        ["u.csv", "is empty", "give a file"],
    ),
}

READ: dict[str, Case] = {
    "no data": ({}, "evaluate --model {run}", ["--data is missing", "test.*"]),
    "label unknown to the model": (
        {"t.jsonl": '{"text": "a", "label": "animals"}\n{"text": "b", "label": "planets"}\n'},
        "evaluate --model {run} --data {here}/t.jsonl",
        ["line 2", "'planets'", "'animals', 'food', 'weather'"],
    ),
    "number unknown to the model": (
        {"t.jsonl": '{"text": "a", "label": 3}\n'},
        "evaluate --model {run} --data {here}/t.jsonl",
        ["line 1", "the label 3 is a number", "labels.json"],
    ),
    "labels.json of another task": (
        {"t.jsonl": '{"text": "a", "label": 1}\n', "labels.json": '["animals", "planets"]'},
        "evaluate --model {run} --data {here}/t.jsonl",
        ["line 1", "'planets'", "the classes are 'animals'"],
    ),
    "several tests": ({"d/test.csv": "x", "d/test.tsv": "x"}, "evaluate --model {run} --data {here}/d", ["keep one"]),
    "no rows at a time": ({}, "evaluate --model {run} --data {data} --batch-rows 0", ["--batch-rows 0", "1 or more"]),
    "longer than the model": ({}, "evaluate --model {run} --data {data} --max-tokens 65", ["--max-tokens 65", "64"]),
    "negative length": (
        {},
        "predict {data}/test.jsonl --model {run} --max-tokens -1",
        ["--max-tokens -1", "1 or more"],
    ),
    "no texts": ({"t.txt": ""}, "predict {here}/t.txt --model {run}", ["t.txt", "no texts"]),
    "texts that are numbers": (
        {"t.jsonl": '{"text": "a"}\n{"text": 3}\n'},
        "predict {here}/t.jsonl --model {run} --output {out}",
        ["t.jsonl, line 2", "3, not a string"],
    ),
    "texts in latin-1": ({"t.txt": b"caf\xe9\n"}, "predict {here}/t.txt --model {run}", ["line 1", "utf-8", "convert"]),
    "no such texts": ({}, "predict {here}/t.txt --model {run}", ["t.txt", "cannot be read", "give a file"]),
    "texts of another kind": ({"t.doc": "a"}, "predict {here}/t.doc --model {run}", ["t.doc", ".txt", ".jsonl"]),
    "no text column": ({"t.csv": "a,b\nc,d\n"}, "predict {here}/t.csv --model {run}", ["'text'", "'a', 'b'"]),
}


@pytest.mark.parametrize("case", DATA.values(), ids=DATA)
def test_training_on_bad_data(case: Case, refuses: Callable[..., None]) -> None:
    refuses(*case)


@pytest.mark.parametrize("case", READ.values(), ids=READ)
def test_reading_bad_data(case: Case, refuses: Callable[..., None]) -> None:
    refuses(*case)


def test_a_bad_stdin_names_its_line(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a cat\n\xff\nrain\n")))
    assert main(["predict", "--model", str(run)]) == 2
    assert "standard input, line 2: not utf-8" in capsys.readouterr().err
