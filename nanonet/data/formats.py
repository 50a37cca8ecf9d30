"""The rows of one CSV, TSV, JSON, JSONL or Parquet file, each with the place it stands at.

Only the standard library is used, except for Parquet. CSV, TSV, JSON and JSONL may be gzipped. Text is utf-8;
a byte order mark is dropped. A fault of a file is an `InputError` of one line: file, place, column, cure.
"""

from __future__ import annotations

import csv
import importlib.util
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from nanonet.data.lines import DEFAULT_LIMITS, Limits, check_readable, head_of, text_lines
from nanonet.data.problems import listing, problem, shorten

# (place such as "line 3", the values of the wanted columns)
TableRow = tuple[str, list[object]]

EXTENSIONS = (".csv", ".tsv", ".jsonl", ".json", ".parquet")
SEPARATORS = (",", ";", "\t", "|")
_LONG = 1000  # characters
_BATCH_ROWS = 512  # of Parquet: a few compressed bytes may unpack to many long texts
ARRAY_BYTES = 200_000_000  # the largest JSON array: it is parsed as a whole


def extension(path: Path) -> str | None:
    """Return the format of a file by its name, or None: `.csv` for `a.csv` and `a.CSV.gz`."""
    suffixes = [suffix.lower() for suffix in path.suffixes[-2:]]
    zipped = suffixes[-1:] == [".gz"]
    known = suffixes[-2:-1] if zipped else suffixes[-1:]
    if known and known[0] in EXTENSIONS and not (zipped and known[0] == ".parquet"):
        return known[0]
    return None


def read_rows(path: Path, columns: Mapping[str, str], limits: Limits = DEFAULT_LIMITS) -> Iterator[TableRow]:
    """Yield the place and the values of `columns` for every row of the file.

    path: a file whose name ends in one of EXTENSIONS, or in that and `.gz`.
    columns: {setting: column}, in the order of the values; the setting is what an error tells the user to change.

    Places are lines counted from 1 (a CSV header is line 1; a quoted field may hold line breaks: its row stands
    where it begins), and rows counted from 1 in Parquet and in a JSON array. Blank lines are skipped.
    Raises InputError.
    """
    kind = _check_file(path, limits)
    read = _parquet if kind == ".parquet" else _separated if kind in (".csv", ".tsv") else _json
    return _short(read(path, columns, limits), path, columns, limits)


def _short(rows: Iterator[TableRow], path: Path, columns: Mapping[str, str], limits: Limits) -> Iterator[TableRow]:
    """The rows, whose texts are bounded as lines are: Parquet has none, and a JSON array may be one."""
    for place, values in rows:
        for column, value in zip(columns.values(), values, strict=True):
            if isinstance(value, str) and len(value) > limits.text:
                what = f"the text has more than {limits.text} characters: cut it, or raise --max-text-bytes"
                raise problem(path, what, place, column)
        yield place, values


def read_column_names(path: Path, columns: Mapping[str, str], limits: Limits = DEFAULT_LIMITS) -> list[str]:
    """Return the names of all columns of a file; of JSON, those of its first object.

    columns: some that it has, by which its separator is found.
    Raises InputError.
    """
    kind = _check_file(path, limits)
    if kind == ".parquet":
        _import_pyarrow(path)
        from pyarrow import ArrowException, parquet

        try:
            return list(parquet.read_schema(path).names)
        except (ArrowException, OSError) as error:
            raise problem(path, f"not sound Parquet ({shorten(str(error))}): write it again") from error
    if kind in (".csv", ".tsv"):
        line = next((line for line in text_lines(path, limits) if line.strip("\r\n")), "")
        return next(csv.reader([line], delimiter=_separator(path, columns, limits)), [])
    _, first = next(_objects(path, limits), ("", {}))
    return list(first) if isinstance(first, dict) else []


def _check_file(path: Path, limits: Limits) -> str:
    """The extension of a table that can be read. Raises InputError."""
    kind = extension(path)
    if kind is None and path.is_file():
        raise problem(path, f"unknown extension: use {', '.join(EXTENSIONS)}, or .gz after any but the last")
    check_readable(path, limits)
    return str(kind)


