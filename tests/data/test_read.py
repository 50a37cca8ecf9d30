"""Tables and folders as users write them, and the one line they get for each fault."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from support.text import jsonl, write_files

from nanonet.data.dataset import Dataset
from nanonet.data.labels import Names
from nanonet.data.read import load_dataset, read_classes, read_table, read_texts
from nanonet.data.split import in_test_fifth
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


def test_a_single_file_holds_a_fifth_out_by_the_hash_of_its_texts(tmp_path: Path) -> None:
    texts = [f"text {n % 900}" for n in range(1000)]
    write_files(
        tmp_path, {"my.table.csv": "text,label\n" + "".join(f"{text},{n % 3}\n" for n, text in enumerate(texts))}
    )
    data = load_dataset(str(tmp_path / "my.table.csv"))
    assert (
        data.name == "my" and data.test is not None and data.test.labels is not None and data.train.labels is not None
    )
    assert data.test.texts == [text for text in texts if in_test_fifth(text)]
    assert 150 < len(data.test.texts) < 250 and not set(data.train.texts) & set(data.test.texts)
    label_of = {text: {n % 3 for n in range(1000) if texts[n] == text} for text in texts}
    for table in (data.train, data.test):
        assert all(label in label_of[text] for text, label in zip(table.texts, table.labels or [], strict=True))


def test_a_table_without_a_held_out_row_has_no_test(tmp_path: Path) -> None:
    kept = [text for text in map(str, range(30)) if not in_test_fifth(text)][:4]
    write_files(tmp_path, {"a.csv": "text,label\n" + "".join(f"{text},{n % 2}\n" for n, text in enumerate(kept))})
    assert load_dataset(str(tmp_path / "a.csv")).test is None
    taken = [text for text in map(str, range(30)) if in_test_fifth(text)][:2]
    write_files(tmp_path, {"b.csv": "text,label\n" + "".join(f"{text},{n}\n" for n, text in enumerate(taken))})
    with pytest.raises(InputError, match="2 rows are too few"):
        load_dataset(str(tmp_path / "b.csv"))


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
