"""The rows of every format, and where they stand."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from nanonet.data.formats import extension, read_rows
from nanonet.data.lines import Limits
from nanonet.errors import InputError

COLUMNS = {"text_column": "text", "label_column": "label"}
RECORDS: list[tuple[str, int]] = [("one, two", 0), ('said "no"', 1), ("two\nlines", 0), ("héé 漢字 🙂", 1)]


def csv_text(separator: str) -> str:
    lines = [f"label{separator}text"]
    for text, label in RECORDS:
        quoted = text.replace('"', '""')
        lines.append(f'{label}{separator}"{quoted}"')
    return "\n".join(lines) + "\n"


def jsonl_text() -> str:
    return "".join(json.dumps({"label": label, "text": text, "more": [1]}) + "\n" for text, label in RECORDS)


def json_text() -> str:
    return json.dumps([{"label": label, "text": text} for text, label in RECORDS], indent=1)


WRITERS: dict[str, Callable[[], str]] = {
    ".csv": lambda: csv_text(","),
    ".tsv": lambda: csv_text("\t"),
    ".jsonl": jsonl_text,
    ".json": json_text,
}


# gzip and the byte order mark: read everywhere, seen nowhere; upper case: what Windows writes
@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("end", ["", ".gz", ".GZ"])
@pytest.mark.parametrize("kind", WRITERS)
def test_every_text_format_gives_the_same_rows(tmp_path: Path, kind: str, end: str, bom: bytes) -> None:
    content = bom + WRITERS[kind]().encode()
    path = tmp_path / f"table{kind}{end}"
    path.write_bytes(gzip.compress(content) if end else content)
    found = [values for _, values in read_rows(path, COLUMNS)]
    assert [(text, int(str(label))) for text, label in found] == RECORDS


def test_parquet_gives_the_same_rows(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path = tmp_path / "table.parquet"
    table = pyarrow.table({"label": [label for _, label in RECORDS], "text": [text for text, _ in RECORDS]})
    parquet.write_table(table, path)
    assert list(read_rows(path, COLUMNS)) == [(f"row {n}", list(record)) for n, record in enumerate(RECORDS, 1)]


def test_parquet_with_two_columns_of_a_name_or_bytes_of_another_alphabet(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path = tmp_path / "table.parquet"
    parquet.write_table(pyarrow.table([["a"], [0], [1]], names=["text", "label", "label"]), path)
    with pytest.raises(InputError, match="column 'label': the header names it twice"):
        list(read_rows(path, COLUMNS))
    latin = pyarrow.StringArray.from_buffers(1, *(pyarrow.py_buffer(b) for b in (b"\0\0\0\0\4\0\0\0", b"caf\xe9")))
    parquet.write_table(pyarrow.table({"text": latin, "label": [0]}), path)
    with pytest.raises(InputError, match="not sound Parquet"):
        list(read_rows(path, COLUMNS))


def test_texts_that_parquet_stores_once_count_as_often_as_they_stand_there(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path = tmp_path / "table.parquet"
    text = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * 1000, pyarrow.int32()), pyarrow.array(["a" * 500]))
    parquet.write_table(pyarrow.table({"text": text, "label": [0] * 1000}), path)
    assert path.stat().st_size < 10_000
    assert len(list(read_rows(path, COLUMNS, Limits(500, 500_000)))) == 1000
    with pytest.raises(InputError, match=r"after row 800: more than 400000 bytes of data"):
        list(read_rows(path, COLUMNS, Limits(500, 400_000)))


def test_a_long_text_without_lines_is_refused(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({"text": ["a", "a" * 501], "label": [0, 1]}), tmp_path / "t.parquet")
    (tmp_path / "t.json").write_text(json.dumps([{"text": "a", "label": 0}, {"text": "a" * 501, "label": 1}]))
    for name in ("t.parquet", "t.json"):
        with pytest.raises(InputError, match="the text has more than 500 characters"):
            list(read_rows(tmp_path / name, COLUMNS, Limits(500)))
        assert len(list(read_rows(tmp_path / name, COLUMNS, Limits(501)))) == 2


def test_a_json_file_may_also_hold_lines(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    path.write_text("\n" + jsonl_text())
    assert [place for place, _ in read_rows(path, COLUMNS)] == ["line 2", "line 3", "line 4", "line 5"]


def test_a_csv_row_stands_at_the_line_where_it_begins(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_bytes(b'text,label\r\n"a\r\nb\r\nc",0\r\n\r\nd,1\r\n')
    assert list(read_rows(path, COLUMNS)) == [("line 2", ["a\r\nb\r\nc", "0"]), ("line 6", ["d", "1"])]


def test_columns_come_in_the_order_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text("label,text\n0,a\n")
    assert list(read_rows(path, {"text_column": "label", "label_column": "text"})) == [("line 2", ["0", "a"])]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.csv", ".csv"),
        ("a.b.CSV.gz", ".csv"),
        ("a.parquet", ".parquet"),
        ("a.parquet.gz", None),
        ("a.gz", None),
        ("csv", None),
        ("a.txt", None),
        ("a.csv.zip", None),
        (".csv", None),
    ],
)
def test_extension(name: str, kind: str | None) -> None:
    assert extension(Path(name)) == kind


def test_a_missing_pyarrow_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    path = tmp_path / "table.parquet"
    path.write_bytes(b"PAR1")
    with pytest.raises(InputError, match=r"pip install nanonet\[data\]"):
        list(read_rows(path, COLUMNS))