def check_columns(source: Path | str, place: str, there: Iterable[str], columns: Mapping[str, str]) -> None:
    """Raise InputError for the first of `columns` that is not `there`."""
    there = list(there)
    for setting, column in columns.items():
        if there.count(column) > 1:
            raise problem(source, "the header names it twice: rename one", place, column)
        if column not in there:
            what = f"no such column: set {setting} to one of {listing(there)}" if there else "no columns at all"
            raise problem(source, what, place, column)


def _separated(path: Path, columns: Mapping[str, str], limits: Limits) -> Iterator[TableRow]:
    delimiter = _separator(path, columns, limits)
    quoted = extension(path) == ".csv" or _is_quoted(path, delimiter, limits)
    records = (_quoted_records if quoted else _plain_records)(path, delimiter, limits)
    header: list[str] = []
    wanted: list[int] = []
    for place, fields in records:
        if not wanted:
            header = fields
            check_columns(path, place, header, columns)
            wanted = [header.index(column) for column in columns.values()]
        elif len(fields) != len(header):
            what = f"{len(fields)} fields where the header has {len(header)}: quote texts that hold the separator"
            raise problem(path, what, place)
        else:
            yield place, [fields[i] for i in wanted]


def _quoted_records(path: Path, delimiter: str, limits: Limits) -> Iterator[tuple[str, list[str]]]:
    """(place, fields) of a file in which a field may be quoted; blank lines are skipped."""
    csv.field_size_limit(max(limits.text, 131_072))
    # strict: an unclosed quote is an error, not a field that swallows the rest of the file
    reader = csv.reader(text_lines(path, limits), delimiter=delimiter, strict=True)
    while True:
        place = f"line {reader.line_num + 1}"
        try:
            fields = next(reader, None)
        except csv.Error as error:
            cure = "close every quote, double the quotes inside a quoted field, and keep very long texts in JSONL"
            raise problem(path, f"{error}: {cure}", place) from error
        if fields is None:
            return
        if fields:
            yield place, fields


def _plain_records(path: Path, delimiter: str, limits: Limits) -> Iterator[tuple[str, list[str]]]:
    """(place, fields) of a file in which a quote is a character as any other."""
    for number, line in enumerate(text_lines(path, limits), 1):
        if content := line.rstrip("\r\n"):
            yield f"line {number}", content.split(delimiter)


def _separator(path: Path, columns: Mapping[str, str], limits: Limits) -> str:
    """The separator by which the first line holds the wanted columns; the extension's own where several or none do."""
    line = next((line for line in text_lines(path, limits) if line.strip("\r\n")), "")
    usual = "," if extension(path) == ".csv" else "\t"
    for delimiter in sorted(SEPARATORS, key=lambda separator: separator != usual):
        header = next(csv.reader([line], delimiter=delimiter), [])
        if set(columns.values()) <= set(header):
            return delimiter
    return usual


def _is_quoted(path: Path, delimiter: str, limits: Limits) -> bool:
    """Whether a TSV is written with quotes: in some column every field has them.

    Otherwise a quote is a character as any other: most TSV files are written without quoting.
    """
    columns: set[int] | None = None
    width = 0
    for _, fields in _plain_records(path, delimiter, limits):
        if not width:
            width = len(fields)
        elif len(fields) != width:  # a quoted field may hold separators and line ends
            return _records_begin_with_quotes(path, delimiter, limits)
        else:
            marked = {i for i, field in enumerate(fields) if len(field) > 1 and field[0] == field[-1] == '"'}
            columns = marked if columns is None else columns & marked
    return bool(columns)


