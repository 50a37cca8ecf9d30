"""A run's texts and labels, read, drawn and tokenised before anything is written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from nanonet.config.settings import DataSettings
from nanonet.data.batches import Encoded, encode
from nanonet.data.dataset import Dataset, Split, one_line
from nanonet.data.lines import Limits
from nanonet.data.pairs import check_one_kind
from nanonet.data.read import load_dataset, read_texts
from nanonet.data.soft_label_files import SoftLabelFiles
from nanonet.data.split import Scarce, draw_labels
from nanonet.errors import InputError
from nanonet.progress import note

PYDOCS = "pydocs"
PYDOCS_LABELS = 10  # drawn per class of pydocs unless the user says
MANY_LABELS = 20_000  # rows above which the user is told that all are used
VALIDATION_ROWS = 500  # at most: unlabelled rows that are not trained on; the best student is chosen on them


Rows = TypeVar("Rows", Split, Encoded)


@dataclass(frozen=True, eq=False)
class RunRows(Generic[Rows]):
    """The checked input of a run, as texts or as token ids.

    rows: the training rows, labelled first (the names of the classes last of these), then unlabelled
    label: (N,) int64, -100 where unlabelled
    validation: unlabelled rows that are not trained on
    test, test_label: the test rows; both are empty where there is none
    test_in_train: how many of the test texts are also training texts
    labels_per_class: how many labels of each class were drawn; 0 where every label is used
    """

    name: str
    classes: list[str]
    rows: Rows
    label: Tensor
    validation: Rows
    test: Rows
    test_label: list[int]
    test_in_train: int = 0
    labels_per_class: int = 0


RunTexts = RunRows[Split]
RunData = RunRows[Encoded]


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


def prepare(config: DataSettings, tokenizer: Any) -> RunData:
    """Read, draw and tokenise; raises InputError."""
    return tokenise(draw(config), tokenizer, config.max_tokens)


def draw(
    config: DataSettings,
    classes: Sequence[str] = (),
    given: SoftLabelFiles | None = None,
    dataset: Dataset | None = None,
) -> RunTexts:
    """Read (unless `dataset` is given) and draw. All faults of a user's data are found here.

    The draw of labels is `draw_labels` under `seed`; the unlabelled rows are shuffled by [seed, 1] and cut to
    `max_unlabelled`, the test rows are the first `max_test` of a shuffle by [seed, 2].

    classes: those that the teacher knows without labels; no row needs one then. given: soft labels from files, of which
    every unlabelled row has one; where the data is the default, their texts are the data.

    Raises:
        InputError: says what is wrong.
    """
    dataset, test_in_train = _read(config, classes, given, dataset)
    if _are_pairs(config, dataset, given) and config.class_names:
        raise InputError("--class-names: the name of a class is no pair of texts; leave it out")
    train, per_class = dataset.train, labels_per_class(config, len(dataset.train.texts))
    if classes and not per_class:
        labelled = Scarce(list(range(len(train.texts))), [])
    else:
        labelled = draw_labels(train.labels or [], per_class, config.seed, len(dataset.classes), dataset.classes)
    few, free = train.select(labelled.labelled), [train.select(labelled.unlabelled), *dataset.unlabelled]
    numbers = np.arange(sum(len(split.texts) for split in free))
    if given:
        numbers = _with_soft_labels(free, given)
        if 0 < config.max_unlabelled < len(numbers):
            note(
                f"{config.max_unlabelled} of {len(numbers)} texts with soft labels are used;"
                " --max-unlabelled 0 uses all"
            )
    if not few.texts and not len(numbers):
        raise InputError(f"--data {config.data}: there is no text to train on; give texts by --unlabelled")
    order = np.random.default_rng([config.seed, 1]).permutation(len(numbers))
    order = order[: config.max_unlabelled] if config.max_unlabelled else order
    chosen = [_place(free, number) for number in numbers[order].tolist()]
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
    return RunTexts(
        name=dataset.name,
        classes=dataset.classes,
        rows=_joined(rows + chosen[validation:]),
        label=torch.tensor(known + [-100] * (len(chosen) - validation), dtype=torch.int64),
        validation=_joined(chosen[:validation]),
        test=test,
        test_label=test.labels or [],
        test_in_train=test_in_train,
        labels_per_class=per_class,
    )


def tokenise(texts: RunTexts, tokenizer: Any, max_tokens: int) -> RunData:
    """The token ids of one model. Raises InputError for a text that has none."""
    rows, validation, test = (
        encode(tokenizer, part.texts, max_tokens, part.where) for part in (texts.rows, texts.validation, texts.test)
    )
    return RunData(**vars(texts) | {"rows": rows, "validation": validation, "test": test})


def _read(
    config: DataSettings, classes: Sequence[str], given: SoftLabelFiles | None, dataset: Dataset | None
) -> tuple[Dataset, int]:
    """The dataset with all unlabelled texts, and how many of its test texts are also training texts."""
    limits = Limits(config.max_text_bytes, config.max_data_bytes)
    columns = {"text_column": config.text_column, "label_column": config.label_column}
    further = read_texts(config.unlabelled, config.text_column, limits) if config.unlabelled else ()
    if given and config.data == PYDOCS:
        alone = Dataset(Split([], []), None, list(classes), Path(given.settings.soft_labels[0]).stem, (given.texts,))
        return _without_test_texts(alone, further, config.deduplicate)
    if dataset is None:
        fraction = config.test_fraction
        dataset = load_dataset(config.data, **columns, limits=limits, test_fraction=fraction, classes=classes)
    if given:
        splits = [dataset.train, *dataset.unlabelled, *further, *([dataset.test] if dataset.test else [])]
        given.check_texts({one_line(text) for split in splits for text in split.texts}, config.data)
    return _without_test_texts(dataset, further, config.deduplicate)


def _are_pairs(config: DataSettings, dataset: Dataset, given: SoftLabelFiles | None) -> bool:
    """Whether the texts are pairs. Raises InputError where some are and some are not."""
    splits = [dataset.train, *dataset.unlabelled, *([dataset.test] if dataset.test else [])]
    splits += [given.texts] if given else []
    return check_one_kind((text for split in splits for text in split.texts), f"--text-column {config.text_column}")


def _with_soft_labels(splits: Sequence[Split], given: SoftLabelFiles) -> np.ndarray[Any, Any]:
    """The numbers of the unlabelled rows, counted over the splits, whose texts have soft labels."""
    known = {one_line(text) for text in given.texts.texts}
    has = np.array([one_line(text) in known for split in splits for text in split.texts], bool)
    if not has.all():
        note(f"{(~has).sum()} of {len(has)} unlabelled texts have no soft label and are left out")
    return has.nonzero()[0]


def _place(splits: Sequence[Split], number: int) -> tuple[Split, int]:
    """The split and the row of a number that counts the rows of all splits."""
    for split in splits[:-1]:
        if number < len(split.texts):
            return split, number
        number -= len(split.texts)
    return splits[-1], number


def _joined(some: list[tuple[Split, int]]) -> Split:
    """Rows of several splits as one, each with its place in them."""
    return Split([split.texts[row] for split, row in some], None, "", [split.where(row) for split, row in some])


def labels_per_class(config: DataSettings, rows: int) -> int:
    """The labels that are drawn per class of `rows` labelled rows; 0 for every label."""
    if config.labels_per_class is not None:
        return config.labels_per_class
    if config.data == PYDOCS:
        return 0 if rows == 0 else PYDOCS_LABELS
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
    lines = (one_line(text) for split in splits for text in split.texts)
    common = {line for line in lines if line in tested}  # no set of all of them, which may be millions
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
