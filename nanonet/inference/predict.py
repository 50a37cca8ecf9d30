"""Labels for texts: one JSON object a line, in the input's order."""

from __future__ import annotations

import contextlib
import itertools
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, TextIO

import torch

from nanonet.config.commands import PredictConfig
from nanonet.data.formats import EXTENSIONS, extension
from nanonet.data.read import read_texts
from nanonet.device import device
from nanonet.errors import InputError
from nanonet.files import atomic_write
from nanonet.inference.classifier import Classifier, find_classifier, load_classifier
from nanonet.inference.forward import check_batch_rows, logits_of, run

ROWS_AT_ONCE = 1024  # rows that are read, predicted and written at a time


def predict(config: PredictConfig) -> None:
    """Write a JSON object per text, in order: text, label, probability, probabilities by class name.

    Standard output gets the rows batch by batch; an output file appears when it is complete.
    """
    check_batch_rows(config.batch_rows)
    if config.file and config.output and Path(config.output).expanduser().resolve() == _input(config).resolve():
        raise InputError(f"--output {config.output} is the input itself; give another file")
    classifier = load_classifier(find_classifier(config.model))
    classifier.model.to(device())  # type: ignore[arg-type]
    with contextlib.ExitStack() as stack:
        texts, count = stack.enter_context(_texts(config)), 0
        # the first rows are read and checked before the output is opened
        chunk = list(itertools.islice(texts, ROWS_AT_ONCE))
        if not chunk:
            raise InputError(f"{config.file or 'standard input'}: no texts; give one text a line")
        file = stack.enter_context(_output(config.output, config.overwrite))
        while chunk:
            for row in _rows(classifier, chunk, config):
                print(json.dumps(row, ensure_ascii=_is_narrow(file)), file=file)
            file.flush()
            count += len(chunk)
            chunk = list(itertools.islice(texts, ROWS_AT_ONCE))
    if config.output:
        print(f"nanonet: {count} predictions in {config.output}", file=sys.stderr)


def _rows(classifier: Classifier, texts: list[str], config: PredictConfig) -> Iterator[dict[str, Any]]:
    encoded = classifier.encode(texts, config.max_tokens)
    pad_id = classifier.tokenizer.pad_token_id
    logits = run(logits_of(classifier.model), encoded, pad_id, device(), config.batch_rows)
    for text, p in zip(texts, torch.softmax(logits, -1).tolist(), strict=True):
        best = max(range(len(p)), key=p.__getitem__)
        answer = {"label": classifier.classes[best], "probability": round(p[best], 6)}
        probabilities = {name: round(value, 6) for name, value in zip(classifier.classes, p, strict=True)}
        yield ({"text": text} if config.text else {}) | answer | {"probabilities": probabilities}


def _input(config: PredictConfig) -> Path:
    return Path(config.file).expanduser()


@contextlib.contextmanager
def _texts(config: PredictConfig) -> Iterator[Iterator[str]]:
    if not config.file:
        if sys.stdin is None:
            raise InputError("standard input is closed; give a file of texts")
        if sys.stdin.isatty():
            print("nanonet: one text a line, Ctrl-D to end", file=sys.stderr)
        yield _lines(sys.stdin.buffer, "standard input")
    elif _input(config).suffix.lower() == ".txt":
        try:
            file = _input(config).open("rb")
        except OSError as error:
            raise InputError(f"{config.file}: cannot be read ({error.strerror}); give a file of texts") from error
        with file:
            yield _lines(file, config.file)
    elif _input(config).is_file() and extension(_input(config)) is None:
        raise InputError(f"{config.file}: unknown extension; give .txt, one text a line, or {', '.join(EXTENSIONS)}")
    else:
        yield iter(read_texts(_input(config), config.text_column))


def _lines(file: BinaryIO | Iterable[bytes], name: str) -> Iterator[str]:
    for number, raw in enumerate(file, 1):
        try:
            text = raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise InputError(f"{name}, line {number}: not utf-8 (byte {error.start + 1}); convert it") from error
        if not text.strip():
            raise InputError(f"{name}, line {number}: the line is empty; fill it in or delete it")
        yield text


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
