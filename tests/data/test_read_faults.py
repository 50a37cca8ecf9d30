"""One line for every fault of a user's data: file, place, column, cure."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from support.text import jsonl, write_files

from nanonet.data.labels import Names
from nanonet.data.read import load_dataset, read_table, read_texts
from nanonet.errors import InputError

NAMES = ["World", "Sports"]


ROWS = jsonl({"text": f"text {n}", "label": n % 2} for n in range(20))
ZIPPED = gzip.compress(("text,label\n" + "some text,World\n" * 5000).encode(), mtime=0)
FLIPPED = ZIPPED[:40] + bytes([ZIPPED[40] ^ 255]) + ZIPPED[41:]

# (files, what is loaded, fragments of the message): a fault, the file it is in, the place, the cure
BAD: dict[str, tuple[dict[str, str | bytes], str, list[str]]] = {
    # --- columns
    "missing text column": (
        {"a.csv": "txt,label\na,0\n"},
        "a.csv",
        ["a.csv, line 1, column 'text'", "'txt', 'label'", "text_column"],
    ),
    "missing label column": (
        {"a.tsv": "text\tclass\na\t0\n"},
        "a.tsv",
        ["a.tsv, line 1, column 'label'", "'class'", "label_column"],
    ),
    "missing JSON key": (
        {"a.jsonl": '{"text": "a", "label": 1}\n{"text": "b"}\n'},
        "a.jsonl",
        ["a.jsonl, line 2, column 'label'", "'text'", "label_column"],
    ),
    "column twice": ({"a.csv": "text,label,text\na,0,b\n"}, "a.csv", ["line 1, column 'text'", "twice"]),
    # --- texts
    "null text": (
        {"a.jsonl": '{"text": null, "label": 1}\n'},
        "a.jsonl",
        ["line 1, column 'text'", "None", "not a string"],
    ),
    "text is a number": (
        {"a.json": '[{"text": 3, "label": 1}]'},
        "a.json",
        ["row 1, column 'text'", "3, not a string"],
    ),
    "half a surrogate pair": (
        {"a.jsonl": '{"text": "a\\ud800", "label": 1}\n'},
        "a.jsonl",
        ["line 1, column 'text'", "half"],
    ),
    # --- labels
    "one class and a blank": ({"a.csv": "text,label\na,0\nb,\n"}, "a.csv", ["column 'label'", "'0'", "two classes"]),
    "no label": ({"a.jsonl": '{"text": "a", "label": null}\n'}, "a.jsonl", ["column 'label'", "no row has a label"]),
    "fractional label": ({"a.jsonl": '{"text": "a", "label": 1.5}\n'}, "a.jsonl", ["line 1, column 'label'", "1.5"]),
    "boolean label": ({"a.jsonl": '{"text": "a", "label": true}\n'}, "a.jsonl", ["line 1, column 'label'", "True"]),
    "one class": ({"a.csv": "text,label\na,x\nb,x\n"}, "a.csv", ["a.csv, column 'label'", "'x'", "two classes"]),
    "unknown label": (
        {"train.csv": "text,label\na,World\nb,Sprots\n", "labels.json": json.dumps(NAMES)},
        ".",
        ["train.csv, line 3, column 'label'", "'Sprots'", "'World', 'Sports'"],
    ),
    "unknown label in test": (
        {"train.csv": "text,label\na,x\nb,y\n", "test.csv": "text,label\na,z\n"},
        ".",
        ["test.csv, line 2, column 'label'", "'z'", "'x', 'y'"],
    ),
    "label out of range": (
        {"train.jsonl": '{"text": "a", "label": 2}\n', "labels.json": json.dumps(NAMES)},
        ".",
        ["train.jsonl, line 1, column 'label'", "2 is out of range", "count from 0"],
    ),
    "negative label": (
        {"train.csv": "text,label\na,-2\n", "labels.json": json.dumps(NAMES)},
        ".",
        ["train.csv, line 2, column 'label'", "-2 is out of range"],
    ),
    "labels.json is no JSON": (
        {"train.csv": "text,label\na,0\n", "labels.json": "[World"},
        ".",
        ["labels.json", "not JSON", "write a list"],
    ),
    "labels.json is no list": (
        {"train.csv": "text,label\na,0\n", "labels.json": '{"0": "a"}'},
        ".",
        ["labels.json", "no list"],
    ),
    "labels.json of numbers": (
        {"train.csv": "text,label\na,0\n", "labels.json": "[1, 2]"},
        ".",
        ["labels.json", "no list of names"],
    ),
    "labels.json repeats": (
        {"train.csv": "text,label\na,0\n", "labels.json": '["a", "a "]'},
        ".",
        ["labels.json", "1 different"],
    ),
    "labels.json has one": (
        {"train.csv": "text,label\na,0\n", "labels.json": '["a"]'},
        ".",
        ["labels.json", "1 names", "two or more"],
    ),
    "labels.json of half a letter": (
        {"train.csv": "text,label\na,0\n", "labels.json": '["a", "\\ud83d"]'},
        ".",
        ["labels.json", "the name holds half a character"],
    ),
    "half a letter for a label": (
        {"a.jsonl": '{"text": "a", "label": "\\ud83d"}\n'},
        "a.jsonl",
        ["a.jsonl, line 1", "the label holds half a character"],
    ),
    # --- bytes
    "latin-1": (
        {"a.csv": b"text,label\na,0\ncaf\xe9,1\n"},
        "a.csv",
        ["a.csv, line 3", "byte 4 of the line is 0xe9", "utf-8"],
    ),
    "utf-16": ({"a.csv": "text,label\na,0\n".encode("utf-16")}, "a.csv", ["a.csv, line 1", "byte 1", "utf-8"]),
    "gzip without its name": ({"a.csv": ZIPPED}, "a.csv", ["a.csv", "add .gz"]),
    "not gzip": ({"a.csv.gz": "text,label\na,0\n"}, "a.csv.gz", ["a.csv.gz", "not sound gzip", "drop .gz"]),
    "broken gzip": ({"a.csv.gz": FLIPPED}, "a.csv.gz", ["a.csv.gz, after line", "not sound gzip"]),
    "truncated gzip": ({"a.csv.gz": ZIPPED[:-9]}, "a.csv.gz", ["a.csv.gz, after line", "ends too early", "again"]),
    "not parquet": ({"a.parquet": "text,label\n"}, "a.parquet", ["a.parquet", "not sound Parquet", "write it again"]),
    # --- syntax
    "too many fields": (
        {"a.csv": "text,label\na,0\nb, c,1\n"},
        "a.csv",
        ["a.csv, line 3", "3 fields", "header has 2", "quote"],
    ),
    "too few fields": ({"a.csv": "text,label\na\n"}, "a.csv", ["a.csv, line 2", "1 fields"]),
    "unclosed quote": ({"a.csv": 'text,label\na,0\n"b,1\nc,0\n'}, "a.csv", ["a.csv, line 3", "close every quote"]),
    "huge unclosed quote": (
        {"a.csv": 'text,label\n"b,1\n' + "c,0\n" * 40000},
        "a.csv",
        ["a.csv, line 2", "close every quote"],
    ),
    "invalid JSON": (
        {"a.jsonl": '{"text": "a", "label": 0}\n{"text": "a", }\n'},
        "a.jsonl",
        ["a.jsonl, line 2", "invalid JSON", "character 15"],
    ),
    "invalid JSON array": (
        {"a.json": '[\n{"text": "a", "label": 0},\n{"text" "b"}]'},
        "a.json",
        ["a.json, line 3", "invalid JSON"],
    ),
    "deep JSON": ({"a.jsonl": "[" * 200_000 + "\n"}, "a.jsonl", ["a.jsonl, line 1", "invalid JSON"]),
    "JSON line is no object": (
        {"a.jsonl": '{"text": "a", "label": 0}\n["a", 0]\n'},
        "a.jsonl",
        ["a.jsonl, line 2", "not a JSON object"],
    ),
    # --- files and folders
    "empty file": ({"a.csv": ""}, "a.csv", ["a.csv", "is empty"]),
    "header only": ({"a.csv": "text,label\n"}, "a.csv", ["a.csv", "no rows"]),
    "empty gzip": ({"a.jsonl.gz": gzip.compress(b"")}, "a.jsonl.gz", ["a.jsonl.gz", "no rows"]),
    "unknown extension": ({"a.txt": "a\n"}, "a.txt", ["a.txt", "unknown extension", ".csv, .tsv, .jsonl"]),
    "no extension": ({"table": "a\n"}, "table", ["table", "unknown extension"]),
    "empty folder": ({}, ".", ["empty folder", "put train.csv"]),
    "no train file": ({"training.csv": "text,label\na,0\n"}, ".", ["no train file", "'training.csv'", "train.csv"]),
    "train is a folder": ({"train.csv/a": "a"}, ".", ["no train file"]),
    "two train files": (
        {"train.csv": ROWS, "train.jsonl.gz": ROWS},
        ".",
        ["'train.csv', 'train.jsonl.gz'", "keep one"],
    ),
    "two test files": (
        {"train.jsonl": ROWS, "test.csv": "", "test.tsv": ""},
        ".",
        ["'test.csv', 'test.tsv'", "keep one"],
    ),
    "missing path": ({}, "reviews.csv", ["reviews.csv", "does not exist"]),
    "too long a path": ({}, "x" * 5000, ["...xxx", "does not exist"]),
}


@pytest.mark.parametrize("fault", BAD)
def test_every_fault_is_one_line_with_file_place_and_cure(tmp_path: Path, fault: str) -> None:
    files, data, fragments = BAD[fault]
    if data.endswith(".parquet"):
        pytest.importorskip("pyarrow")
    write_files(tmp_path, files)
    with pytest.raises(InputError) as error:
        load_dataset(str(tmp_path / data))
    message = str(error.value)
    assert "\n" not in message and len(message) < 320
    assert ": " in message
    for fragment in fragments:
        assert fragment in message


def test_faults_that_need_other_calls(tmp_path: Path) -> None:
    write_files(tmp_path, {"folder/test.csv": "text\na\n", "a.csv": "text,label\na,0\n", "b.csv": "text,label\na,2\n"})
    with pytest.raises(InputError, match="is a folder"):
        read_table(tmp_path / "folder", "text", None, None)
    with pytest.raises(InputError, match="no table in this folder"):
        read_texts(tmp_path / "folder")
    with pytest.raises(InputError, match="does not exist"):
        read_texts(tmp_path / "none.csv")
    with pytest.raises(InputError, match="text_column and label_column are the same"):
        read_table(tmp_path / "a.csv", "text", "text", None)
    with pytest.raises(InputError, match="does not exist: give a file"):
        load_dataset("")
    # names that are numbers: a number is never taken for a position
    with pytest.raises(InputError, match=r"b.csv, line 2, column 'label': unknown label '2': the classes are '0', '1'"):
        read_table(tmp_path / "b.csv", "text", "label", Names(["0", "1"]))
