"""Tables and folders as users write them, and the one line they get for each fault."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from support.text import jsonl, write_files

from nanonet.data.classes import read_classes
from nanonet.data.dataset import Dataset
from nanonet.data.labels import Names
from nanonet.data.read import load_dataset, read_table, read_texts
from nanonet.data.split import choose_test_rows
from nanonet.errors import InputError

SHARED = Path(__file__).parents[2].parent / "shared" / "data"
NAMES = ["World", "Sports"]


ROWS = jsonl({"text": f"text {n}", "label": n % 2} for n in range(20))


def test_a_folder_with_train_test_and_labels(tmp_path: Path) -> None:
    labels = json.dumps(["World ", "Sports"])
    write_files(
        tmp_path,
        {
            "train.jsonl": ROWS,
            "test.csv": "label,text\nSports,a\n0,b\n",
            "labels.json": b"\xef\xbb\xbf" + labels.encode(),
        },
    )
    data = load_dataset(str(tmp_path))
    assert data.name == tmp_path.name and data.classes == NAMES
    assert data.train.texts == [f"text {n}" for n in range(20)] and data.train.labels == [0, 1] * 10
    assert data.test is not None and (data.test.texts, data.test.labels) == (["a", "b"], [1, 0])


@pytest.mark.parametrize(
    ("labels", "classes", "indices"),
    [
        (["10", "9", "-1", "9"], ["-1", "9", "10"], [2, 1, 0, 1]),  # numbers sort as numbers
        (["b", "a", "10", "9"], ["10", "9", "a", "b"], [3, 2, 0, 1]),  # one name makes all of them names
        ([" b ", "b", "a", "a"], ["a", "b"], [1, 1, 0, 0]),  # spaces around a name are not part of it
    ],
)
def test_classes_without_labels_json(tmp_path: Path, labels: list[str], classes: list[str], indices: list[int]) -> None:
    write_files(tmp_path, {"a.csv": "text,label\n" + "".join(f"t,{label}\n" for label in labels)})
    table, found = read_table(tmp_path / "a.csv", "text", "label", None)
    assert (found, table.labels) == (classes, indices)
    # the classes of one table read another: what evaluate does
    assert read_table(tmp_path / "a.csv", "text", "label", Names(found))[0].labels == indices


def test_the_columns_are_the_ones_named(tmp_path: Path) -> None:
    write_files(tmp_path, {"a.csv": "text,label,body,topic\na,0,c,x\nb,1,d,y\n"})
    table, classes = read_table(tmp_path / "a.csv", "body", "topic", None)
    assert (table.texts, table.labels, classes) == (["c", "d"], [0, 1], ["x", "y"])
    unlabelled, classes = read_table(tmp_path / "a.csv", "text", None, Names(["p", "q"]))
    assert (unlabelled.texts, unlabelled.labels, classes) == (["a", "b"], None, ["p", "q"])
    data = load_dataset(
        str(write_files(tmp_path / "f", {"train.csv": "body,topic\nc,x\nd,y\n"})),
        text_column="body",
        label_column="topic",
    )
    assert data.classes == ["x", "y"]


def test_a_file_alone_is_all_for_training_unless_a_fraction_is_asked_for(tmp_path: Path) -> None:
    texts = [f"text {n % 900}" for n in range(1000)]
    rows = "".join(f"{text},{n % 900 % 3}\n" for n, text in enumerate(texts))
    write_files(tmp_path, {"my.table.csv": f"text,label\n{rows}"})
    data = load_dataset(str(tmp_path / "my.table.csv"))
    assert data.name == "my" and data.test is None and data.train.texts == texts
    data = load_dataset(str(tmp_path / "my.table.csv"), test_fraction=0.2)
    assert data.test is not None and data.test.labels is not None and data.train.labels is not None
    chosen = set(choose_test_rows(texts, [n % 900 % 3 for n in range(1000)], 0.2))
    assert data.test.texts == [text for n, text in enumerate(texts) if n in chosen]
    assert 190 < len(data.test.texts) < 210 and not set(data.train.texts) & set(data.test.texts)
    for table in (data.train, data.test):
        assert all(int(text.split()[1]) % 3 == label for text, label in zip(table.texts, table.labels, strict=True))
        assert table.where(0).endswith(f"my.table.csv, line {2 + texts.index(table.texts[0])}")


def test_a_fraction_needs_rows_and_no_test_table(tmp_path: Path) -> None:
    write_files(tmp_path, {"a.csv": "text,label\na,x\nb,y\n", "d/train.csv": "text,label\na,x\nb,y\n"})
    assert load_dataset(str(tmp_path / "a.csv")).test is None
    with pytest.raises(InputError, match="a.csv: --test-fraction 0.2 of 2 labelled rows is no row"):
        load_dataset(str(tmp_path / "a.csv"), test_fraction=0.2)
    write_files(tmp_path, {"d/test.csv": "text,label\nc,x\n"})
    with pytest.raises(InputError, match="--test-fraction 0.2: there is a test table"):
        load_dataset(str(tmp_path / "d"), test_fraction=0.2)


def test_read_texts_of_a_file_and_of_a_folder(tmp_path: Path) -> None:
    files: dict[str, str | bytes] = {"b.jsonl": '{"text": "b"}\n', "a.csv.gz": gzip.compress(b"text\na\n")}
    files |= {"test.csv": "text\nnever\n", "labels.json": "[]", "README.md": "x"}
    write_files(tmp_path, files)
    assert [split.texts for split in read_texts(tmp_path)] == [["a"], ["b"]]
    assert read_texts(tmp_path / "b.jsonl")[0].texts == ["b"]
    write_files(tmp_path, {"c.csv": "body\nc\n"})
    assert read_texts(tmp_path / "c.csv", "body")[0].texts == ["c"]


def test_the_home_folder_may_be_a_tilde(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(write_files(tmp_path, {"set/train.jsonl": ROWS})))
    assert load_dataset("~/set").name == "set"


def test_read_classes_strips_names(tmp_path: Path) -> None:
    assert read_classes(write_files(tmp_path, {"labels.json": '[" a", "b"]'}) / "labels.json") == ["a", "b"]


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared benchmark data is not on this machine")
@pytest.mark.parametrize(
    ("name", "classes", "train", "test"), [("trec6", 6, 5452, 500), ("banking77", 77, 10003, 3080)]
)
def test_shared_benchmarks(name: str, classes: int, train: int, test: int) -> None:
    data: Dataset = load_dataset(str(SHARED / name))
    assert (len(data.classes), len(data.train.texts)) == (classes, train)
    assert data.test is not None and len(data.test.texts) == test
    assert set(data.train.labels or []) == set(data.test.labels or []) == set(range(classes))
