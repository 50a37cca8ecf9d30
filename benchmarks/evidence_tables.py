"""The tables of the lines that `nanonet evidence` wrote."""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from nanonet.benchmarks.tables import ROOT, markdown, put
from nanonet.errors import InputError

LINES = ROOT / "benchmarks" / "results" / "evidence.jsonl"
DEFAULTS = ("", "--precision bfloat16")  # the variants that are compared with the others
BASELINES = {  # variants, by the methods of baselines.py
    "propagation": "label propagation",
    "setfit": "SetFit, at most 200 steps",
    "supervised": "supervised teacher",
}
# the unlabelled rows have weight 0 here, so a few are enough
ALONE = "--students 1 --teacher-weight 0 --peers-weight 0 --teacher-steps 0 --targets classifier"
ALONE += " --max-unlabelled 500 --unlabelled-batch 1"
README_COLUMNS = ("data", "embeddings + LR", "label propagation", "SetFit", "supervised teacher", "best student")
GOLD = "gold labels"  # a variant: an upper bound, trained on the labels of the rows that the others see unlabelled


def read_lines(path: Path) -> list[dict]:
    """The records of a file; [] where there is none.

    Raises:
        InputError: a line that is no record.
    """
    records = []
    for number, line in enumerate(path.read_text(errors="replace").splitlines() if path.exists() else [], 1):
        try:
            record = json.loads(line)
            record["data"], record["labels_per_class"], record["seed"], record["flags"]  # the key of a run
        except (ValueError, KeyError, TypeError):
            what = "no record of a run (cut off?); delete it, or give another file"
            raise InputError(f"--output {path}, line {number}: {what}") from None
        if "floor" in record:  # the name that older versions wrote
            record["linear_probe"] = record.pop("floor")
        records.append(record)
    return records


def mean_and_deviation(values: list[float]) -> str:
    """mean +- sample standard deviation, in percent; "" without values"""
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
        shown = ("best", "ensemble") if flags.startswith(GOLD) else ("linear_probe", "teacher", "best", "ensemble")
        cells = {name: mean_and_deviation([r[name] for r in group if r[name] is not None]) for name in shown}
        columns = [cells.get(name, "") for name in ("linear_probe", "teacher", "best", "ensemble")]
        rows.append([data, str(labels), str(len(group)), *columns, f"`{flags}`" if flags else ""])
    header = ["data", "labels a class", "draws", "embeddings + LR", "teacher", "best student", "ensemble", "flags"]
    return markdown(header, rows)


def comparison(records: list[dict]) -> str:
    """Markdown: accuracy of each method, over the draws that all methods of a row have."""
    found = {key: {r["seed"]: r for r in group} for key, group in groups(records)}
    rows = []
    for data, labels in sorted({key[:2] for key in found if key[2] in DEFAULTS}):
        variants = {flags: draws for (*row, flags), draws in found.items() if row == [data, labels]}
        default = max((variants.get(flags, {}) for flags in DEFAULTS), key=len)
        cells = [
            (default, "linear_probe"),
            *((variants.get(name, {}), "teacher") for name in BASELINES.values()),
            (variants.get(ALONE, {}), "best"),
            *((default, name) for name in ("teacher", "best", "ensemble")),
        ]
        seeds = sorted(set.intersection(*(set(draws) for draws, _ in cells if draws)))
        columns = [mean_and_deviation([draws[seed][name] for seed in seeds]) if draws else "" for draws, name in cells]
        rows.append([data, str(labels), str(len(seeds)), *columns])
    others = [name.split(",")[0] for name in BASELINES.values()]
    header = ["data", "labels a class", "draws", "embeddings + LR", *others, "student alone"]
    return markdown([*header, "nanonet: teacher", "best student", "ensemble"], rows)


def costs(records: list[dict]) -> str:
    """Markdown: a student's parameters, and the times of each group's fastest draw on two threads."""
    rows = []
    for (data, labels, flags), group in groups(records):
        # a teacher from the cache took no time
        stages = {"embedding the texts", "training the students"}
        timed = [r for r in group if stages <= r["seconds"].keys() and r["versions"].get("threads") == 2]
        if not timed:
            continue
        fastest = min(timed, key=lambda r: sum(r["seconds"].values()))
        seconds, parameters = fastest["seconds"], fastest["parameters"]
        students, testing = seconds["training the students"], seconds["testing the students"]
        before = sum(list(seconds.values())[: list(seconds).index("training the students")])
        size = [f"{parameters[name] / 1e6:.1f}M" for name in ("total", "trainable")]
        speed = len(fastest["students"]) * fastest["test_rows"] / testing
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


def select(table: str, names: Sequence[str]) -> str:
    """The columns `names` of a Markdown table."""
    header, _, *rows = [line[2:-2].split(" | ") for line in table.splitlines()]
    return markdown(list(names), [[row[header.index(name)] for name in names] for row in rows])


def readme_table(records: list[dict]) -> str:
    """The comparison at 10 labels a class, without the columns that need a word of explanation."""
    return select(comparison([r for r in records if r["labels_per_class"] == 10]), README_COLUMNS)


def write() -> None:
    """Put the committed lines into docs/explanation/evidence.md (the comparison), README.md (its rows of 10 labels) and
    docs/lab/results.md (everything)."""
    records = read_lines(LINES)
    defaults, compared = [r for r in records if r["flags"] in DEFAULTS], comparison(records)
    put(ROOT / "README.md", {"results": readme_table(records)})
    put(ROOT / "docs" / "explanation" / "evidence.md", {"comparison": compared})
    tables = {"comparison": compared, "results": table(records), "costs": costs(defaults)}
    put(ROOT / "docs" / "lab" / "results.md", tables)
