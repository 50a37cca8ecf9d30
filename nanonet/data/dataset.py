"""Checked texts and labels, whatever they were read from."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Split:
    """One table: N texts and their labels, as indices of classes; labels is None where the table has none."""

    texts: list[str]
    labels: list[int] | None


@dataclass(frozen=True)
class Dataset:
    """What a run learns from: classes are the names in label order."""

    train: Split
    test: Split | None
    classes: list[str]
    name: str
