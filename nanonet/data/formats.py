"""The rows of one CSV, TSV, JSON, JSONL or Parquet file, each with the place it stands at.

Only the standard library is used, except for Parquet. CSV, TSV, JSON and JSONL may be gzipped. Text is utf-8;
a byte order mark is dropped. A fault of a file is an `InputError` of one line: file, place, column, cure.
"""

from __future__ import annotations

import csv
import gzip
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from nanonet.errors import InputError

# (place such as "line 3", the values of the wanted columns)
TableRow = tuple[str, list[object]]

EXTENSIONS = (".csv", ".tsv", ".jsonl", ".json", ".parquet")
_BOM = b"\xef\xbb\xbf"


def shorten(value: object, limit: int = 60) -> str:
    """Return `value` on one line of at most `limit` characters; a path loses its start, the rest its end."""
    text = " ".join((str(value) if isinstance(value, Path) else repr(value)).split())
    if len(text) <= limit:
        return text
    return "..." + text[3 - limit :] if isinstance(value, Path) else text[: limit - 3] + "..."


def listing(names: Iterable[str], most: int = 8) -> str:
    """Return the first `most` names, shortened, in one line."""
    names = list(names)
    more = f", ... ({len(names)} in all)" if len(names) > most else ""
    return ", ".join(shorten(name, 30) for name in names[:most]) + more


def problem(source: Path | str, what: str, place: str = "", column: str = "") -> InputError:
    """Return the error `source, place, column 'column': what`."""
    where = [
        source if isinstance(source, str) else shorten(source),
        place,
        f"column {shorten(column)}" if column else "",
    ]
    return InputError(f"{', '.join(part for part in where if part)}: {what}")


def extension(path: Path) -> str | None:
    """Return the format of a file by its name, or None: `.csv` for `a.csv` and `a.CSV.gz`."""
    suffixes = [suffix.lower() for suffix in path.suffixes[-2:]]
    zipped = suffixes[-1:] == [".gz"]
    known = suffixes[-2:-1] if zipped else suffixes[-1:]
    if known and known[0] in EXTENSIONS and not (zipped and known[0] == ".parquet"):
        return known[0]
    return None


def read_rows(path: Path, columns: Mapping[str, str]) -> Iterator[TableRow]:
    """Yield the place and the values of `columns` for every row of the file.

    path: a file whose name ends in one of EXTENSIONS, or in that and `.gz`.
    columns: {setting: column}, in the order of the values; the setting is what an error tells the user to change.

    Places are lines counted from 1 (a CSV header is line 1; a quoted field may hold line breaks: its row stands
    where it begins), and rows counted from 1 in Parquet and in a JSON array. Blank lines are skipped.
    Raises InputError.
    """
    if not path.exists():
        raise problem(path, "does not exist: check the path")
    if path.is_dir():
        raise problem(path, "is a folder: give one of the files in it")
    kind = extension(path)
    if kind is None:
        raise problem(path, f"unknown extension: use {', '.join(EXTENSIONS)}, or .gz after any but the last")
    if path.stat().st_size == 0:
        raise problem(path, "is empty: give a file with rows")
    if kind == ".parquet":
        return _parquet(path, columns)
    if kind in (".csv", ".tsv"):
        return _separated(path, columns, "," if kind == ".csv" else "\t")
    return _json(path, columns, array_allowed=kind == ".json")


def check_columns(source: Path | str, place: str, there: Iterable[str], columns: Mapping[str, str]) -> None:
    """Raise InputError for the first of `columns` that is not `there`."""
    there = list(there)
    for setting, column in columns.items():
        if there.count(column) > 1:
            raise problem(source, "the header names it twice: rename one", place, column)
        if column not in there:
            what = f"no such column: set {setting} to one of {listing(there)}" if there else "no columns at all"
            raise problem(source, what, place, column)


