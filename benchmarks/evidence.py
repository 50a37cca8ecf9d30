"""The main job over label draws, and the tables of its results.

    nanonet evidence --data DIR --labels 10,30 --seeds 0-4 --output benchmarks/results/evidence.jsonl
    python benchmarks/evidence.py      # writes the tables of README.md and docs from these lines

Each run is one `nanonet train` and appends one line; a run that stands there already (same data, labels, seed and
flags) is skipped, so an interrupted command goes on. `--flags` go to `nanonet train` and name the variant.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from nanonet.benchmarks.evidence_tables import GOLD, read_lines, table, write
from nanonet.benchmarks.measure import commit
from nanonet.config.commands import EvidenceConfig
from nanonet.config.parse import parse
from nanonet.config.train import TrainConfig
from nanonet.errors import InputError

GOLD_FLAGS = "--labels-per-class 0 --labelled-batch 48 --teacher-weight 0 --peers-weight 0"
GOLD_FLAGS += " --teacher-steps 0 --targets classifier"  # the fastest teacher, as its term has weight 0


def append(path: Path, record: dict) -> None:
    """Append a line; where the file does not end in a line break, it gets one first."""
    with path.open("a+") as file:
        file.seek(max(0, file.seek(0, 2) - 1))
        complete = file.read() in ("", "\n")
        file.write("" if complete else "\n")
        file.write(json.dumps(record) + "\n")


def name_of(data: str) -> str:
    """The name of a data set: the last part of its folder, file or id."""
    path = Path(data).expanduser()
    return path.resolve().name if path.exists() else path.name


def measure(data: str, seed: int, flags: list[str]) -> dict:
    """One `nanonet train` in a temporary folder; returns the results of its report."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "run"
        command = [sys.executable, "-m", "nanonet", "train", "--data", data, "--seed", str(seed)]
        if subprocess.run([*command, "--output", str(output), *flags]).returncode:
            raise InputError(f"nanonet train {' '.join(flags)}: failed, as it says above; the lines so far are written")
        report = json.loads((output / "report.json").read_text())
    return {
        "data": name_of(data),
        "seed": seed,
        "linear_probe": report["linear_probe"]["accuracy"] if report["linear_probe"] else None,
        "teacher": report["teacher"]["accuracy"],
        "rule": report["teacher"]["targets"],
        "students": [student["accuracy"] for student in report["students"]],
        "best": report["students"][report["best"]]["accuracy"],
        "ensemble": report["ensemble"]["accuracy"],
        "test_rows": report["data"]["test"],
        "parameters": report["students"][0]["parameters"],
        "seconds": report["seconds"],
        "versions": report["versions"],
        "commit": commit(),
    }


def train_config(flags: str) -> TrainConfig:
    """The settings of `nanonet train` with these flags.

    Raises:
        InputError: flags that it does not take, or that this command sets itself.
    """
    try:
        words = shlex.split(flags)
    except ValueError as error:
        raise InputError(f"--flags {flags}: {error}; quote it as a shell wants it") from error
    given, named = parse(TrainConfig, words, "nanonet train", ""), {w.split("=")[0].replace("_", "-") for w in words}
    for name in ("data", "seed", "labels_per_class", "output", "resume", "overwrite", "teacher_cache"):
        flag = f"--{name.replace('_', '-')}"
        if flag in named or getattr(given, name) != getattr(TrainConfig, name):
            raise InputError(f"--flags {flags}: {flag} is set for every run; leave it out there")
    return given


def gold_folder(data: str, labels: int, seed: int, place: Path, given: TrainConfig) -> str:
    """A data folder whose train table holds the rows that a run of this draw trains on, every one with its label."""
    from nanonet.data.prepare import VALIDATION_ROWS
    from nanonet.data.read import load_dataset
    from nanonet.data.split import draw_labels

    dataset = load_dataset(
        data, text_column=given.text_column, label_column=given.label_column, test_fraction=given.test_fraction
    )
    known = dataset.train.labels or []
    draw = draw_labels(known, labels, seed, len(dataset.classes), dataset.classes)
    order = np.random.default_rng([seed, 1]).permutation(len(draw.unlabelled))[: given.max_unlabelled or None]
    order = order[min(VALIDATION_ROWS, len(order) // 10) :]
    folder = place / name_of(data)
    folder.mkdir(parents=True)
    tables = {"train": (dataset.train, [*draw.labelled, *(draw.unlabelled[i] for i in order)])}
    if dataset.test:
        tables["test"] = (dataset.test, list(range(len(dataset.test.texts))))
    for name, (split, chosen) in tables.items():
        columns = given.text_column, given.label_column
        pairs = ((split.texts[i], (split.labels or [])[i]) for i in chosen)
        lines = [json.dumps(dict(zip(columns, pair, strict=True))) for pair in pairs]
        (folder / f"{name}.jsonl").write_text("".join(line + "\n" for line in lines))
    (folder / "labels.json").write_text(json.dumps(dataset.classes))
    return str(folder)


def runs(config: EvidenceConfig) -> Iterator[tuple[int, int]]:
    """(labels a class, seed) of every run.

    Raises:
        InputError: not numbers.
    """
    first, _, last = config.seeds.partition("-")
    try:
        seeds = range(int(first), int(last or first) + 1)
        labels = [int(word) for word in config.labels.split(",")]
    except ValueError:
        seeds, labels = range(0), []
    if not seeds or not labels:
        raise InputError(
            f"--labels {config.labels} --seeds {config.seeds}: give numbers such as 10,30, and a range such as 0-4"
        )
    return ((count, seed) for count in labels for seed in seeds)


def evidence(config: EvidenceConfig) -> None:
    """Make the runs that are missing, then print the table of all lines.

    Raises:
        InputError: bad flags, or a run that failed.
    """
    path = Path(config.output).expanduser()
    if (path.exists() and not path.is_file()) or not path.parent.is_dir():
        raise InputError(f"--output {path}: give a file in a folder that exists")
    if not config.data and (config.gold or config.flags or config.teacher_cache):
        raise InputError("--data is missing: without it the table of the lines is printed, and nothing is run")
    given, flags_given = train_config(config.flags), config.flags.strip()
    for labels, seed in runs(config) if config.data else ():
        variant = " ".join(word for word in (GOLD if config.gold else "", flags_given) if word)
        key = (name_of(config.data), labels, seed, variant)
        if key in {(r["data"], r["labels_per_class"], r["seed"], r["flags"]) for r in read_lines(path)}:
            continue
        flags = ["--teacher-cache", config.teacher_cache] if config.teacher_cache else []
        flags += shlex.split(config.flags)
        with tempfile.TemporaryDirectory() as place:
            if config.gold:
                data = gold_folder(config.data, labels, seed, Path(place), given)
                record = measure(data, seed, [*GOLD_FLAGS.split(), *flags])
            else:
                record = measure(config.data, seed, ["--labels-per-class", str(labels), *flags])
        record = {"labels_per_class": labels, "flags": variant, **record}
        append(path, record)
    print(table(read_lines(path)))


if __name__ == "__main__":
    write()
