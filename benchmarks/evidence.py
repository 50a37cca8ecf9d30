"""The main job over label draws, and the tables of its results.

    nanonet evidence --data DIR --labels 10,30 --seeds 0-4 --output benchmarks/results/evidence.jsonl
    python benchmarks/evidence.py      # writes the tables of README.md (defaults) and docs/results.md from these lines

Each run is one `nanonet train` and appends one line; a run that stands there already (same data, labels, seed and
flags) is skipped, so an interrupted command goes on. `--flags` go to `nanonet train` and name the variant.
"""

from __future__ import annotations

import json
import shlex
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from nanonet.benchmarks.measure import commit
from nanonet.benchmarks.tables import ROOT, markdown, put
from nanonet.commands import EvidenceConfig
from nanonet.config import InputError, TrainConfig
from nanonet.flags import parse

LINES = ROOT / "benchmarks" / "results" / "evidence.jsonl"
DEFAULTS = ("", "--precision bfloat16")  # the variants in the table of README.md
GOLD = "gold labels"  # a variant: the ceiling, trained on the labels of the rows that the others see without
GOLD_FLAGS = "--labels-per-class 0 --labelled-batch 48 --teacher-weight 0 --peers-weight 0"
GOLD_FLAGS += " --teacher-steps 0 --targets classifier"  # the quickest: nobody listens to this teacher


def read_lines(path: Path) -> list[dict]:
    """The records of a file; [] where there is none.

    Raises:
        InputError: a line that is no record.
    """
    records = []
    for number, line in enumerate(path.read_text().splitlines() if path.exists() else [], 1):
        try:
            record = json.loads(line)
            record["data"], record["labels_per_class"], record["seed"], record["flags"]  # what a run is known by
        except (ValueError, KeyError, TypeError):
            what = "no record of a run (cut off?); delete it, or give another file"
            raise InputError(f"--output {path}, line {number}: {what}") from None
        records.append(record)
    return records


def append(path: Path, record: dict) -> None:
    """Add a line, on a line of its own also where the last one was left without its end."""
    with path.open("a+") as file:
        file.seek(max(0, file.seek(0, 2) - 1))
        whole = file.read() in ("", "\n")
        file.write("" if whole else "\n")
        file.write(json.dumps(record) + "\n")


def name_of(data: str) -> str:
    """What a data set is called: the last part of its folder, file or id."""
    path = Path(data).expanduser()
    return path.resolve().name if path.exists() else path.name


def measure(data: str, seed: int, flags: list[str]) -> dict:
    """One `nanonet train`, in a folder that is deleted again; what its report says."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "run"
        command = [sys.executable, "-m", "nanonet", "train", "--data", data, "--seed", str(seed)]
        if subprocess.run([*command, "--output", str(output), *flags]).returncode:
            raise InputError(f"nanonet train {' '.join(flags)}: failed, as it says above; the lines so far are kept")
        report = json.loads((output / "report.json").read_text())
    return {
        "data": name_of(data),
        "seed": seed,
        "floor": report["floor"]["accuracy"] if report["floor"] else None,
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
    """What `nanonet train` makes of the flags.

    Raises:
        InputError: it makes nothing of them, or they are for this command to set.
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
    from nanonet.data.read import load_dataset
    from nanonet.data.split import draw_labels
    from nanonet.material import HELD_ROWS

    dataset = load_dataset(data, text_column=given.text_column, label_column=given.label_column)
    known = dataset.train.labels or []
    draw = draw_labels(known, labels, seed, len(dataset.classes), dataset.classes)
    order = np.random.default_rng([seed, 1]).permutation(len(draw.unlabelled))[: given.max_unlabelled or None]
    order = order[min(HELD_ROWS, len(order) // 10) :]
    folder = place / name_of(data)
    folder.mkdir(parents=True)
    tables = {"train": (dataset.train, [*draw.labelled, *(draw.unlabelled[i] for i in order)])}
    if dataset.test:
        tables["test"] = (dataset.test, list(range(len(dataset.test.texts))))
    for name, (table, chosen) in tables.items():
        columns = given.text_column, given.label_column
        pairs = ((table.texts[i], (table.labels or [])[i]) for i in chosen)
        lines = [json.dumps(dict(zip(columns, pair, strict=True))) for pair in pairs]
        (folder / f"{name}.jsonl").write_text("".join(line + "\n" for line in lines))
    (folder / "labels.json").write_text(json.dumps(dataset.classes))
    return str(folder)


def runs(config: EvidenceConfig) -> Iterator[tuple[int, int]]:
    """(labels a class, seed) of every run.

    Raises:
        InputError: numbers that cannot be read.
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
    if path.is_dir() or not path.parent.is_dir():
        raise InputError(f"--output {path}: give a file in a folder that exists")
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


def spread(values: list[float]) -> str:
    """mean +- sample standard deviation, in percent; "" of nothing"""
    if not values:
        return ""
    deviation = f" ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * statistics.mean(values):.1f}{deviation}"


def groups(records: list[dict]) -> list[tuple[tuple[str, int, str], list[dict]]]:
    """The draws of each data set, count of labels and variant."""
    found = defaultdict(list)
    for record in records:
        found[record["data"], record["labels_per_class"], record["flags"]].append(record)
    return sorted(found.items())


def table(records: list[dict]) -> str:
    """Markdown: accuracies, one row for each group of draws."""
    rows = []
    for (data, labels, flags), group in groups(records):
        shown = ("best", "ensemble") if flags.startswith(GOLD) else ("floor", "teacher", "best", "ensemble")
        cells = {name: spread([r[name] for r in group if r[name] is not None]) for name in shown}
        columns = [cells.get(name, "") for name in ("floor", "teacher", "best", "ensemble")]
        rows.append([data, str(labels), str(len(group)), *columns, f"`{flags}`" if flags else ""])
    header = ["data", "labels a class", "draws", "embeddings + LR", "teacher", "best student", "ensemble", "flags"]
    return markdown(header, rows)


def costs(records: list[dict]) -> str:
    """Markdown: a student's parameters, and the times of each group's quickest draw on two threads."""
    rows = []
    for (data, labels, flags), group in groups(records):
        # a teacher from the cache took no time
        stages = {"embedding the texts", "training the students"}
        timed = [r for r in group if stages <= r["seconds"].keys() and r["versions"].get("threads") == 2]
        if not timed:
            continue
        quickest = min(timed, key=lambda r: sum(r["seconds"].values()))
        seconds, parameters = quickest["seconds"], quickest["parameters"]
        students, testing = seconds["training the students"], seconds["testing the students"]
        before = sum(list(seconds.values())[: list(seconds).index("training the students")])
        size = [f"{parameters[name] / 1e6:.1f}M" for name in ("total", "trainable")]
        speed = len(quickest["students"]) * quickest["test_rows"] / testing
        cells = [f"{before:.0f}", f"{students:.0f}", f"{speed:.0f}", f"`{flags}`" if flags else ""]
        rows.append([data, str(labels), *size, *cells])
    header = [
        "data",
        "labels a class",
        "parameters",
        "trained",
        "teacher [s]",
        "students [s]",
        "rows/s tested",
        "flags",
    ]
    return markdown(header, rows)


if __name__ == "__main__":
    records = read_lines(LINES)
    defaults = [r for r in records if r["flags"] in DEFAULTS]
    put(ROOT / "README.md", {"results": table(defaults)})
    put(ROOT / "docs" / "results.md", {"results": table(records), "costs": costs(defaults)})
