"""Soft labels from files: texts with the probabilities that any model has given them. N texts, C classes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from nanonet.config.settings import SoftLabelSettings
from nanonet.config.train import Scores
from nanonet.data.classes import check_class_map, match_classes, read_class_map, rename_classes
from nanonet.data.dataset import Split, one_line
from nanonet.data.lines import Limits
from nanonet.data.pairs import parts, readable
from nanonet.data.problems import listing, located, problem, shorten
from nanonet.data.soft_label_rows import SoftLabelRow, soft_label_rows
from nanonet.errors import InputError
from nanonet.progress import note

FLAG = "--soft-labels"  # the source of those that are in memory
FLOOR = 1e-6  # the smallest probability: what is rounded to 0 is not impossible


@dataclass(frozen=True, eq=False)
class SoftLabelFile:
    """The N texts of a file, each once, and their numbers (N,C) float64 for its classes.

    named: (N,) the one class whose probability a row gives, whose numbers are (N,1): there may be further classes
    """

    texts: Split
    classes: list[str]
    numbers: Tensor
    named: Tensor | None = None

    @property
    def what(self) -> str:
        return FLAG if self.texts.source == FLAG else f"{FLAG} {self.texts.source}"


@dataclass(frozen=True, eq=False)
class SoftLabelFiles:
    """classes: what the files know together, where the data has no labels that say more."""

    files: list[SoftLabelFile]
    classes: list[str]
    settings: SoftLabelSettings

    @property
    def texts(self) -> Split:
        """Every text once."""
        found = {one_line(text): text for file in self.files for text in file.texts.texts}
        return Split(list(found.values()), None, "--soft-labels " + " ".join(self.settings.soft_labels))

    def by_text(self, classes: Sequence[str]) -> dict[str, Tensor]:
        """{text in one line: logits (C,) float32} for the classes of the data, in their order.

        Of several files the mean of the probabilities, over those that have the text.

        Raises:
            InputError: a file has other classes.
        """
        logits = [_logits(file, classes, self.settings.soft_labels_are) for file in self.files]
        if len(self.files) == 1:
            rows = zip(self.files[0].texts.texts, logits[0].float(), strict=True)
            return {one_line(text): row for text, row in rows}
        sums: dict[str, Tensor] = {}
        weights = self.settings.soft_label_weights or (1.0,) * len(self.files)
        for file, weight, numbers in zip(self.files, weights, logits, strict=True):
            for text, p in zip(map(one_line, file.texts.texts), weight * numbers.softmax(-1), strict=True):
                sums[text] = sums[text] + p if text in sums else p
        return {text: (p / p.sum()).clamp(min=FLOOR).log().float() for text, p in sums.items()}

    def check_texts(self, known: set[str], data: str) -> None:
        """Raise InputError for the first text that is not among the `known` ones, in one line, of the data."""
        for file in self.files:
            for n, text in enumerate(file.texts.texts):
                if one_line(text) not in known:
                    what = f"the text {shorten(readable(text), 40)} is not in --data {data}"
                    raise InputError(f"{file.texts.where(n)}: {what}: delete the row, or add its text by --unlabelled")


def read_soft_labels(settings: SoftLabelSettings, text_column: str, limits: Limits) -> SoftLabelFiles:
    """Read the files of --soft-labels and rename their classes.

    Raises:
        InputError: names the file, the line and the cure.
    """
    paths = [Path(name).expanduser() for name in settings.soft_labels]
    return combine([_read(path, settings.soft_labels_are, text_column, limits) for path in paths], settings)


def combine(files: list[SoftLabelFile], settings: SoftLabelSettings) -> SoftLabelFiles:
    """Several files as one, their classes renamed. Raises InputError where they have other classes."""
    class_map = read_class_map(settings.class_map)
    check_class_map(class_map, [name for file in files for name in file.classes], settings.class_map)
    files = [replace(file, classes=rename_classes(file.classes, class_map, file.what)) for file in files]
    complete = [file for file in files if file.named is None]
    classes = complete[0].classes if complete else sorted({name for file in files for name in file.classes})
    if len(classes) < 2:
        raise InputError(f"{files[0].what}: its only class is {shorten(classes[0], 40)}; give rows of two or more")
    for file in complete[1:]:
        if set(file.classes) != set(classes):
            raise InputError(
                f"{file.what}: its classes are {listing(file.classes)}, those of {complete[0].texts.source}"
                f" are {listing(classes)}; rename them by --class-map"
            )
    return SoftLabelFiles(files, classes, settings)


def _read(path: Path, scores: Scores, text_column: str, limits: Limits) -> SoftLabelFile:
    """A file's texts and numbers. Raises InputError."""
    named, rows = soft_label_rows(path, scores, text_column, limits)
    return collect(path, rows, named)


def collect(source: Path | str, rows: Iterable[SoftLabelRow], named: bool = False) -> SoftLabelFile:
    """Texts and numbers. Raises InputError where rows have other classes, or contradict each other."""
    texts: list[str] = []
    places: list[str] = []
    numbers: list[dict[str, float]] = []
    row_of: dict[str, int] = {}
    blank = 0
    for row in rows:
        if row.numbers is None or not all(part.strip() for part in parts(row.text)):
            blank += 1
            continue
        first = row_of.setdefault(one_line(row.text), len(texts))
        if first < len(texts):
            if numbers[first] != row.numbers:
                raise problem(source, f"the text of {places[first]} again, with other numbers: keep one", row.place)
            continue
        if numbers and not named and row.numbers.keys() != numbers[0].keys():
            what = f"its classes are {listing(row.numbers)}, those of {places[0]} are {listing(numbers[0])}"
            raise problem(source, f"{what}: give every row all classes", row.place)
        texts.append(row.text)
        places.append(row.place)
        numbers.append(row.numbers)
    if blank:
        note(f"{FLAG} {source}: {blank} rows have no text or no numbers and are left out")
    if not texts:
        raise problem(source, "no row has soft labels: give texts with probabilities")
    split = Split(texts, None, located(source), places)
    if not named:
        table = [[row[name] for name in numbers[0]] for row in numbers]
        return SoftLabelFile(split, list(numbers[0]), torch.tensor(table, dtype=torch.float64))
    classes = sorted({name for row in numbers for name in row})
    index = torch.tensor([classes.index(name) for row in numbers for name in row])
    table = [list(row.values()) for row in numbers]
    return SoftLabelFile(split, classes, torch.tensor(table, dtype=torch.float64), index)


def _logits(file: SoftLabelFile, classes: Sequence[str], scores: Scores) -> Tensor:
    """(N,C) float64 for these classes. Raises InputError where the file has others."""
    if file.named is not None:
        # a class that no row names is there all the same
        known = [*file.classes, *(name for name in classes if name not in file.classes)]
        order = match_classes(classes, known, file.what)
        rest = (1 - file.numbers) / (len(known) - 1)
        p = rest.expand(-1, len(known)).scatter(1, file.named[:, None], file.numbers)
        return p[:, order].clamp(min=FLOOR).log()
    numbers = file.numbers[:, match_classes(classes, file.classes, file.what)]
    if scores == "probabilities":
        return (numbers / numbers.sum(-1, keepdim=True)).clamp(min=FLOOR).log()
    return numbers if scores == "logits" else numbers.clamp(min=math.log(FLOOR))
