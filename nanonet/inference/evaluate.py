"""Scores of a trained model on labelled texts."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nanonet.config.commands import EvaluateConfig
from nanonet.data.classes import labels_beside
from nanonet.data.dataset import Split
from nanonet.data.folders import find_test
from nanonet.data.labels import Names, index_labels
from nanonet.data.lines import Limits
from nanonet.data.problems import problem
from nanonet.data.read import load_dataset, read_table
from nanonet.device import device
from nanonet.errors import InputError
from nanonet.inference.classifier import open_classifier
from nanonet.inference.forward import check_batch_rows, logits_of, run
from nanonet.inference.scores import scores, wilson
from nanonet.inference.side_by_side import ROWS_AT_ONCE, in_order
from nanonet.progress import Progress


def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """model, device, rows, accuracy, its 95% interval and macro_f1 [fractions], rows_per_s [rows/s, tokenisation
    included].

    Raises:
        InputError: the model, the data, or a label that the model does not know.
    """
    check_batch_rows(config.batch_rows)
    classifier = open_classifier(config.model)
    table = labelled_texts(config, classifier.classes)
    classifier.model.to(device())  # type: ignore[arg-type]
    where = classifier.model.device
    began = time.perf_counter()
    with Progress() as progress, progress.stage("evaluating", len(table.texts)) as tick:

        def work(start: int, alive: Callable[[], None]) -> Tensor:
            def done(rows: int) -> None:
                alive()
                tick(rows)

            texts = table.texts[start : start + ROWS_AT_ONCE]
            encoded = classifier.encode(texts, config.max_tokens, lambda n: table.where(start + n))
            pad_id = classifier.tokenizer.pad_token_id
            return run(logits_of(classifier.model), encoded, pad_id, where, config.batch_rows, done)

        logits = torch.cat(list(in_order(work, range(0, len(table.texts), ROWS_AT_ONCE))))
    seconds = time.perf_counter() - began
    found = {name: round(value, 6) for name, value in scores(logits, table.labels or []).items()}
    return {
        "model": str(classifier.folder),
        "device": str(where),
        "rows": len(table.texts),
        "accuracy": found["accuracy"],
        "accuracy_interval": [round(bound, 6) for bound in wilson(found["accuracy"], len(table.texts))],
        "macro_f1": found["macro_f1"],
        "rows_per_s": round(len(table.texts) / seconds, 1),
    }


def labelled_texts(config: EvaluateConfig, classes: list[str]) -> Split:
    """Texts, and their labels as indices of `classes`, the model's: matched by name.

    Numbers are names, unless a labels.json beside the data, or a ClassLabel in it, says what they count.
    """
    if not config.data:
        raise InputError("--data is missing: give a file with texts and labels, a folder with test.*, or a dataset id")
    path, columns = Path(config.data).expanduser(), (config.text_column, config.label_column)
    limits = Limits(config.max_text_bytes, config.max_data_bytes)
    files = find_test(path) if path.is_dir() else [path] if path.exists() else []
    if files:
        table, names = read_table(files, *columns, labels_beside(path) or Names(classes), limits)
    else:
        dataset = load_dataset(config.data, text_column=columns[0], label_column=columns[1], limits=limits)
        if dataset.test is None:
            raise problem(config.data, "has no test rows: give a file, all rows of which are used")
        table, names = dataset.test, dataset.classes
    if not table.texts:
        raise problem(config.data, "no row has a label: give a file whose rows have one")
    found = [names[c] for c in table.labels or []]
    index, _ = index_labels(found, Names(classes), table.source, table.places, config.label_column)
    return Split(table.texts, index, table.source, table.places)
