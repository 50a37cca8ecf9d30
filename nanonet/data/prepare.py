"""A run's texts and labels, read, drawn and tokenised before anything is written."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nanonet.config.settings import DataSettings
from nanonet.data.batches import Encoded, encode
from nanonet.data.dataset import Dataset, Split
from nanonet.data.lines import Limits
from nanonet.data.read import load_dataset, read_texts
from nanonet.data.split import draw_labels
from nanonet.errors import InputError
from nanonet.progress import note

PYDOCS_LABELS = 10  # drawn per class of pydocs unless the user says
MANY_LABELS = 20_000  # rows above which the user is told that all are used
VALIDATION_ROWS = 500  # at most: unlabelled rows that are not trained on; the best student is chosen on them


@dataclass(frozen=True, eq=False)
class RunData:
    """The checked input of a run as token ids.

    rows: the training rows, labelled first (the names of the classes last of these), then unlabelled
    label: (N,) int64, -100 where unlabelled
    validation: unlabelled rows that are not trained on
    test, test_label: the test rows; both are empty where there is none
    test_in_train: how many of the test texts are also training texts
    labels_per_class: how many labels of each class were drawn; 0 where every label is used
    """

    name: str
    classes: list[str]
    rows: Encoded
    label: Tensor
    validation: Encoded
    test: Encoded
    test_label: list[int]
    test_in_train: int = 0
    labels_per_class: int = 0


def name_as_text(name: str, data: str) -> str:
    """The name of a class as a text: underscores become spaces.

    Raises:
        InputError: there is no letter in it.
    """
    if not any(character.isalpha() for character in name):
        raise InputError(
            f"--class-names: the class {name!r:.40} of {data} is no word; name the classes in labels.json, or leave the"
            " flag out"
        )
    return name.replace("_", " ")


def prepare(config: DataSettings, tokenizer: Any, dataset: Dataset | None = None) -> RunData:
    """Read (unless `dataset` is given), draw and tokenise. All faults of a user's data are found here.

    The draw of labels is `draw_labels` under `seed`; the unlabelled rows are shuffled by [seed, 1] and cut to
    `max_unlabelled`, the test rows are the first `max_test` of a shuffle by [seed, 2].

    Raises:
        InputError: says what is wrong.
    """
    limits = Limits(config.max_text_bytes, config.max_data_bytes)
    columns = {"text_column": config.text_column, "label_column": config.label_column}
    if dataset is None:
        dataset = load_dataset(config.data, **columns, limits=limits, test_fraction=config.test_fraction)
    further = read_texts(config.unlabelled, config.text_column, limits) if config.unlabelled else ()
    dataset, test_in_train = _without_test_texts(dataset, further, config.deduplicate)
    per_class = labels_per_class(config, len(dataset.train.texts))
    draw = draw_labels(dataset.train.labels or [], per_class, config.seed, len(dataset.classes), dataset.classes)
    few, free = dataset.train.select(draw.labelled), [dataset.train.select(draw.unlabelled), *dataset.unlabelled]
    places = [(split, row) for split in free for row in range(len(split.texts))]
    order = np.random.default_rng([config.seed, 1]).permutation(len(places))
    chosen = [places[i] for i in (order[: config.max_unlabelled] if config.max_unlabelled else order)]
    validation = min(VALIDATION_ROWS, len(chosen) // 10)
    test = dataset.test or Split([], [])
    shuffled = np.random.default_rng([config.seed, 2]).permutation(len(test.texts))
    test = test.select(np.sort(shuffled[: config.max_test or len(shuffled)]).tolist())
    known = list(few.labels or [])
    rows = [(few, row) for row in range(len(known))]
    if config.class_names:
        named = Split([name_as_text(name, config.data) for name in dataset.classes], None, "--class-names")
        known += range(len(dataset.classes))
        rows += [(named, c) for c in range(len(dataset.classes))]

    def ids(some: list[tuple[Split, int]]) -> Encoded:
        def where(i: int) -> str:
            return some[i][0].where(some[i][1])

        return encode(tokenizer, [split.texts[row] for split, row in some], config.max_tokens, where)

    return RunData(
        name=dataset.name,
        classes=dataset.classes,
        rows=ids(rows + chosen[validation:]),
        label=torch.tensor(known + [-100] * (len(chosen) - validation)),
        validation=ids(chosen[:validation]),
        test=ids([(test, row) for row in range(len(test.texts))]),
        test_label=test.labels or [],
        test_in_train=test_in_train,
        labels_per_class=per_class,
    )


def labels_per_class(config: DataSettings, rows: int) -> int:
    """The labels that are drawn per class of `rows` labelled rows; 0 for every label."""
    if config.labels_per_class is not None:
        return config.labels_per_class
    if config.data == "pydocs":
        return PYDOCS_LABELS
    if rows > MANY_LABELS:
        note(f"{config.data}: all {rows} labelled rows are used; --labels-per-class draws some of them")
    return 0


def _without_test_texts(dataset: Dataset, further: tuple[Split, ...], deduplicate: bool) -> tuple[Dataset, int]:
    """The dataset with `further` unlabelled texts, and how many of its test texts stand among those to train on, which
    `deduplicate` leaves out there."""
    dataset = replace(dataset, unlabelled=dataset.unlabelled + further)
    if dataset.test is None:
        return dataset, 0
    tested = {one_line(text) for text in dataset.test.texts}
    splits = (dataset.train, *dataset.unlabelled)
    common = {one_line(text) for split in splits for text in split.texts} & tested
    if not common:
        return dataset, 0
    count = sum(one_line(text) in common for text in dataset.test.texts)
    message = f"{dataset.name}: {count} of {len(dataset.test.texts)} test texts stand in the training texts too"
    if not deduplicate:
        note(f"{message}; --deduplicate leaves them out there")
        return dataset, count
    rest = [split.select([i for i, text in enumerate(split.texts) if one_line(text) not in common]) for split in splits]
    removed = sum(len(split.texts) for split in splits) - sum(len(split.texts) for split in rest)
    note(f"{message}: {removed} rows are left out there")
    return replace(dataset, train=rest[0], unlabelled=tuple(rest[1:])), 0


def one_line(text: str) -> str:
    """The text with single spaces: how texts are compared."""
    return " ".join(text.split())
