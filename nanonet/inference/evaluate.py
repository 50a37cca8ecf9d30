"""Scores of a trained model on labelled texts."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from nanonet.config.commands import EvaluateConfig
from nanonet.data.formats import extension, listing, problem, shorten
from nanonet.data.read import load_dataset, read_classes, read_table
from nanonet.device import device
from nanonet.errors import InputError
from nanonet.inference.classifier import find_classifier, load_classifier
from nanonet.inference.forward import check_batch_rows, logits_of, run
from nanonet.inference.scores import scores
from nanonet.progress import Progress


def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """model, device, rows, accuracy and macro_f1 [fractions], rows_per_s [rows/s, tokenisation included].

    Raises:
        InputError: the model, the data, or a label that the model does not know.
    """
    check_batch_rows(config.batch_rows)
    classifier = load_classifier(find_classifier(config.model))
    texts, labels = labelled_texts(config, classifier.classes)
    where = device()
    classifier.model.to(where)  # type: ignore[arg-type]
    began = time.perf_counter()
    encoded, pad_id = classifier.encode(texts, config.max_tokens), classifier.tokenizer.pad_token_id
    with Progress() as progress, progress.stage("evaluating", len(texts)) as tick:
        logits = run(logits_of(classifier.model), encoded, pad_id, where, config.batch_rows, done=tick)
    seconds = time.perf_counter() - began
    return {
        "model": str(classifier.folder),
        "device": str(where),
        "rows": len(texts),
        **{name: round(value, 6) for name, value in scores(logits, labels).items()},
        "rows_per_s": round(len(texts) / seconds, 1),
    }


def labelled_texts(config: EvaluateConfig, classes: list[str]) -> tuple[list[str], list[int]]:
    """Texts, and their labels as indices of `classes`, the model's."""
    if not config.data:
        raise InputError("--data is missing: give a file with texts and labels, a folder with test.*, or a dataset id")
    path, columns = Path(config.data).expanduser(), (config.text_column, config.label_column)
    if path.is_dir():
        tests = [f for f in sorted(path.iterdir()) if f.name.split(".")[0] == "test" and extension(f)]
        if len(tests) > 1:
            raise problem(path, f"several test files ({listing(f.name for f in tests)}): give one of them")
        path = tests[0] if tests else path
    if path.is_file():
        beside = path.with_name("labels.json")
        table, names = read_table(path, *columns, read_classes(beside) if beside.exists() else classes)
    else:
        dataset = load_dataset(config.data, text_column=columns[0], label_column=columns[1])
        if dataset.test is None:
            raise problem(config.data, "has no test rows: give a file, all rows of which are used")
        table, names = dataset.test, dataset.classes
    found = table.labels or []
    index = {c: _class_index(names[c], classes, str(path), config.label_column) for c in sorted(set(found))}
    return table.texts, [index[c] for c in found]


def _class_index(name: str, classes: list[str], source: str, column: str) -> int:
    if name in classes:
        return classes.index(name)
    # where the model's own classes are numbers, a number can only be a name: nothing is guessed
    if name.isdecimal() and int(name) < len(classes) and not any(c.isdecimal() for c in classes):
        return int(name)
    raise problem(source, f"unknown label {shorten(name)}: the model's classes are {listing(classes)}", "", column)
