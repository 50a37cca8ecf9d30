"""The tables of a data folder: train.csv and test.csv, labelled.csv and unlabelled.csv, or a hub folder's shards."""

from __future__ import annotations

import re
from pathlib import Path

from nanonet.data.formats import EXTENSIONS, extension
from nanonet.data.problems import listing, problem

PARTS = {
    "train": "train",
    "labelled": "train",
    "labeled": "train",
    "test": "test",
    "unlabelled": "unlabelled",
    "unlabeled": "unlabelled",
}
_SHARD = re.compile(r"(\w+)-(\d{5})-of-(\d{5})")
KINDS = "(or .tsv, .jsonl, .parquet)"


def find_tables(folder: Path, unlabelled_alone: bool = False) -> dict[str, list[Path]]:
    """Return {train, test, unlabelled: the files of each}; a part is one file, or all shards of one table.

    They lie in the folder, or in one folder in it, as the Hugging Face hub has them (data/train-00000-of-00001.parquet,
    plain_text/train-00000-of-00001.parquet).
    Raises InputError where a part is not one table, or there is no train table; a table of unlabelled texts will do
    where `unlabelled_alone`.
    """
    entries = sorted(folder.iterdir())
    if not entries:
        raise problem(folder, f"is an empty folder: put train.csv {KINDS} into it")
    tables = _tables(folder, "train") or (_tables(folder, "unlabelled") if unlabelled_alone else {})
    if tables:
        return tables
    names = listing(f.name for f in entries)
    raise problem(folder, f"no train file among {names}: name one train.csv {KINDS}")


def find_test(folder: Path) -> list[Path]:
    """Return the files of the folder's test table; none where it has none. Raises InputError."""
    return _tables(folder, "test").get("test", [])


def _tables(folder: Path, part: str) -> dict[str, list[Path]]:
    """The tables of the folder or, if `part` is not among them, of the one folder in it that has it."""
    own = _tables_in(folder)
    if part in own:
        return own
    below = {path.name: _tables_in(path) for path in sorted(folder.iterdir()) if path.is_dir()}
    found = {name: tables for name, tables in below.items() if part in tables}
    if len(found) > 1:
        raise problem(folder, f"several folders with a {part} table ({listing(found)}): give one of them")
    return next(iter(found.values()), {})


def text_tables(folder: Path) -> list[Path]:
    """Return all tables of a folder in the order of their names, without those for testing. Raises InputError."""
    files = sorted(f for f in folder.iterdir() if f.is_file() and extension(f) and f.name != "labels.json")
    files = [f for f in files if _part(f) != "test"]
    if not files:
        raise problem(folder, f"no table in this folder: put files that end in {', '.join(EXTENSIONS)} into it")
    return files


def _part(path: Path) -> str:
    """The part that a file's name says; "" where it says none."""
    stem = path.name.split(".")[0]
    shard = _SHARD.fullmatch(stem)
    return PARTS.get(shard[1] if shard else stem, "")


def _tables_in(folder: Path) -> dict[str, list[Path]]:
    tables: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()):
        part = _part(path)
        if path.is_file() and extension(path) and part:
            tables.setdefault(part, []).append(path)
    for part, files in tables.items():
        shards = [_SHARD.fullmatch(f.name.split(".")[0]) for f in files]
        if len(files) > 1 and not all(shards):
            raise problem(folder, f"several {part} files ({listing(f.name for f in files)}): keep one")
        totals = {int(shard[3]) for shard in shards if shard}
        if totals and (len(totals) > 1 or len(files) != max(totals)):
            what = f"{len(files)} of {max(totals)} shards of the {part} table ({listing(f.name for f in files)})"
            raise problem(folder, f"{what}: copy all of one version")
    return tables