def _lines(path: Path) -> Iterator[str]:
    """Yield the lines of a utf-8 file, with their line ends."""
    number = 0
    try:
        with gzip.open(path, "rb") if path.suffix.lower() == ".gz" else path.open("rb") as file:
            for raw in file:
                number += 1
                yield (raw.removeprefix(_BOM) if number == 1 else raw).decode("utf-8")
    except UnicodeDecodeError as error:
        if number == 1 and error.object.startswith(b"\x1f\x8b"):
            raise problem(path, "is gzip: add .gz to its name") from error
        bad = f"byte {error.start + 1} of the line is 0x{error.object[error.start]:02x}"
        raise problem(path, f"not utf-8 ({bad}): save the file as utf-8", f"line {number}") from error
    except EOFError as error:
        raise problem(
            path, "the gzip stream ends too early: copy or download it again", f"after line {number}"
        ) from error
    except (gzip.BadGzipFile, zlib.error) as error:
        what = f"not sound gzip ({shorten(str(error))}): compress it again, or drop .gz if it is not compressed"
        raise problem(path, what, f"after line {number}") from error
    except OSError as error:
        raise problem(path, f"cannot be read ({error.strerror}): check its permissions") from error


def _separated(path: Path, columns: Mapping[str, str], delimiter: str) -> Iterator[TableRow]:
    # strict: an unclosed quote is an error, not a field that swallows the rest of the file
    reader = csv.reader(_lines(path), delimiter=delimiter, strict=True)
    header: list[str] = []
    wanted: list[int] = []
    while True:
        place = f"line {reader.line_num + 1}"
        try:
            fields = next(reader, None)
        except csv.Error as error:
            cure = "close every quote, double the quotes inside a quoted field, and keep very long texts in JSONL"
            raise problem(path, f"{error}: {cure}", place) from error
        if fields is None:
            return
        if not fields:
            continue
        if not header:
            header = fields
            check_columns(path, place, header, columns)
            wanted = [header.index(column) for column in columns.values()]
        elif len(fields) != len(header):
            what = f"{len(fields)} fields where the header has {len(header)}: quote texts that hold the separator"
            raise problem(path, what, place)
        else:
            yield place, [fields[i] for i in wanted]


def _json(path: Path, columns: Mapping[str, str], array_allowed: bool) -> Iterator[TableRow]:
    lines: Iterable[str] = _lines(path)
    if array_allowed:
        lines = list(lines)
        if next((line for line in lines if line.strip()), "").lstrip().startswith("["):
            yield from _json_array(path, columns, "".join(lines))
            return
    for number, line in enumerate(lines, 1):
        if line.strip():
            place = f"line {number}"
            yield place, _members(path, place, _parse(path, line, number, "one JSON object a line"), columns)


def _json_array(path: Path, columns: Mapping[str, str], text: str) -> Iterator[TableRow]:
    items = _parse(path, text, 1, "an array of JSON objects")
    for number, item in enumerate(items if isinstance(items, list) else [items], 1):
        yield f"row {number}", _members(path, f"row {number}", item, columns)


def _parse(path: Path, text: str, first_line: int, wanted: str) -> object:
    try:
        return json.loads(text.rstrip())
    except json.JSONDecodeError as error:
        place = f"line {first_line + error.lineno - 1}"
        raise problem(path, f"invalid JSON ({error.msg} at character {error.colno}): write {wanted}", place) from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits; brackets nested by the thousand
        raise problem(path, f"invalid JSON ({shorten(str(error))}): write {wanted}", f"line {first_line}") from error


def _members(path: Path, place: str, item: object, columns: Mapping[str, str]) -> list[object]:
    if not isinstance(item, dict):
        what = f'{shorten(item, 30)} is not a JSON object: write objects such as {{"text": "...", "label": 0}}'
        raise problem(path, what, place)
    check_columns(path, place, item, columns)
    return [item[column] for column in columns.values()]


def _parquet(path: Path, columns: Mapping[str, str]) -> Iterator[TableRow]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise problem(path, "reading Parquet needs pyarrow: pip install nanonet[data]") from error
    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            check_columns(path, "", file.schema_arrow.names, columns)
            for batch in file.iter_batches(columns=list(dict.fromkeys(columns.values()))):
                for values in zip(*(batch.column(column).to_pylist() for column in columns.values()), strict=True):
                    number += 1
                    yield f"row {number}", list(values)
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        what = f"not sound Parquet ({shorten(str(error))}): write it again"
        raise problem(path, what, f"after row {number}") from error
