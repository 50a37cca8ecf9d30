"""What is too long, too large or never ends is refused before it is in memory."""

from __future__ import annotations

import gzip
import io
import json
import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
from support.text import jsonl, write_files

from nanonet.data import formats
from nanonet.data.batches import encode
from nanonet.data.classes import read_classes
from nanonet.data.lines import Limits, raw_lines
from nanonet.data.read import load_dataset, read_table, read_texts
from nanonet.errors import InputError

SMALL = Limits(text=100, data=2000)
ROW = {"text": "a text", "label": "x"}


def test_limits_are_numbers_from_1() -> None:
    for limits, flag in ((dict(text=0), "--max-text-bytes 0"), (dict(data=-1), "--max-data-bytes -1")):
        with pytest.raises(InputError, match=f"{flag}: give 1 or more"):
            Limits(**limits)


@pytest.mark.parametrize(
    ("content", "lines"),
    [
        (b"", []),
        (b"a", [b"a"]),
        (b"a\nb", [b"a\n", b"b"]),
        (b"a\r\nb\r\n", [b"a\r\n", b"b\r\n"]),
        (b"a\rb\r", [b"a\r", b"b\r"]),
        (b"a\rb\nc", [b"a\rb\n", b"c"]),
        (b"\n\n", [b"\n", b"\n"]),
        (b"a\r", [b"a\r"]),
    ],
)
@pytest.mark.parametrize("size", [1, 2, 1 << 20])  # of a read
def test_lines_have_their_ends(content: bytes, lines: list[bytes], size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    if size == 1 and b"\r" in content and b"\n" in content:
        pytest.skip("the first reads decide which end a line has")
    monkeypatch.setattr("nanonet.data.lines._CHUNK", size)
    assert list(raw_lines(io.BytesIO(content), "f", SMALL)) == lines


LONG: dict[str, tuple[str, str | bytes, str]] = {
    "line of jsonl": ("a.jsonl", jsonl([ROW, ROW | {"text": "b" * 200}]), "line 2"),
    "line of csv": ("a.csv", "text,label\na,x\n" + "b" * 200 + ",y\n", "line 3"),
    "field over several lines": ("a.csv", 'text,label\na,x\n"' + "b\n" * 90 + '",y\n', "line 3"),
    "text of an array": ("a.json", json.dumps([ROW, ROW | {"text": "b" * 200}]), "row 2"),
    "no line end": ("a.csv", b"\0" * 1999, "line 1"),
    "gzip of zeros": ("a.csv.gz", gzip.compress(b"\0" * 1999), "line 1"),
}


@pytest.mark.parametrize("case", LONG)
def test_a_long_line_or_text_is_refused(case: str, tmp_path: Path) -> None:
    name, content, place = LONG[case]
    write_files(tmp_path, {name: content})
    with pytest.raises(InputError, match=f"{name}, {place}.*more than 100 .*--max-text-bytes"):
        read_table(tmp_path / name, "text", "label", None, SMALL)
    with pytest.raises(InputError, match="--max-text-bytes"):
        read_texts(tmp_path / name, "text", SMALL)


def test_a_long_text_of_parquet_is_refused_and_equal_ones_are_one(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    # a page of a kilobyte that unpacks to 200 MB
    table = pyarrow.table({"text": ["a" * 2000] * 100_000, "label": ["x", "y"] * 50_000})
    parquet.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(InputError, match="row 1, column 'text': the text has more than 100 characters"):
        read_table(tmp_path / "a.parquet", "text", "label", None, Limits(text=100))
    with pytest.raises(InputError, match="after row .*more than 50000000 bytes"):
        read_table(tmp_path / "a.parquet", "text", "label", None, Limits(data=50_000_000))
    tracemalloc.start()
    split, _ = read_table(tmp_path / "a.parquet", "text", "label", None)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(split.texts) == 100_000 and peak < 60e6


@pytest.mark.parametrize("end", ["", ".gz"])
@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.json"])
def test_a_large_table_is_refused(name: str, end: str, tmp_path: Path) -> None:
    content = {"a.jsonl": jsonl([ROW] * 100), "a.csv": "text,label\n" + "a,x\n" * 1000}
    content["a.json"] = json.dumps([ROW] * 100)
    packed = content[name].encode()
    write_files(tmp_path, {name + end: gzip.compress(packed) if end else packed})
    with pytest.raises(InputError, match="more than 2000 bytes of data: split the file, or raise --max-data-bytes"):
        read_table(tmp_path / (name + end), "text", "label", None, SMALL)


def test_a_bomb_is_found_before_its_rows_are_stored(tmp_path: Path) -> None:
    row = b"some text of a row,x\n"
    write_files(tmp_path, {"a.csv.gz": gzip.compress(b"text,label\n" + row * 4_000_000, 1)})
    tracemalloc.start()
    with pytest.raises(InputError, match="more than 80000000 bytes of data"):
        read_table(tmp_path / "a.csv.gz", "text", "label", None, Limits(data=80_000_000))
    assert tracemalloc.get_traced_memory()[1] < 10e6
    tracemalloc.stop()


def test_a_json_array_has_a_limit_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "ARRAY_BYTES", 1000)
    write_files(tmp_path, {"a.json": json.dumps([ROW] * 100)})
    with pytest.raises(InputError, match="a JSON array of more than 1000 bytes: write one object a line"):
        read_table(tmp_path / "a.json", "text", "label", None)


@pytest.mark.parametrize("kind", ["fifo", "device"])
@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("a.csv", lambda path: read_table(path, "text", "label", None)),
        ("a.jsonl.gz", lambda path: load_dataset(str(path))),
        ("a.parquet", read_texts),
        ("labels.json", read_classes),
        ("train.csv", lambda path: load_dataset(str(path.parent))),
    ],
)
def test_what_is_no_file_is_refused(kind: str, name: str, read: Callable[[Path], object], tmp_path: Path) -> None:
    path = tmp_path / name
    if kind == "fifo":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero")
    with pytest.raises(InputError, match="pipe, socket or device" if name != "train.csv" else "no train file"):
        read(path)


class Spy:
    """A tokenizer of a token a word, which remembers what it was given."""

    name_or_path = "spy"

    def __init__(self) -> None:
        self.given: list[int] = []

    def num_special_tokens_to_add(self) -> int:
        return 0

    def __call__(self, texts: list[str], *, max_length: int, **_: object) -> dict[str, list[list[int]]]:
        self.given += map(len, texts)
        return {"input_ids": [[len(word) for word in text.split()][:max_length] for text in texts]}


def test_a_long_text_is_cut_before_it_is_tokenised() -> None:
    spy = Spy()
    texts = ["word " * 100_000, "short one", "w" * 50_000 + " after", "w" * 300 + " " + "w" * 300 + " ab" * 5000]
    encoded = encode(spy, texts, 8)
    assert [encoded[[row]].ids.tolist() for row in range(4)] == [[4] * 8, [5, 3], [50_000, 5], [300, 300, *[2] * 6]]
    # 64 characters a token, up to a space; the last text has too few tokens in these, and is given again as it is
    assert spy.given == [509, 9, 50_006, 300, 15_601]
