"""Soft labels from files: the forms they come in, what they mean, and one line for every fault."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pyarrow
import pytest
import torch
from pyarrow import parquet
from support.text import jsonl, write_files

from nanonet.config.settings import data_settings, soft_label_settings
from nanonet.config.train import TrainConfig
from nanonet.data.lines import DEFAULT_LIMITS
from nanonet.data.prepare import draw
from nanonet.data.soft_label_files import FLOOR, SoftLabelFiles, read_soft_labels
from nanonet.errors import InputError

CLASSES = ["x", "y", "z"]
ROWS = [("one text", [0.7, 0.2, 0.1]), ("another", [0.0, 0.5, 0.5])]


def read(folder: Path, *names: str, **settings) -> SoftLabelFiles:
    config = TrainConfig(soft_labels=tuple(str(folder / name) for name in names), **settings)
    return read_soft_labels(soft_label_settings(config), "text", DEFAULT_LIMITS)


def as_csv(rows: list, separator: str = ",") -> str:
    return "\n".join(separator.join(map(str, row)) for row in rows) + "\n"


def quoted(value: object) -> str:
    """JSON as a cell of a CSV file."""
    return '"' + json.dumps(value).replace('"', '""') + '"'


FORMS = {
    "what predict writes": {
        "a.jsonl": jsonl(
            {"text": t, "label": "x", "probability": 0.7, "probabilities": dict(zip(CLASSES, p, strict=True))}
            for t, p in ROWS
        )
    },
    "a column a class, in another order": {
        "a.csv": as_csv([["z", "text", "x", "y"], *([p[2], t, p[0], p[1]] for t, p in ROWS)])
    },
    "tabs, and the label beside them": {
        "a.tsv": as_csv([["text", "label", *CLASSES], *([t, "x", *p] for t, p in ROWS)], "\t")
    },
    "objects as JSON in a cell": {
        "a.csv": as_csv(
            [["text", "probabilities"], *([t, quoted(dict(zip(CLASSES, p, strict=True)))] for t, p in ROWS)]
        )
    },
    "an array": {"a.json": json.dumps([{"text": t, **dict(zip(CLASSES, p, strict=True))} for t, p in ROWS])},
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_says_the_same(form: str, tmp_path: Path) -> None:
    (name,) = write_files(tmp_path, FORMS[form]) and FORMS[form]
    files = read(tmp_path, name)
    assert sorted(files.classes) == CLASSES
    found = files.by_text(CLASSES)
    assert list(found) == [text for text, _ in ROWS]
    wanted = torch.tensor([p for _, p in ROWS]).clamp(min=FLOOR)
    torch.testing.assert_close(torch.stack(list(found.values())).exp(), wanted)


def test_parquet(tmp_path: Path) -> None:
    columns = {"text": [t for t, _ in ROWS], **{c: [p[i] for _, p in ROWS] for i, c in enumerate(CLASSES)}}
    parquet.write_table(pyarrow.table(columns), tmp_path / "a.parquet")
    found = read(tmp_path, "a.parquet").by_text(CLASSES)
    torch.testing.assert_close(found["one text"].exp(), torch.tensor([0.7, 0.2, 0.1]))


def test_a_label_and_its_probability_leave_the_rest_to_the_other_classes(tmp_path: Path) -> None:
    write_files(tmp_path, {"a.csv": "text,label,probability\na,x,0.8\nb,z,1\n"})
    files = read(tmp_path, "a.csv")
    assert files.classes == ["x", "z"]
    found = files.by_text(["z", "y", "x"])  # the data may have a class that no row names
    torch.testing.assert_close(found["a"].exp(), torch.tensor([0.1, 0.1, 0.8]))
    torch.testing.assert_close(found["b"].exp(), torch.tensor([1.0, FLOOR, FLOOR]))
    with pytest.raises(InputError, match=r"a\.csv: its classes are 'x', 'z', 'y', those of the data are 'x', 'y'"):
        files.by_text(["x", "y"])


def test_logits_stay_as_they_are_and_log_probabilities_become_probabilities(tmp_path: Path) -> None:
    logits = [0.1234567, -3.25, 12.0]
    write_files(tmp_path, {"a.jsonl": jsonl([{"text": "a", "logits": dict(zip(CLASSES, logits, strict=True))}])})
    assert read(tmp_path, "a.jsonl", soft_labels_are="logits").by_text(CLASSES)["a"].equal(torch.tensor(logits))
    logs = dict(zip(CLASSES, [math.log(0.75), math.log(0.25), -1000.0], strict=True))
    write_files(tmp_path, {"b.jsonl": jsonl([{"text": "a", **logs}])})
    found = read(tmp_path, "b.jsonl", soft_labels_are="log_probabilities").by_text(CLASSES)["a"]
    torch.testing.assert_close(found.exp(), torch.tensor([0.75, 0.25, FLOOR]))


def test_several_files_are_averaged_by_their_weights(tmp_path: Path) -> None:
    write_files(tmp_path, {"a.csv": "text,x,y\na,1,0\nb,0.5,0.5\n", "b.csv": "text,y,x\na,1,0\n"})
    for weights, wanted in (((), 0.5), ((3.0, 1.0), 0.75)):
        found = read(tmp_path, "a.csv", "b.csv", soft_label_weights=weights).by_text(["x", "y"])
        torch.testing.assert_close(found["a"].exp(), torch.tensor([wanted, 1 - wanted]))
        torch.testing.assert_close(found["b"].exp(), torch.tensor([0.5, 0.5]))  # one file alone has it


def test_a_class_map_renames(tmp_path: Path) -> None:
    write_files(tmp_path, {"a.csv": "text,LABEL_0,1\na,0.9,0.1\n", "map.yaml": "LABEL_0: yes\n1: no\n"})
    files = read(tmp_path, "a.csv", class_map=str(tmp_path / "map.yaml"))
    assert files.classes == ["yes", "no"]  # as it is written: YAML's own rules would make booleans of them


def test_rows_without_numbers_are_left_out_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    null = {"text": "", "label": None, "probability": None, "probabilities": None}
    good = {"text": "a", "label": "x", "probability": 0.9, "probabilities": {"x": 0.9, "y": 0.1}}
    write_files(tmp_path, {"a.jsonl": jsonl([good, null, good])})
    files = read(tmp_path, "a.jsonl")
    assert files.texts.texts == ["a"]
    assert "a.jsonl: 1 rows have no text or no numbers and are left out" in capsys.readouterr().err


# files, settings, fragments of the line
FAULTS: dict[str, tuple[dict[str, str], dict, list[str]]] = {
    "no sum of 1": (
        {"a.csv": "text,x,y\na,0.5,0.5\nb,0.5,0.3\n"},
        {},
        ["a.csv, line 3: ", "probabilities of 'x', 'y' sum to 0.8", "every class its own"],
    ),
    "percent": (
        {"a.csv": "text,x,y\na,90,10\n"},
        {},
        ["line 2", "90 for 'x'", "none of probabilities", "--soft-labels-are"],
    ),
    "logits taken for probabilities": (
        {"a.csv": "text,x,y\na,-1,2\n"},
        {},
        ["line 2", "-1 for 'x'", "--soft-labels-are"],
    ),
    "positive log-probability": (
        {"a.csv": "text,x,y\na,-1,2\n"},
        {"soft_labels_are": "log_probabilities"},
        ["line 2", "2 for 'y'", "log probabilities"],
    ),
    "infinite logit": ({"a.csv": "text,x,y\na,nan,2\n"}, {"soft_labels_are": "logits"}, ["line 2", "nan for 'x'"]),
    "no number": (
        {"a.csv": "text,x,y,id\na,0.5,0.5,k7\n"},
        {},
        ["line 2, column 'id'", "'k7' is no number", "drop the column"],
    ),
    "no numbers at all": (
        {"a.csv": "text\na\n"},
        {},
        ["a.csv", "no numbers beside the texts", "a column for every class"],
    ),
    "label alone": (
        {"a.csv": "text,label\na,x\n"},
        {},
        ["no numbers beside the texts", "columns label and probability"],
    ),
    "labels as logits": (
        {"a.csv": "text,label,probability\na,x,1\n"},
        {"soft_labels_are": "logits"},
        ["leave the flag out"],
    ),
    "probability over 1": ({"a.csv": "text,label,probability\na,x,1.5\n"}, {}, ["line 2", "1.5 for 'x'"]),
    "other classes in a row": (
        {
            "a.jsonl": jsonl(
                [{"text": "a", "probabilities": {"x": 1, "y": 0}}, {"text": "b", "probabilities": {"x": 1}}]
            )
        },
        {},
        ["a.jsonl, line 2", "its classes are 'x', those of line 1 are 'x', 'y'", "give every row all classes"],
    ),
    "a class twice": (
        {"a.jsonl": jsonl([{"text": "a", "probabilities": {"x": 1, "x ": 0}}])},
        {},
        ["line 1", "stands there twice"],
    ),
    "no object": ({"a.jsonl": jsonl([{"text": "a", "probabilities": [1, 0]}])}, {}, ["line 1", "[1, 0] is no object"]),
    "no JSON": ({"a.csv": "text,probabilities\na,{x\n"}, {}, ["line 2", "'{x' is no JSON"]),
    "a text twice": (
        {"a.csv": "text,x,y\na  b,1,0\na b,0,1\n"},
        {},
        ["a.csv, line 3", "the text of line 2 again, with other numbers"],
    ),
    "other classes in a file": (
        {"a.csv": "text,x,y\na,1,0\n", "b.csv": "text,x,w\na,1,0\n"},
        {},
        ["b.csv: its classes are 'x', 'w'", "a.csv are 'x', 'y'", "--class-map"],
    ),
    "one class": ({"a.csv": "text,label,probability\na,x,1\n"}, {}, ["its only class is 'x'", "two or more"]),
    "all blank": ({"a.csv": "text,x,y\na,,\n"}, {}, ["a.csv", "no row has soft labels"]),
    "unknown class in the map": (
        {"a.csv": "text,x,y\na,1,0\n"},
        {"class_map": "w: x"},
        ["--class-map", "no class 'w'", "'x', 'y'"],
    ),
    "two classes of one name": (
        {"a.csv": "text,x,y\na,1,0\n"},
        {"class_map": "x: y"},
        ["a.csv: two of its classes would be 'y'"],
    ),
    "no map": (
        {"a.csv": "text,x,y\na,1,0\n"},
        {"class_map": "[x, y]"},
        ["map.yaml: no table of names", "LABEL_0: sports"],
    ),
    "no file": ({}, {}, ["a.csv: does not exist"]),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_is_one_line(fault: str, tmp_path: Path) -> None:
    files, settings, fragments = FAULTS[fault]
    if "class_map" in settings:
        write_files(tmp_path, {"map.yaml": settings["class_map"]})
        settings = settings | {"class_map": str(tmp_path / "map.yaml")}
    write_files(tmp_path, files)
    with pytest.raises(InputError) as error:
        read(tmp_path, *(files or ["a.csv"]), **settings)
    assert "\n" not in str(error.value) and all(fragment in str(error.value) for fragment in fragments), error.value


def test_texts_meet_the_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_files(tmp_path, {"soft.csv": 'text,x,y\n"a  b",1,0\nc,0,1\nd,0,1\n', "data.csv": "text\na b\nc\nd\ne\n"})
    files = read(tmp_path, "soft.csv")
    settings = data_settings(TrainConfig(data=str(tmp_path / "data.csv")))
    texts = draw(settings, files.classes, files)
    assert sorted(texts.rows.texts) == ["a b", "c", "d"] and texts.classes == ["x", "y"]
    assert "1 of 4 unlabelled texts have no soft label and are left out" in capsys.readouterr().err
    write_files(tmp_path, {"less.csv": "text\na b\nc\n"})
    with pytest.raises(InputError, match=r"soft\.csv, line 4: the text 'd' is not in --data .*less\.csv"):
        draw(replace(settings, data=str(tmp_path / "less.csv")), files.classes, files)
    further = replace(settings, data=str(tmp_path / "less.csv"), unlabelled=str(tmp_path / "data.csv"))
    assert len(draw(further, files.classes, files).rows.texts) == 5
    alone = replace(settings, data="pydocs", max_unlabelled=2)
    assert draw(alone, files.classes, files).name == "soft"
    assert "2 of 3 texts with soft labels are used; --max-unlabelled 0 uses all" in capsys.readouterr().err


def test_soft_labels_of_test_rows_alone_train_nothing(tmp_path: Path) -> None:
    folder = write_files(tmp_path, {"soft.csv": "text,x,y\na,1,0\n", "d/test.csv": "text,label\na,x\nb,y\n"})
    write_files(tmp_path, {"d/unlabelled.csv": "text\nc\n"})
    files = read(folder, "soft.csv")
    with pytest.raises(InputError, match="there is no text to train on; give texts by --unlabelled"):
        draw(data_settings(TrainConfig(data=str(tmp_path / "d"))), files.classes, files)
