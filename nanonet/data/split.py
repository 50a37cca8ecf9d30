"""Which rows are labelled, unlabelled, for testing or in a fold: pure functions of their arguments.

The draws are published numbers: changing a line here changes every result that names a seed.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nanonet.errors import InputError


@dataclass(frozen=True)
class Scarce:
    """A train split with few labels: row indices into it, every row on exactly one side."""

    labelled: list[int]
    unlabelled: list[int]


def digest(text: str) -> int:
    """Return the first 8 bytes of sha256(text in utf-8), big-endian: the fixed hash by which texts are chosen."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def in_test_fifth(text: str) -> bool:
    """Whether `text` belongs to the test fifth of pydocs: digest(text) % 5 == 0."""
    return digest(text) % 5 == 0


def choose_test_rows(texts: Sequence[str], labels: Sequence[int], fraction: float) -> list[int]:
    """Choose the rows that a table without a test split sets aside for testing, ascending.

    Of each class, its texts with the smallest digests, until they are `fraction` of its rows; equal texts stay
    together, and at least one text of a class is not chosen. So few rows move when others come or go.
    """
    rows_of: dict[str, list[int]] = {}
    for row, text in enumerate(texts):
        rows_of.setdefault(text, []).append(row)
    chosen: dict[str, bool] = {}
    for c in sorted(set(labels)):
        count = Counter(text for text, label in zip(texts, labels, strict=True) if label == c)
        wanted = round(fraction * count.total()) - sum(n for text, n in count.items() if chosen.get(text))
        free = sorted((text for text in count if text not in chosen), key=digest)
        spare = len(free) - (not any(chosen.get(text) is False for text in count))
        for i, text in enumerate(free):
            chosen[text] = i < spare and wanted > 0
            wanted -= count[text] if chosen[text] else 0
    return sorted(row for text, rows in rows_of.items() if chosen[text] for row in rows)


def draw_labels(
    labels: Sequence[int], labels_per_class: int, seed: int, classes: int, class_names: Sequence[str] | None = None
) -> Scarce:
    """Draw `labels_per_class` rows of every class; the rest is unlabelled.

        rng = numpy.random.default_rng(seed)
        labelled = [row for c in range(classes) for row in rng.permutation(rows of c, ascending)[:labels_per_class]]
        unlabelled = the other rows, ascending

    labels: (N,) class of every row, in [0, classes). labels_per_class: [rows]; 0 labels every row, in row order.
    class_names: (classes,) for the error message only.
    Raises InputError where a class has too few rows, or none at all.
    """
    if labels_per_class < 0:
        raise InputError(f"labels_per_class is {labels_per_class}: give 0 (every label) or a count of rows")
    label = np.asarray(labels, dtype=np.int64)
    rng = np.random.default_rng(seed)
    labelled: list[int] = []
    for c in range(classes):
        rows = np.flatnonzero(label == c)
        if len(rows) < max(labels_per_class, 1):
            name = class_names[c] if class_names is not None else str(c)
            found = f"class {name!r:.40} has {len(rows)} rows in the train split"
            if len(rows) == 0:
                raise InputError(f"{found}: add rows of that class, or remove the class")
            raise InputError(f"{found}, fewer than labels_per_class {labels_per_class}: lower it or add rows")
        labelled.extend(rng.permutation(rows)[:labels_per_class].tolist())
    if labels_per_class == 0:
        return Scarce(list(range(len(label))), [])
    free = np.ones(len(label), dtype=bool)
    free[labelled] = False
    return Scarce(labelled, np.flatnonzero(free).tolist())


def folds(labels: Sequence[int], count: int, seed: int) -> list[tuple[list[int], list[int]]]:
    """Cut the rows into `count` stratified folds: [(train rows, validation rows)], both ascending.

    The rows of each class are shuffled and dealt out in turn, each class going on where the last one stopped, so
    both the folds and the classes within them differ by one row at most. Every class is in every train part: the
    only row of a class is in no validation part. Folds without a validation row are dropped.

    labels: (N,) class of every row. count: at least 2.
    """
    if count < 2:
        raise ValueError(f"count: expected at least 2 folds, got {count}")
    label = np.asarray(labels, dtype=np.int64)
    rng = np.random.default_rng(seed)
    fold = np.full(len(label), -1, dtype=np.int64)  # -1: in every train part
    dealt = 0
    for c in np.unique(label):
        rows = rng.permutation(np.flatnonzero(label == c))
        if len(rows) > 1:
            fold[rows] = (dealt + np.arange(len(rows))) % count
            dealt += len(rows)
    parts = [(np.flatnonzero(fold != k).tolist(), np.flatnonzero(fold == k).tolist()) for k in range(count)]
    return [(train, validation) for train, validation in parts if validation]
