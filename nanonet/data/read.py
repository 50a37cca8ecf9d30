"""Tables of texts and labels, read and checked row by row.

Every fault of a user's data is an `InputError` of one line that names the file, the line, the column and the cure.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from pathlib import Path

from nanonet.data.dataset import Dataset, Split
from nanonet.data.formats import EXTENSIONS, TableRow, extension, listing, problem, read_rows, shorten
from nanonet.data.split import in_test_fifth

_INTEGER = re.compile(r"-?[0-9]{1,18}")


def load_dataset(data: str, *, text_column: str = "text", label_column: str = "label") -> Dataset:
    """Return the dataset that `data` names.

    data: `pydocs` (see pydocs.py); a file; a folder with one `train.*`, at most one `test.*` and perhaps a
    `labels.json`, the list of the class names in label order; or, if nothing of that name exists, a Hugging Face
    dataset id.

    Labels are class names, or whole numbers that count `labels.json` from 0. Without `labels.json` the classes
    are the labels of the train table: sorted as numbers if all are whole numbers, else as text.
    Without a test table the rows that split.in_test_fifth chooses by their text become the test split, so
    equal texts stay on one side and a row never moves when others come or go; test is None if that is no row.

    Raises InputError.
    """
    if data == "pydocs":
        from nanonet.data.pydocs import pydocs

        return pydocs()
    path = Path(os.path.expanduser(data))
    if data and os.path.isdir(path):
        return _load_folder(path, text_column, label_column)
    if data and os.path.exists(path):
        train, classes = read_table(path, text_column, label_column, None)
        return _split_off_test(train, classes, path.name.split(".")[0], str(path))
    return _load_hub(data, text_column, label_column)


def read_table(
    path: str | Path, text_column: str, label_column: str | None, classes: list[str] | None
) -> tuple[Split, list[str]]:
    """Return the table of one file and its classes.

    label_column: None leaves the labels out (labels is None, the classes come back as they were given).
    classes: names in label order, to which every label must belong; None derives them from the labels.
    Raises InputError.
    """
    path = Path(path)
    columns = {"text_column": text_column} | ({} if label_column is None else {"label_column": label_column})
    return _collect(path, read_rows(path, columns), text_column, label_column, classes)


def read_texts(path: str | Path, text_column: str = "text") -> list[str]:
    """Return the texts of a file, or of all tables of a folder in the order of their names, `test.*` left out.

    Labels, if there are any, are not looked at. Raises InputError.
    """
    path = Path(path)
    if not path.is_dir():
        return read_table(path, text_column, None, None)[0].texts
    files = sorted(f for f in path.iterdir() if f.is_file() and extension(f) and f.name != "labels.json")
    files = [f for f in files if f.name.split(".")[0] != "test"]
    if not files:
        raise problem(path, f"no table in this folder: put files that end in {', '.join(EXTENSIONS)} into it")
    return [text for f in files for text in read_table(f, text_column, None, None)[0].texts]


def read_classes(path: Path) -> list[str]:
    """Return the class names of a `labels.json`. Raises InputError unless they are two or more different names."""
    cure = 'write a list of two or more different names, such as ["negative", "positive"]'
    try:
        names = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise problem(path, f"not JSON ({shorten(str(error))}): {cure}") from error
    except OSError as error:
        raise problem(path, f"cannot be read ({error.strerror}): check its permissions") from error
    if not isinstance(names, list) or not all(isinstance(name, str) and name.strip() for name in names):
        raise problem(path, f"{shorten(names, 30)} is no list of names: {cure}")
    names = [_check_unicode(name.strip(), "name", path, "", "") for name in names]
    if len(names) < 2 or len(set(names)) < len(names):
        raise problem(path, f"{len(names)} names, {len(set(names))} different: {cure}")
    return names


def _load_folder(folder: Path, text_column: str, label_column: str) -> Dataset:
    entries = sorted(folder.iterdir())
    if not entries:
        raise problem(folder, "is an empty folder: put train.csv (or .tsv, .jsonl, .parquet) into it")
    found: dict[str, Path] = {}
    for part in ("train", "test"):
        files = [f for f in entries if f.is_file() and f.name.split(".")[0] == part and extension(f)]
        if len(files) > 1:
            raise problem(folder, f"several {part} files ({listing(f.name for f in files)}): keep one")
        if files:
            found[part] = files[0]
    if "train" not in found:
        names = listing(f.name for f in entries)
        raise problem(folder, f"no train file among {names}: name one train.csv (or .tsv, .jsonl, .parquet)")
    labels_file = folder / "labels.json"
    classes = read_classes(labels_file) if labels_file.exists() else None
    train, classes = read_table(found["train"], text_column, label_column, classes)
    name = folder.resolve().name
    if "test" not in found:
        return _split_off_test(train, classes, name, str(found["train"]))
    return Dataset(train, read_table(found["test"], text_column, label_column, classes)[0], classes, name)


def _load_hub(data: str, text_column: str, label_column: str) -> Dataset:
    from nanonet.data.hub import class_names, hub_rows, looks_like_id, open_splits

    if not looks_like_id(data):
        raise problem(Path(data) if data else "data", "does not exist: give a file, a folder, a dataset id or pydocs")
    splits = open_splits(data)
    if "train" not in splits:
        raise problem(data, f"no train split among {listing(splits)}: choose a dataset that has one")

    def table(part: str, classes: list[str] | None) -> tuple[Split, list[str]]:
        source = f"{data} [{part}]"
        return _collect(
            source, hub_rows(source, splits[part], text_column, label_column), text_column, label_column, classes
        )

    train, classes = table("train", class_names(splits["train"], label_column))
    if "test" not in splits:
        return _split_off_test(train, classes, data, data)
    return Dataset(train, table("test", classes)[0], classes, data)


def _split_off_test(table: Split, classes: list[str], name: str, source: str) -> Dataset:
    """Move the rows of `in_test_fifth` to a test split."""
    sides: dict[bool, tuple[list[str], list[int]]] = {False: ([], []), True: ([], [])}
    for text, label in zip(table.texts, table.labels or [], strict=True):
        texts, labels = sides[in_test_fifth(text)]
        texts.append(text)
        labels.append(label)
    train, test = Split(*sides[False]), Split(*sides[True])
    if not train.texts:
        raise problem(Path(source), f"{len(table.texts)} rows are too few to set a fifth aside for testing: add rows")
    return Dataset(train, test if test.texts else None, classes, name)


def _collect(
    source: Path | str, table: Iterable[TableRow], text_column: str, label_column: str | None, classes: list[str] | None
) -> tuple[Split, list[str]]:
    """Check every row of `table`: (place, [text]) or (place, [text, label])."""
    if text_column == label_column:
        raise problem(source, "text_column and label_column are the same: set one to another column", "", text_column)
    texts: list[str] = []
    names: list[str] = []
    index = {name: i for i, name in enumerate(classes or [])}
    for place, values in table:
        texts.append(_text(values[0], source, place, text_column))
        if label_column is not None:
            name = _label(values[1], source, place, label_column)
            if classes is not None and name not in index:
                index[name] = _by_number(name, classes, source, place, label_column)
            names.append(name)
    if not texts:
        raise problem(source, "no rows: give a table with texts")
    if label_column is None:
        return Split(texts, None), classes or []
    if classes is None:
        all_numbers = all(_INTEGER.fullmatch(name) for name in names)
        classes = sorted(set(names), key=lambda name: (int(name) if all_numbers else 0, name))
        index = {name: i for i, name in enumerate(classes)}
        if len(classes) < 2:
            what = f"every label is {shorten(names[0], 40)}: give rows of two classes or more"
            raise problem(source, what, "", label_column)
    return Split(texts, [index[name] for name in names]), classes


def _text(value: object, source: Path | str, place: str, column: str) -> str:
    if not isinstance(value, str):
        raise problem(source, f"the text is {shorten(value, 30)}, not a string: write it in quotes", place, column)
    if not value.strip():
        raise problem(source, "the text is empty: fill it in or delete the row", place, column)
    return _check_unicode(value, "text", source, place, column)


def _label(value: object, source: Path | str, place: str, column: str) -> str:
    """Return the label as it is written, be it a number or a name."""
    if value is None or value != value or (isinstance(value, str) and not value.strip()):
        what = "the label is missing: fill it in, or move the row to a file of unlabelled texts"
        raise problem(source, what, place, column)
    if isinstance(value, bool) or not isinstance(value, int | str):
        what = f"the label {shorten(value, 30)} is neither a whole number nor a name: write one of the two"
        raise problem(source, what, place, column)
    return _check_unicode(str(value).strip(), "label", source, place, column)


def _check_unicode(value: str, what: str, source: Path | str, place: str, column: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError as error:
        half = f"the {what} holds half a character ({shorten(value[error.start])}): write it whole or delete it"
        raise problem(source, half, place, column) from error
    return value


def _by_number(name: str, classes: list[str], source: Path | str, place: str, column: str) -> int:
    """Return the class that the unknown name `name` counts, from 0."""
    # where names are numbers themselves, a number can only be a name: nothing is guessed
    if not _INTEGER.fullmatch(name) or any(_INTEGER.fullmatch(known) for known in classes):
        raise problem(source, f"unknown label {shorten(name, 40)}: the classes are {listing(classes)}", place, column)
    if not 0 <= int(name) < len(classes):
        what = f"label {name} is out of range: the {len(classes)} classes {listing(classes)} count from 0"
        raise problem(source, what, place, column)
    return int(name)
