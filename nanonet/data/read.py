"""Tables of texts and labels, read and checked row by row.

Every fault of a user's data is an `InputError` of one line that names the file, the line, the column and the cure.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from nanonet.data.classes import labels_beside
from nanonet.data.columns import PAIRS_IN_MEMORY, TEXT, Columns, among
from nanonet.data.dataset import Dataset, Split
from nanonet.data.folders import find_tables, text_tables
from nanonet.data.formats import TableRow, class_label_names, read_column_names, read_rows
from nanonet.data.labels import Names, blanks, index_labels, note_blanks, note_forms, read_label
from nanonet.data.lines import DEFAULT_LIMITS, Limits
from nanonet.data.pairs import parts
from nanonet.data.places import Places
from nanonet.data.problems import listing, located, problem
from nanonet.data.split import choose_test_rows
from nanonet.data.text_files import is_text_file, text_rows
from nanonet.errors import InputError
from nanonet.progress import note

UNLABELLED, LEFT_OUT = "used as unlabelled texts", "left out"  # what becomes of rows with a blank label


# the labelled rows, the rows with a blank label (none or one split), and the names
Table = tuple[Split, tuple[Split, ...], Names]


def load_dataset(
    data: str,
    *,
    text_column: str = "text",
    label_column: str = "label",
    limits: Limits = DEFAULT_LIMITS,
    test_fraction: float = 0.0,
    classes: Sequence[str] = (),
) -> Dataset:
    """Return the dataset that `data` names.

    data: `pydocs` (see pydocs.py); a file; a folder (folders.py) with a train table, perhaps a test table, a table of
    unlabelled texts and a `labels.json`, the list of the class names in label order; or, if nothing of that name
    exists, a Hugging Face dataset id. text_column: one column, or two with a comma for pairs of texts (columns.py).

    Labels are class names; whole numbers count `labels.json` or a ClassLabel from 0. Without these the classes are the
    labels of the train table: sorted as numbers if all are whole numbers, else as text. A row of the train table with a
    blank label (labels.py) is an unlabelled row; one of the test table is left out.
    test_fraction: the part of the labelled rows that becomes the test split where there is no test table; without it
    test is None then, and no labelled row is taken away.
    classes: those that a teacher knows. With them no row needs a label, and they are the classes where none has one.

    Raises InputError.
    """
    if data == "pydocs":
        if "," in text_column:
            raise InputError(f"--text-column {text_column}: pydocs has no pairs of texts; leave it out")
        from nanonet.data.pydocs import pydocs

        return pydocs()
    columns = Columns({TEXT: text_column}, label_column, limits, tuple(classes))
    path = Path(os.path.expanduser(data))
    if data and os.path.isdir(path):
        return _load_folder(path, columns, test_fraction)
    if data and os.path.exists(path):
        train = _labelled(_read_files([path], columns, None, UNLABELLED), columns)
        return _split_off_test(train, test_fraction, path.name.split(".")[0])
    return _load_hub(data, columns, test_fraction)


def read_table(
    path: str | Path | Sequence[Path],
    text_column: str,
    label_column: str | None,
    names: Names | None,
    limits: Limits = DEFAULT_LIMITS,
) -> tuple[Split, list[str]]:
    """Return the labelled rows of one file, or of the shards of one table, and the classes.

    label_column: None reads all texts without labels: labels is None, the classes come back as they were given.
    names: the classes to which every label must belong; None derives them from the labels.
    Raises InputError.
    """
    files = [Path(path)] if isinstance(path, str | Path) else list(path)
    table, _, found = _read_files(files, Columns({TEXT: text_column}, label_column, limits), names)
    return table, found.names


def read_texts(path: str | Path, text_column: str = "text", limits: Limits = DEFAULT_LIMITS) -> tuple[Split, ...]:
    """Return the texts of a file, or of all tables of a folder in the order of their names, those for testing left out.

    Labels, if there are any, are not looked at. A `.txt` file has a text a line, of pairs with a tab between the two.
    Raises InputError.
    """
    path = Path(os.path.expanduser(path))
    if is_text_file(path):
        columns = Columns(among((), text_column), None, limits)
        return (_collect(path, text_rows(path, len(columns.texts), limits), columns, None, UNLABELLED)[0],)
    files = text_tables(path) if path.is_dir() else [path]
    return tuple(_read_files([file], Columns({TEXT: text_column}, None, limits), None, UNLABELLED)[0] for file in files)


def load_rows(
    train: Iterable[TableRow],
    unlabelled: Iterable[TableRow] | None,
    test: Iterable[TableRow] | None,
    limits: Limits,
    test_fraction: float,
    classes: Sequence[str] = (),
    pairs: bool = False,
) -> Dataset:
    """Return the dataset of rows in memory: (place, [text, label]), of unlabelled texts (place, [text]); a blank label
    is None; of pairs both texts. They are checked and used as those of files. Raises InputError."""
    columns = Columns(limits=limits, classes=tuple(classes))
    columns = replace(columns, texts=PAIRS_IN_MEMORY) if pairs else columns
    table = _labelled(_collect("texts", train, columns, None, UNLABELLED), columns)
    if unlabelled is not None:
        further, _, _ = _collect("unlabelled", unlabelled, replace(columns, label=None), None, UNLABELLED)
        table = (table[0], (*table[1], further), table[2])
    if test is None:
        return _split_off_test(table, test_fraction, "texts")
    _refuse_fraction(test_fraction, "validation")
    return _with_test(table, _collect("validation", test, columns, table[2], LEFT_OUT), "texts")


def _load_folder(folder: Path, columns: Columns, test_fraction: float) -> Dataset:
    tables, names = find_tables(folder, bool(columns.classes)), labels_beside(folder)
    train: Table = Split([], [], str(folder)), (), names or Names(list(columns.classes))
    if "train" in tables:
        train = _labelled(_read_files(tables["train"], columns, names, UNLABELLED), columns)
    if "unlabelled" in tables:
        further, _, _ = _read_files(tables["unlabelled"], replace(columns, label=None), None, UNLABELLED)
        note(f"{further.source}: {len(further.texts)} texts are used as unlabelled texts")
        train = (train[0], (*train[1], further), train[2])
    name = folder.resolve().name
    if "test" not in tables:
        return _split_off_test(train, test_fraction, name)
    _refuse_fraction(test_fraction, folder)
    return _with_test(train, _read_files(tables["test"], columns, train[2]), name)


def _load_hub(data: str, columns: Columns, test_fraction: float) -> Dataset:
    from nanonet.data.hub import class_names, hub_rows, looks_like_id, open_splits

    if not looks_like_id(data):
        raise problem(Path(data) if data else "data", "does not exist: give a file, a folder, a dataset id or pydocs")
    splits = open_splits(data)
    if "train" not in splits:
        raise problem(data, f"no train split among {listing(splits)}: choose a dataset that has one")
    columns = replace(columns, texts=among(splits["train"].column_names, columns.shown))

    def table(part: str, names: Names | None, blank_use: str) -> Table:
        source = f"{data} [{part}]"
        return _collect(source, hub_rows(source, splits[part], columns), columns, names, blank_use)

    known = class_names(splits["train"], str(columns.label))
    train = _labelled(table("train", None if known is None else Names(known, counted=True), UNLABELLED), columns)
    if "test" not in splits:
        return _split_off_test(train, test_fraction, data)
    _refuse_fraction(test_fraction, data)
    return _with_test(train, table("test", train[2], LEFT_OUT), data)


def _with_test(train: Table, test: Table, name: str) -> Dataset:
    """The dataset of a train and a test table; test is None where no row of its has a label."""
    labelled, _, names = test
    return Dataset(train[0], labelled if labelled.labels else None, names.names, name, train[1])


def _split_off_test(train: Table, fraction: float, name: str) -> Dataset:
    """The dataset of a train table alone."""
    table, unlabelled, names = train
    if not fraction:
        return Dataset(table, None, names.names, name, unlabelled)
    chosen = choose_test_rows(table.texts, table.labels or [], fraction)
    if not chosen:
        what = f"--test-fraction {fraction} of {len(table.texts)} labelled rows is no row: give more of one of them"
        raise problem(table.source, what)
    rest = sorted(set(range(len(table.texts))) - set(chosen))
    return Dataset(table.select(rest), table.select(chosen), names.names, name, unlabelled)


def _refuse_fraction(fraction: float, source: Path | str) -> None:
    if fraction:
        raise problem(source, f"--test-fraction {fraction}: there is a test table; leave the flag out")


def _labelled(train: Table, columns: Columns) -> Table:
    """`train`. Raises InputError where none of its rows has a label, and no teacher knows the classes."""
    split, unlabelled, names = train
    if split.labels is None:  # there is no column of labels
        return Split([], [], split.source), (split,), names if names.names else Names(list(columns.classes))
    if not split.texts and not columns.classes:
        raise problem(split.source, "no row has a label: fill in some, of two classes or more")
    return train


def _read_files(files: Sequence[Path], columns: Columns, names: Names | None, blank_use: str = LEFT_OUT) -> Table:
    """Read the shards of one table. blank_use: what becomes of rows with a blank label, for the note."""
    columns = columns.of(files[0])
    if columns.classes and columns.label not in read_column_names(files[0], columns.texts, columns.limits):
        columns = replace(columns, label=None)
    known = class_label_names(files[0], columns.label) if columns.label is not None else None
    if names is None and known is not None:
        names = Names(known, counted=True)
    if len(files) == 1:
        return _collect(files[0], _named(files[0], columns, names), columns, names, blank_use)

    def rows() -> Iterable[TableRow]:
        for file in files:
            for place, values in _named(file, columns, names):
                yield f"{file.name}, {place}", values

    return _collect(files[0].parent, rows(), columns, names, blank_use)


def _named(path: Path, columns: Columns, names: Names | None) -> Iterable[TableRow]:
    """The rows of a file; the numbers of a ClassLabel column as its names."""
    rows = read_rows(path, columns.settings, columns.limits)
    known = class_label_names(path, columns.label) if columns.label is not None else None
    if known is None or names is None or names.given:
        return rows
    return ((place, [*v[:-1], known[v[-1]] if v[-1] in range(len(known)) else v[-1]]) for place, v in rows)  # type: ignore


def _collect(
    source: Path | str, rows: Iterable[TableRow], columns: Columns, names: Names | None, blank_use: str
) -> Table:
    """Check every row: (place, [text]) or (place, [text, label]), of pairs with both texts."""
    if len(set(columns.settings.values())) < len(columns.settings):
        what = "text_column and label_column are the same" if len(columns.texts) == 1 else "two of the columns are one"
        raise problem(source, f"{what}: set one to another column", "", columns.shown)
    texts: list[str] = []
    labels: list[str] = []
    places = Places()
    forms: dict[str, set[str]] = {}
    empty: list[str] = []
    for place, values in rows:
        text = columns.text(values, source, place)
        if blank_use == UNLABELLED and not all(part.strip() for part in parts(text)):
            empty.append(place)
            continue
        texts.append(text)
        places.append(place)
        if columns.label is not None:
            written = values[-1]
            label = read_label(written, source, place, columns.label)
            labels.append(label)
            if isinstance(written, str) and label and " ".join(written.split()) != label:
                forms.setdefault(label, set()).add(written)
    if empty and texts:
        note(f"{located(source, '', columns.shown)}: {len(empty)} rows have no text and are left out, {empty[0]} first")
    if not texts:
        raise problem(source, "no rows: give a table with texts")
    split = Split(texts, None, located(source), places)
    if columns.label is None:
        return split, (), names or Names([])
    note_forms(forms, source, columns.label)
    if names is None and columns.classes and blanks(labels, None) >= set(labels):
        names = Names(list(columns.classes))
    index, names = index_labels(labels, names, source, places, columns.label)
    labelled = [row for row, c in enumerate(index) if c >= 0]
    blank = [row for row, c in enumerate(index) if c < 0]
    split = replace(split, labels=index)
    if not blank:
        return split, (), names
    note_blanks(labels, names, blank_use, source, columns.label)
    return split.select(labelled), (replace(split.select(blank), labels=None),), names
