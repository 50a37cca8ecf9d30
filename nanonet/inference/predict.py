"""Labels for texts: one JSON object a line, in the input's order."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TextIO

from nanonet.config.commands import PredictConfig
from nanonet.data.pairs import MARK
from nanonet.device import device
from nanonet.errors import InputError
from nanonet.inference.answers import Layout, json_lines
from nanonet.inference.classifier import Classifier, open_classifier
from nanonet.inference.forward import check_batch_rows
from nanonet.inference.resumable import Done, Resumable, resumable
from nanonet.inference.side_by_side import MOST_WORKERS, ROWS_AT_ONCE, in_order
from nanonet.inference.texts import Text, input_path, read_texts
from nanonet.progress import Progress, note
from nanonet.versions import versions

FREE = ("file", "output", "overwrite", "workers")  # settings that decide no row; the texts themselves are compared
DECISIVE = (".json", ".txt", ".model", ".safetensors", ".onnx", ".data")  # files of a model's folder that decide rows


@dataclass(frozen=True)
class Answered:
    """A chunk: its texts, its rows, the places of the texts without a word, how many are unsure."""

    texts: list[dict[str, str]]
    rows: str
    empty: list[str]
    unsure: int


def predict(config: PredictConfig) -> None:
    """Write a JSON object per text, in order: text, label, probability, probabilities by class name. A pair of texts
    stands there under the names of its columns, or as text and text_pair where it was a line.

    A text without a word, such as an empty line, has null for these. With a threshold there is `unsure` as well: where
    it is true, the largest probability lies below the threshold and the label is null. Standard output gets the rows
    chunk by chunk; an output file appears when it is complete, and an interrupted call goes on where it was.
    """
    _check(config)
    classifier = open_classifier(config.model)
    classifier.model.to(device())  # type: ignore[arg-type]
    with contextlib.ExitStack() as stack:
        texts = stack.enter_context(read_texts(config, classifier.pairs))
        # the first rows are read and checked before the output is opened
        chunks = iter(lambda: list(itertools.islice(texts, ROWS_AT_ONCE)), [])
        first = next(chunks, None)
        if not first:
            raise InputError(f"{config.file or 'standard input'}: no texts; give one text a line")
        output = stack.enter_context(_output(config, classifier))
        _answer_all(config, classifier, output.rest(itertools.chain([first], chunks)), output)
        done = output.done
    if done.empty:
        note(f"{done.empty} of {done.rows} texts have no words: their label is null, the first at {done.first_empty}")
    if done.unsure:
        below = f"below --threshold {config.threshold:g}"
        note(f"{done.unsure} of {done.rows} texts are unsure, {below}: their label is null")
    if config.output:
        note(f"{done.rows} predictions in {config.output}")


def _check(config: PredictConfig) -> None:
    check_batch_rows(config.batch_rows)
    if not 0 <= config.threshold <= 1:
        raise InputError(f"--threshold {config.threshold}: give a probability from 0 to 1")
    if not 1 <= config.workers <= MOST_WORKERS:
        raise InputError(f"--workers {config.workers}: give 1 to {MOST_WORKERS}")
    if config.file and config.output and Path(config.output).expanduser().resolve() == input_path(config).resolve():
        raise InputError(f"--output {config.output} is the input itself; give another file")


def _answer_all(
    config: PredictConfig, classifier: Classifier, chunks: Iterable[list[Text]], output: Stream | Resumable
) -> None:
    """Write the rows of every chunk."""
    layout = Layout(classifier.classes, config.text, config.threshold, output.narrow)

    def answer(chunk: list[Text], alive: Callable[[], None]) -> Answered:
        texts = [text for _, text in chunk]
        joined = [MARK.join(text.values()) for text in texts]
        p, rows = classifier.probabilities(
            joined, config.max_tokens, config.batch_rows, lambda row: chunk[row][0], lambda rows: alive()
        )
        lines, unsure = json_lines(texts, p, rows, layout)
        known = set(rows)
        empty = [place for row, (place, _) in enumerate(chunk) if row not in known] if len(rows) < len(chunk) else []
        return Answered(texts, "\n".join(lines) + "\n", empty, unsure)

    began, before = time.perf_counter(), output.done.rows
    # a bar within the rows on a terminal would be in their way
    shown = bool(config.output) or not (sys.stdout and sys.stdout.isatty())
    with Progress(shown) as progress, progress.stage("predicting", None) as tick:
        for part in in_order(answer, chunks, config.workers):
            done = output.done
            done = replace(
                done,
                rows=done.rows + len(part.texts),
                empty=done.empty + len(part.empty),
                first_empty=done.first_empty or next(iter(part.empty), ""),
                unsure=done.unsure + part.unsure,
            )
            output.write(part.texts, part.rows, done)
            tick(len(part.texts), f"{(done.rows - before) / (time.perf_counter() - began):,.0f} rows/s")


class Stream:
    """Rows for a pipe, a device or a terminal. `done`: what has been written."""

    def __init__(self, file: TextIO) -> None:
        self.file, self.done = file, Done()
        self.narrow = (file.encoding or "").lower().replace("-", "") != "utf8"

    def rest(self, chunks: Iterable[list[Text]]) -> Iterable[list[Text]]:
        return chunks

    def write(self, texts: list[dict[str, str]], rows: str, done: Done) -> None:
        self.file.write(rows)
        self.file.flush()
        self.done = done


@contextlib.contextmanager
def _output(config: PredictConfig, classifier: Classifier) -> Iterator[Stream | Resumable]:
    """Standard output, or a file that gets its name when the block ends."""
    name = config.output
    if not name:
        if sys.stdout is None:
            raise InputError("standard output is closed; give --output")
        yield Stream(sys.stdout)
        return
    path = Path(name).expanduser()
    if path.is_dir():
        raise InputError(f"--output {name} is a folder; give a file in it, such as {name}/predictions.jsonl")
    if path.is_file() and not config.overwrite:
        raise InputError(f"--output {name} is there already; give --overwrite to replace it")
    with contextlib.ExitStack() as stack:
        try:
            # a pipe or device is opened directly: a rename would replace it by a file
            if path.exists() and not path.is_file():
                output: Stream | Resumable = Stream(stack.enter_context(path.open("w", encoding="utf-8")))
            else:
                output = stack.enter_context(resumable(path, settings_digest(config, classifier)))
        except OSError as error:
            raise InputError(f"--output {name}: cannot be written ({error.strerror}); give another file") from error
        yield output


def settings_digest(config: PredictConfig, classifier: Classifier) -> str:
    """Of what decides the rows beside the texts: settings, versions, device and the model's files [hex]."""
    decisive = {name: value for name, value in asdict(config).items() if name not in FREE}
    decisive |= {"rows_at_once": ROWS_AT_ONCE, "versions": versions(), "device": str(classifier.model.device)}
    decisive |= {"max_tokens": config.max_tokens or classifier.max_tokens}
    files = [*classifier.folder.glob("*"), *classifier.folder.glob("onnx/*")]
    for file in sorted(path for path in files if path.suffix in DECISIVE and path.is_file()):
        with file.open("rb") as opened:
            decisive[f"file {file.name}"] = hashlib.file_digest(opened, "sha256").hexdigest()
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()
