"""Tables as users have them, one folder a kind of fault (tests/data/cases; `clean` has none): each is read right, or
refused in one line that says how to mend it.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import pytest
from support.text import jsonl, read_jsonl, write_files

from nanonet.data.dataset import Dataset, Split
from nanonet.data.labels import Names, index_labels, read_label
from nanonet.data.read import load_dataset, read_table
from nanonet.errors import InputError

CASES = Path(__file__).parent / "cases"
TOPICS = ["garden", "kitchen", "traffic"]


def labels(split: Split | None, classes: list[str]) -> list[str]:
    """The labels of a split by name."""
    assert split is not None and split.labels is not None
    return [classes[label] for label in split.labels]


@pytest.fixture(scope="module")
def clean() -> Dataset:
    return load_dataset(str(CASES / "clean"))


def test_a_table_without_a_fault(clean: Dataset, capsys: pytest.CaptureFixture[str]) -> None:
    assert clean.classes == TOPICS and clean.test is not None
    rows = read_jsonl(CASES / "clean" / "train.jsonl")
    assert clean.train.texts == [row["text"] for row in rows]
    assert labels(clean.train, clean.classes) == [row["label"] for row in rows]
    assert capsys.readouterr().err == ""


def test_train_names_and_test_numbers_are_not_matched() -> None:
    with pytest.raises(InputError) as error:
        load_dataset(str(CASES / "c01_names_then_numbers"))
    said = str(error.value)
    assert "test.csv, line 2, column 'label'" in said and "labels.json" in said and "'garden', 'kitchen'" in said


def test_a_labels_json_says_what_the_numbers_count(tmp_path: Path) -> None:
    shutil.copytree(CASES / "c01_names_then_numbers", tmp_path / "d")
    write_files(tmp_path / "d", {"labels.json": json.dumps(["traffic", "kitchen", "garden"])})
    data = load_dataset(str(tmp_path / "d"))
    # the second text of each test table is about kitchens
    assert labels(data.test, data.classes)[:3] == ["garden", "kitchen", "traffic"]


def test_floats_and_whole_numbers_are_one_label() -> None:
    data = load_dataset(str(CASES / "c28_float_names_int_test"))
    assert data.classes == ["1", "2", "3"]
    assert labels(data.test, data.classes)[:4] == ["1", "2", "1", "2"]


def test_versions_are_names() -> None:
    assert names_of("1.0,2.0,2.1,1") == ["1", "1.0", "2.0", "2.1"]
    assert names_of("1.0,2.0,2,1") == ["1", "2"]


def names_of(written: str) -> list[str]:
    """The classes of a table with these labels."""
    found = [read_label(label, "a.csv", "", "label") for label in written.split(",")]
    return index_labels(found, None, "a.csv", [""] * len(found), "label")[1].names


def test_a_quote_in_a_tsv_is_a_character(clean: Dataset) -> None:
    data = load_dataset(str(CASES / "c02_tsv_quotes"))
    assert len(data.train.texts) == 150
    assert [text for text in data.train.texts if text.startswith('"')] == [
        '"again broth had some recipe whisk again again'
    ]
    assert labels(data.train, data.classes) == labels(clean.train, clean.classes)


@pytest.mark.parametrize(
    ("content", "rows"),
    [
        ('text\tlabel\n"a ""b"""\tx\n"c\td"\ty\n', [('a "b"', "x"), ("c\td", "y")]),  # every text is quoted
        ('"text"\t"label"\n"a\nb"\t"x"\n"c"\t"y"\n', [("a\nb", "x"), ("c", "y")]),
        ('text\tlabel\n"a" b\tx\nc\ty\n', [('"a" b', "x"), ("c", "y")]),
        ('text\tlabel\n"a\tx\nb"\ty\n', [('"a', "x"), ('b"', "y")]),
    ],
)
def test_a_tsv_is_quoted_where_a_column_always_is(content: str, rows: list[tuple[str, str]], tmp_path: Path) -> None:
    table, names = read_table(write_files(tmp_path, {"a.tsv": content}) / "a.tsv", "text", "label", None)
    assert list(zip(table.texts, labels(table, names), strict=True)) == rows


