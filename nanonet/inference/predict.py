"""Labels for texts: one JSON object a line, in the input's order."""

from __future__ import annotations

import contextlib
import itertools
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from nanonet.config.commands import PredictConfig
from nanonet.data.columns import check_text, text_columns
from nanonet.data.folders import text_tables
from nanonet.data.formats import EXTENSIONS, extension, read_rows
from nanonet.data.labels import check_unicode
from nanonet.data.lines import Limits, check_regular, raw_lines
from nanonet.data.pairs import MARK, NAMES
from nanonet.data.problems import located
from nanonet.device import device
from nanonet.errors import InputError
from nanonet.files import atomic_write
from nanonet.inference.classifier import Classifier, open_classifier
from nanonet.inference.forward import check_batch_rows
from nanonet.progress import note

# DEL, C1, marks of direction, separators of lines
_CONTROL = re.compile("[\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]")
ANSWERS = frozenset(("label", "probability", "probabilities", "unsure"))
# its place; the text, or both texts of a pair, by the names under which they are written
Text = tuple[str, dict[str, str]]
ROWS_AT_ONCE = 1024  # rows that are read, predicted and written at a time


def predict(config: PredictConfig) -> None:
    """Write a JSON object per text, in order: text, label, probability, probabilities by class name. A pair of texts
    stands there under the names of its columns, or as text and text_pair where it was a line.

    A text without a word, such as an empty line, has null for these. With a threshold there is `unsure` as well: where
    it is true, the largest probability lies below the threshold and the label is null. Standard output gets the rows
    batch by batch; an output file appears when it is complete.
    """
    check_batch_rows(config.batch_rows)
    if not 0 <= config.threshold <= 1:
        raise InputError(f"--threshold {config.threshold}: give a probability from 0 to 1")
    if config.file and config.output and Path(config.output).expanduser().resolve() == _input(config).resolve():
        raise InputError(f"--output {config.output} is the input itself; give another file")
    classifier = open_classifier(config.model)
    classifier.model.to(device())  # type: ignore[arg-type]
    empty: list[str] = []
    unsure = 0
    with contextlib.ExitStack() as stack:
        texts, count = stack.enter_context(_texts(config, classifier.pairs)), 0
        # the first rows are read and checked before the output is opened
        chunk = list(itertools.islice(texts, ROWS_AT_ONCE))
        if not chunk:
            raise InputError(f"{config.file or 'standard input'}: no texts; give one text a line")
        file = stack.enter_context(_output(config.output, config.overwrite))
        while chunk:
            for (place, text), answer in zip(chunk, _answers(classifier, chunk, config), strict=True):
                empty += [place] if answer["probability"] is None else []
                unsure += answer.get("unsure") is True
                print(to_json((text if config.text else {}) | answer, _is_narrow(file)), file=file)
            file.flush()
            count += len(chunk)
            chunk = list(itertools.islice(texts, ROWS_AT_ONCE))
    if empty:
        note(f"{len(empty)} of {count} texts have no words: their label is null, the first at {empty[0]}")
    if unsure:
        note(f"{unsure} of {count} texts are unsure, below --threshold {config.threshold:g}: their label is null")
    if config.output:
        note(f"{count} predictions in {config.output}")


def _answers(classifier: Classifier, chunk: list[Text], config: PredictConfig) -> list[dict[str, Any]]:
    """label, probability and probabilities of every text; with a threshold also unsure."""
    texts = [MARK.join(text.values()) for _, text in chunk]
    probabilities, rows = classifier.probabilities(
        texts, config.max_tokens, config.batch_rows, lambda row: chunk[row][0]
    )
    columns = ("label", "probability", "probabilities") + (("unsure",) if config.threshold else ())
    answers: list[dict[str, Any]] = [dict.fromkeys(columns) for _ in texts]
    for row, p in zip(rows, probabilities.tolist(), strict=True):
        best = max(range(len(p)), key=p.__getitem__)
        probability = round(p[best], 6)
        # compared as it is written: a row never contradicts itself
        unsure = probability < config.threshold
        answers[row] |= {
            "label": None if unsure else classifier.classes[best],
            "probability": probability,
            "probabilities": {name: round(value, 6) for name, value in zip(classifier.classes, p, strict=True)},
        }
        if config.threshold:
            answers[row]["unsure"] = unsure
    return answers


def to_json(value: Any, narrow: bool) -> str:
    """One line of JSON, in which a character that a terminal would obey is an escape. narrow: ASCII alone."""
    return _CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", json.dumps(value, ensure_ascii=narrow))


def _input(config: PredictConfig) -> Path:
    return Path(config.file).expanduser()


@contextlib.contextmanager
def _texts(config: PredictConfig, pairs: bool) -> Iterator[Iterator[Text]]:
    """Every text, as they are read. pairs: whether a line is to be two texts."""
    limits = Limits(config.max_text_bytes, config.max_data_bytes)
    path = _input(config)
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


@contextlib.contextmanager
def _output(name: str, overwrite: bool) -> Iterator[TextIO]:
    """Standard output, or a file that gets its name when the block ends."""
    if not name:
        if sys.stdout is None:
            raise InputError("standard output is closed; give --output")
        yield sys.stdout
        return
    path = Path(name).expanduser()
    if path.is_dir():
        raise InputError(f"--output {name} is a folder; give a file in it, such as {name}/predictions.jsonl")
    # a pipe or device is opened directly: a rename would replace it by a file
    special = path.exists() and not path.is_file()
    if path.is_file() and not overwrite:
        raise InputError(f"--output {name} is there already; give --overwrite to replace it")
    with contextlib.nullcontext(path) if special else atomic_write(path) as place:
        try:
            file = place.open("w", encoding="utf-8")
        except OSError as error:
            raise InputError(f"--output {name}: cannot be written ({error.strerror}); give another file") from error
        with file:
            yield file


def _is_narrow(file: TextIO) -> bool:
    return (file.encoding or "").lower().replace("-", "") != "utf8"
