"""Checked texts and labels, whatever they were read from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from nanonet.data.pairs import MARK, parts


@dataclass(frozen=True)
class Split:
    """N texts and their labels, as indices of classes; labels is None where there are none.

    source, places: where each text stands, for messages; places is empty where that is not known.
    """

    texts: list[str]
    labels: list[int] | None
    source: str = field(default="", compare=False)
    places: Sequence[str] = field(default=(), compare=False, repr=False)

    def where(self, row: int) -> str:
        """Where a text stands, for a message."""
        place = self.places[row] if self.places else f"text {row + 1} of {len(self.texts)}"
        return f"{self.source}, {place}" if self.source else place

    def select(self, rows: Sequence[int]) -> Split:
        """These rows, in that order."""
        labels = None if self.labels is None else [self.labels[row] for row in rows]
        places = [self.places[row] for row in rows] if self.places else ()
        return Split([self.texts[row] for row in rows], labels, self.source, places)


def one_line(text: str) -> str:
    """The text with single spaces: how texts are compared."""
    return MARK.join(" ".join(part.split()) for part in parts(text))


@dataclass(frozen=True)
class Dataset:
    """What a run learns from. classes: the names in label order; unlabelled: the rows of the train table without a
    label, and those of a table beside it that says so by its name."""

    train: Split
    test: Split | None
    classes: list[str]
    name: str
    unlabelled: tuple[Split, ...] = ()