def _records_begin_with_quotes(path: Path, delimiter: str, limits: Limits) -> bool:
    """Whether some column of every record begins with a quote, the records being those of a quoted file."""
    first = ""

    def remember() -> Iterator[str]:
        nonlocal first
        for line in text_lines(path, limits):
            first = first or line
            yield line

    columns: set[int] | None = None
    try:
        for number, fields in enumerate(csv.reader(remember(), delimiter=delimiter, strict=True)):
            marked = {i for i, field in enumerate(first.split(delimiter)[: len(fields)]) if field.startswith('"')}
            if number and fields:
                columns = marked if columns is None else columns & marked
                if not columns:
                    return False
            first = ""
    except csv.Error:  # the file has quotes that are characters
        return False
    return bool(columns)


def _json(path: Path, columns: Mapping[str, str], limits: Limits) -> Iterator[TableRow]:
    for place, item in _objects(path, limits):
        yield place, _members(path, place, item, columns)


def _objects(path: Path, limits: Limits) -> Iterator[tuple[str, object]]:
    """(place, value) of every line, or of every item of an array."""
    if extension(path) == ".json" and head_of(path).startswith(b"["):
        if path.stat().st_size > ARRAY_BYTES:
            raise problem(path, f"a JSON array of more than {ARRAY_BYTES} bytes: write one object a line (.jsonl)")
        whole = Limits(ARRAY_BYTES, min(limits.data, ARRAY_BYTES))  # an array may be one line
        items = _parse(path, "".join(text_lines(path, whole)), 1, "an array of JSON objects")
        yield from ((f"row {n}", item) for n, item in enumerate(items if isinstance(items, list) else [items], 1))
        return
    for number, line in enumerate(text_lines(path, limits), 1):
        if line.strip():
            yield f"line {number}", _parse(path, line, number, "one JSON object a line")


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


def _shared(value: object, long: dict[str, str]) -> object:
    """`value`; of equal long texts, of which a Parquet file stores one, the first."""
    return long.setdefault(value, value) if isinstance(value, str) and len(value) > _LONG else value


def class_label_names(path: Path, column: str) -> list[str] | None:
    """The class names of a Parquet column that the `datasets` library wrote as a ClassLabel; None of any other."""
    if extension(path) != ".parquet" or importlib.util.find_spec("pyarrow") is None:
        return None
    import pyarrow
    from pyarrow import parquet

    try:
        written = parquet.read_schema(path).metadata or {}
        features = json.loads(written.get(b"huggingface", b"{}"))["info"]["features"]
        names = features[column]["names"] if features[column]["_type"] == "ClassLabel" else None
    except (pyarrow.ArrowException, OSError, ValueError, LookupError, TypeError):  # `_parquet` says what is wrong
        return None
    return [str(name) for name in names] if isinstance(names, list) else None


def _import_pyarrow(path: Path) -> None:
    """Raise InputError where there is no pyarrow."""
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError as error:
        raise problem(path, "reading Parquet needs pyarrow: pip install nanonet[data]") from error


def _parquet(path: Path, columns: Mapping[str, str], limits: Limits) -> Iterator[TableRow]:
    _import_pyarrow(path)
    import pyarrow
    from pyarrow import parquet

    number = total = 0
    long: dict[str, str] = {}
    try:
        with parquet.ParquetFile(path) as file:
            check_columns(path, "", file.schema_arrow.names, columns)
            size = sum(file.metadata.row_group(i).total_byte_size for i in range(file.num_row_groups))
            if size > limits.data:
                what = f"{size} bytes of data, more than {limits.data}: split the file, or raise --max-data-bytes"
                raise problem(path, what)
            for batch in file.iter_batches(_BATCH_ROWS, columns=list(dict.fromkeys(columns.values()))):
                # one by one: a dictionary holds a text once, however often its column repeats it
                for scalars in zip(*(batch.column(column) for column in columns.values()), strict=True):
                    values = [scalar.as_py() for scalar in scalars]
                    total += sum(len(value) for value in values if isinstance(value, str | bytes))
                    if total > limits.data:
                        what = f"more than {limits.data} bytes of data: split the file, or raise --max-data-bytes"
                        raise problem(path, what, f"after row {number}")
                    number += 1
                    yield f"row {number}", [_shared(value, long) for value in values]
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        what = f"not sound Parquet ({shorten(str(error))}): write it again"
        raise problem(path, what, f"after row {number}") from error