def test_unicode_forms_and_invisible_characters_are_one_class(
    clean: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = load_dataset(str(CASES / "c09_nfc_nfd"))
    assert data.classes == ["café", "kitchen", "traffic"] and data.train.labels == clean.train.labels
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "train.jsonl, column 'label'" in said and "'cafe\\u0301'" in said
    forms = ["spam", "sp\u200bam", "\ufeffspam", " spam\u00a0", "ham", "ham\u00ad", "می‌خواهم"]
    write_files(tmp_path, {"a.jsonl": jsonl({"text": f"text {i}", "label": form} for i, form in enumerate(forms))})
    table, names = read_table(tmp_path / "a.jsonl", "text", "label", None)
    assert names == ["ham", "spam", "می‌خواهم"]  # the joiner between two letters of Persian stays
    assert table.labels == [1, 1, 1, 1, 0, 0, 2]


@pytest.mark.parametrize("separator", [";", "\t", "|"])
def test_the_separator_is_found(separator: str, clean: Dataset, tmp_path: Path) -> None:
    assert load_dataset_rows(CASES / "c03_semicolon" / "train.csv") == clean.train.texts
    content = f'label{separator}text{separator}n\nx{separator}"a, b"{separator}1\ny{separator}c{separator}2\n'
    table, names = read_table(write_files(tmp_path, {"a.csv": content}) / "a.csv", "text", "label", None)
    assert (table.texts, labels(table, names)) == (["a, b", "c"], ["x", "y"])


def load_dataset_rows(path: Path) -> list[str]:
    return read_table(path, "text", "label", None)[0].texts


def test_the_usual_separator_wins_and_another_is_named(tmp_path: Path) -> None:
    write_files(tmp_path, {"a.csv": "text,label;b\na,x\n", "b.csv": "text:label\na:x\n"})
    with pytest.raises(InputError, match="line 1, column 'label': no such column: set label_column to one of 'text'"):
        read_table(tmp_path / "a.csv", "text", "label", None)
    with pytest.raises(InputError, match="set text_column to one of 'text:label'"):
        read_table(tmp_path / "b.csv", "text", "label", None)


def test_lines_may_end_in_cr_alone(clean: Dataset, tmp_path: Path) -> None:
    assert load_dataset_rows(CASES / "c05_cr_only" / "train.csv") == clean.train.texts
    write_files(tmp_path, {"a.jsonl": '{"text": "a", "label": 0}\r{"text": "b"}\r'})
    with pytest.raises(InputError, match="a.jsonl, line 2, column 'label'"):
        read_table(tmp_path / "a.jsonl", "text", "label", None)
    # a CR within a line of a file of LFs is no end
    write_files(tmp_path, {"b.tsv": "text\tlabel\na\rb\t0\nc\t1\n"})
    assert load_dataset_rows(tmp_path / "b.tsv") == ["a\rb", "c"]


def test_minus_one_everywhere_is_no_label(clean: Dataset, capsys: pytest.CaptureFixture[str]) -> None:
    data = load_dataset(str(CASES / "c08_minus_one"))
    assert data.classes == ["0", "1", "2"] and data.test is None and len(data.train.texts) == 150
    assert not data.unlabelled and Counter(data.train.labels) == Counter(clean.train.labels)
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "test.csv, column 'label': 60 of 60 rows have no label and are left out" in said


@pytest.mark.parametrize(
    ("written", "classes", "blank"),
    [
        ("0,1,,2", ["0", "1", "2"], 1),  # an empty cell
        ("a,b,NaN,null,nan", ["a", "b"], 3),
        ("0,1,-1,-100", ["0", "1"], 2),
        ("0.0,1.0,-1.0,", ["0", "1"], 2),
        ("1,2,-1,3", ["-1", "1", "2", "3"], 0),  # the others do not count from 0
        ("a,b,-1", ["-1", "a", "b"], 0),
        ("0,1,-2", ["-2", "0", "1"], 0),
        ("0,1,-1,-2", ["-2", "-1", "0", "1"], 0),
        ("none,None,n/a", ["None", "n/a", "none"], 0),
    ],
)
def test_blank_labels_are_unlabelled_rows(
    written: str, classes: list[str], blank: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = "".join(f"text {i},{label}\n" for i, label in enumerate(written.split(",")))
    write_files(tmp_path, {"train.csv": f"text,label\n{rows}", "test.csv": f"text,label\nz,{classes[0]}\n"})
    data = load_dataset(str(tmp_path))
    assert data.classes == classes and sum(len(split.texts) for split in data.unlabelled) == blank
    said = capsys.readouterr().err
    total = len(written.split(","))
    assert (f"{blank} of {total} rows have no label and are used as unlabelled texts" in said) == bool(blank)
    assert said.count("\n") == bool(blank)
    if blank:
        (split,) = data.unlabelled
        gone = [f"text {i}" for i, label in enumerate(written.split(",")) if label.lower() in ("", "nan", "null")]
        assert split.labels is None and set(gone) <= set(split.texts)
        assert split.where(0).endswith(f"train.csv, line {2 + int(split.texts[0].split()[1])}")


def test_null_is_blank_and_a_number_of_labels_json_may_be_minus_one(tmp_path: Path) -> None:
    files = {"train.jsonl": jsonl({"text": f"t{i}", "label": v} for i, v in enumerate((None, 0, -1, 1.0, "p")))}
    write_files(tmp_path, {**files, "labels.json": '["n", "p"]', "test.jsonl": '{"text": "a", "label": 1}'})
    data = load_dataset(str(tmp_path))
    assert (data.train.texts, data.train.labels) == (["t1", "t3", "t4"], [0, 1, 1])
    assert data.unlabelled[0].texts == ["t0", "t2"]
    write_files(tmp_path, {"labels.json": '["-1", "0", "1", "p"]'})
    assert load_dataset(str(tmp_path)).train.labels == [1, 0, 2, 3]


def test_a_blank_that_labels_json_names_is_a_class(tmp_path: Path) -> None:
    write_files(tmp_path, {"train.csv": "text,label\na,null\nb,some\nc,\n", "labels.json": '["null", "some"]'})
    data = load_dataset(str(tmp_path))
    assert data.train.labels == [0, 1] and data.unlabelled[0].texts == ["c"]


def test_an_unknown_label_without_a_known_place() -> None:
    with pytest.raises(InputError, match="pydocs, column 'label': unknown label 'z': the classes are 'x', 'y'"):
        index_labels(["x", "z"], Names(["x", "y"]), "pydocs", (), "label")


def test_a_folder_of_labelled_and_unlabelled(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_files(
        tmp_path,
        {"labelled.csv": "text,label\na,x\nb,y\n", "unlabelled.csv": "text\nc\nd\n", "test.csv": "text,label\ne,x\n"},
    )
    data = load_dataset(str(tmp_path))
    assert data.train.texts == ["a", "b"] and data.unlabelled[0].texts == ["c", "d"]
    assert "unlabelled.csv: 2 texts are used as unlabelled texts" in capsys.readouterr().err
    write_files(tmp_path, {"train.csv": "text,label\na,x\nb,y\n"})
    with pytest.raises(InputError, match="several train files .'labelled.csv', 'train.csv'.: keep one"):
        load_dataset(str(tmp_path))


def test_class_labels_of_parquet_are_used(clean: Dataset) -> None:
    pytest.importorskip("pyarrow")
    for case in ("c13_parquet_classlabel", "c19_hub_layout"):
        data = load_dataset(str(CASES / case))
        assert data.classes == ["traffic", "kitchen", "garden"]
        assert labels(data.train, data.classes) == labels(clean.train, clean.classes)
        assert labels(data.test, data.classes) == labels(clean.test, clean.classes)


def test_class_labels_meet_other_names_by_name(clean: Dataset, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    file = CASES / "c13_parquet_classlabel" / "test.parquet"
    # a model's classes, in another order
    table, _ = read_table(file, "text", "label", Names(TOPICS))
    assert table.labels == (clean.test.labels if clean.test else None)
    # labels.json decides what numbers count
    shutil.copytree(CASES / "c13_parquet_classlabel", tmp_path / "d")
    write_files(tmp_path / "d", {"labels.json": '["x", "y", "z"]'})
    assert labels(load_dataset(str(tmp_path / "d")).test, ["x", "y", "z"])[:3] == ["z", "y", "x"]


def test_shards_are_one_table(tmp_path: Path) -> None:
    files: dict[str, str | bytes] = {
        f"data/train-0000{i}-of-00002.csv": f"text,label\na{i},x\nb{i},y\n" for i in (0, 1)
    }
    write_files(tmp_path, {**files, "data/test-00000-of-00001.csv": "text,label\nc,y\n"})
    data = load_dataset(str(tmp_path))
    assert data.train.texts == ["a0", "b0", "a1", "b1"] and data.test is not None and data.test.texts == ["c"]
    assert data.train.where(3).endswith("train-00001-of-00002.csv, line 3")
    (tmp_path / "data" / "train-00000-of-00002.csv").unlink()
    with pytest.raises(InputError, match="1 of 2 shards of the train table"):
        load_dataset(str(tmp_path))


def test_the_one_folder_with_tables_is_read(tmp_path: Path) -> None:
    write_files(tmp_path, {"plain_text/train-00000-of-00001.csv": "text,label\na,x\nb,y\n", "README.md": "x"})
    assert load_dataset(str(tmp_path)).train.texts == ["a", "b"]
    write_files(tmp_path, {"other/train.csv": "text,label\nc,x\nd,y\n"})
    with pytest.raises(InputError, match="several folders with a train table .'other', 'plain_text'.: give one"):
        load_dataset(str(tmp_path))
    assert load_dataset(str(tmp_path / "other")).train.texts == ["c", "d"]


def test_the_home_folder_may_be_a_tilde(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from nanonet.data.read import read_texts

    monkeypatch.setenv("HOME", str(CASES))
    assert read_texts("~/clean/train.jsonl")[0].texts == load_dataset("~/clean").train.texts
