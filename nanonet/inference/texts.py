"""The texts that `nanonet predict` reads: lines, tables, standard input; one at a time, each with its place."""

from __future__ import annotations

import contextlib
import itertools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from nanonet.config.commands import PredictConfig
from nanonet.data.columns import check_text, text_columns
from nanonet.data.folders import text_tables
from nanonet.data.formats import EXTENSIONS, extension, read_rows
from nanonet.data.labels import check_unicode
from nanonet.data.lines import Limits, check_regular, raw_lines
from nanonet.data.pairs import NAMES
from nanonet.data.problems import located
from nanonet.errors import InputError

ANSWERS = frozenset(("label", "probability", "probabilities", "unsure"))
# its place; the text, or both texts of a pair, by the names under which they are written
Text = tuple[str, dict[str, str]]


def input_path(config: PredictConfig) -> Path:
    return Path(config.file).expanduser()


@contextlib.contextmanager
def read_texts(config: PredictConfig, pairs: bool) -> Iterator[Iterator[Text]]:
    """Every text, as they are read. pairs: whether a line is to be two texts."""
    limits = Limits(config.max_text_bytes, config.max_data_bytes)
    path = input_path(config)
    if not config.file:
        if sys.stdin is None:
            raise InputError("standard input is closed; give a file of texts")
        if sys.stdin.isatty():
            what = "two texts a line, with a tab between them" if pairs else "one text a line"
            print(f"nanonet: {what}, Ctrl-D to end", file=sys.stderr)
        yield _lines(sys.stdin.buffer, "standard input", limits, pairs)
    elif path.suffix.lower() == ".txt":
        try:
            if path.exists():
                check_regular(path)
            file = path.open("rb")
        except OSError as error:
            raise InputError(f"{config.file}: cannot be read ({error.strerror}); give a file of texts") from error
        with file:
            yield _lines(file, config.file, limits, pairs)
    elif path.is_file() and extension(path) is None:
        raise InputError(f"{config.file}: unknown extension; give .txt, one text a line, or {', '.join(EXTENSIONS)}")
    else:
        files = text_tables(path) if path.is_dir() else [path]
        tables = (_table(file, config, limits) for file in files)
        yield itertools.chain.from_iterable(tables)


def _table(file: Path, config: PredictConfig, limits: Limits) -> Iterator[Text]:
    columns = text_columns(file, config.text_column, limits)
    names = [*columns.values()] if len(columns) == 2 else ["text"]
    if config.text and (taken := ANSWERS.intersection(names)):
        raise InputError(f"--text-column {config.text_column}: the predictions have a {min(taken)}; give --no-text")
    for place, values in read_rows(file, columns, limits):
        empty = ["" if value is None else value for value in values]
        found = zip(names, empty, columns.values(), strict=True)
        yield located(file, place), {name: check_text(v, file, place, column, limits) for name, v, column in found}


def _lines(file: BinaryIO, name: str, limits: Limits, pairs: bool) -> Iterator[Text]:
    for number, raw in enumerate(raw_lines(file, name, limits), 1):
        place = f"{name}, line {number}"
        try:
            line = raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise InputError(f"{place}: not utf-8 (byte {error.start + 1}); convert it") from error
        texts = line.split("\t") if pairs and line else [line]
        if pairs and len(texts) != 2 and line:
            what = "the model reads pairs, and a line of one has one tab, between the texts"
            raise InputError(f"{place}: {len(texts) - 1} tabs: {what}; give a table and --text-column for other texts")
        found = dict(zip(NAMES, texts if line or not pairs else ["", ""], strict=False))
        yield place, {key: check_unicode(text, "text", place, "", "") for key, text in found.items()}
