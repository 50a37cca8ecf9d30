"""A run's texts and labels, read, drawn and tokenised before anything is written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nanonet.config.settings import DataSettings
from nanonet.data.batches import Encoded, encode
from nanonet.data.read import load_dataset, read_texts
from nanonet.data.split import draw_labels
from nanonet.errors import InputError

VALIDATION_ROWS = 500  # at most: unlabelled rows that are not trained on; the best student is chosen on them


@dataclass(frozen=True, eq=False)
class RunData:
    """The checked input of a run as token ids.

    rows: the training rows, labelled first (the names of the classes last of these), then unlabelled
    label: (N,) int64, -100 where unlabelled
    validation: unlabelled rows that are not trained on
    test, test_label: the test rows; both are empty where there is none
    """

    name: str
    classes: list[str]
    rows: Encoded
    label: Tensor
    validation: Encoded
    test: Encoded
    test_label: list[int]


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
    """Read, draw and tokenise. All faults of a user's data are found here.

    The draw of labels is `draw_labels` under `seed`; the unlabelled rows are shuffled by [seed, 1] and cut to
    `max_unlabelled`, the test rows are the first `max_test` of a shuffle by [seed, 2].

    Raises:
        InputError: says what is wrong.
    """
    dataset = load_dataset(config.data, text_column=config.text_column, label_column=config.label_column)
    texts, labels = dataset.train.texts, dataset.train.labels or []
    draw = draw_labels(labels, config.labels_per_class, config.seed, len(dataset.classes), dataset.classes)
    free = [texts[row] for row in draw.unlabelled]
    if config.unlabelled:
        free += read_texts(config.unlabelled, config.text_column)
    order = np.random.default_rng([config.seed, 1]).permutation(len(free))
    chosen = [free[i] for i in (order[: config.max_unlabelled] if config.max_unlabelled else order)]
    validation = min(VALIDATION_ROWS, len(chosen) // 10)
    test_texts, test_labels = (dataset.test.texts, dataset.test.labels or []) if dataset.test else ([], [])
    shuffled = np.random.default_rng([config.seed, 2]).permutation(len(test_texts))
    picked = np.sort(shuffled[: config.max_test or len(shuffled)]).tolist()

    def ids(some: list[str]) -> Encoded:
        return encode(tokenizer, some, config.max_tokens)

    known = [labels[row] for row in draw.labelled]
    few = [texts[row] for row in draw.labelled]
    if config.class_names:
        known += range(len(dataset.classes))
        few += [name_as_text(name, config.data) for name in dataset.classes]
    label = torch.tensor(known + [-100] * (len(chosen) - validation))
    return RunData(
        name=dataset.name,
        classes=dataset.classes,
        rows=ids(few + chosen[validation:]),
        label=label,
        validation=ids(chosen[:validation]),
        test=ids([test_texts[i] for i in picked]),
        test_label=[test_labels[i] for i in picked],
    )
