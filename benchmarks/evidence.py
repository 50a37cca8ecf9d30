"""The main job over label draws, and the table of its results.

    python benchmarks/evidence.py --data ../shared/data/ag_news --labels 10 --seeds 0-4
    python benchmarks/evidence.py --table                    # writes README.md and docs/results.md anew

Each run is one `nanonet train` with the default settings and appends one line to benchmarks/results/evidence.jsonl;
a run that stands there already (same data, labels, seed and flags) is skipped, so an interrupted command goes on.
Flags after `--` go to `nanonet train` and name the variant.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parents[1]
LINES = ROOT / "benchmarks" / "results" / "evidence.jsonl"
BEGIN, END = "<!-- results: python benchmarks/evidence.py --table -->", "<!-- end of results -->"


def key(record: dict) -> tuple:
    return record["data"], record["labels_per_class"], record["seed"], record["flags"]


def records() -> list[dict]:
    return [json.loads(line) for line in LINES.read_text().splitlines()] if LINES.exists() else []


def measure(data: str, labels: int, seed: int, flags: list[str]) -> dict:
    """One `nanonet train`, in a folder that is deleted again; what its report says."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "run"
        command = [sys.executable, "-m", "nanonet", "train", "--data", data, "--labels-per-class", str(labels)]
        subprocess.run([*command, "--seed", str(seed), "--output", str(output), *flags], check=True)
        report = json.loads((output / "report.json").read_text())
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout
    return {
        "data": Path(data).name,
        "labels_per_class": labels,
        "seed": seed,
        "flags": " ".join(flags),
        "floor": report.get("floor", {}).get("accuracy"),
        "teacher": report["teacher"]["accuracy"],
        "rule": report["teacher"]["targets"],
        "students": [student["accuracy"] for student in report["students"]],
        "best": report["students"][report["best"]]["accuracy"],
        "ensemble": report["ensemble"]["accuracy"],
        "test_rows": report["data"]["test"],
        "parameters": report["students"][0]["parameters"],
        "seconds": report["seconds"],
        "versions": report["versions"],
        "commit": commit.strip(),
    }


def spread(values: list[float]) -> str:
    """mean +- sample standard deviation, in percent"""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{100 * statistics.mean(values):.1f} ± {100 * deviation:.1f}"


def table() -> str:
    """Markdown: one row for each data set, count of labels and variant, over its seeds."""
    groups = defaultdict(list)
    for record in records():
        groups[record["data"], record["labels_per_class"], record["flags"]].append(record)
    rows = [
        "| data | labels a class | draws | embeddings + LR | teacher | best student | ensemble | flags |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for (data, labels, flags), group in sorted(groups.items()):
        floor = [r["floor"] for r in group if r["floor"] is not None]
        columns = [
            spread(floor) if floor else "",
            *(spread([r[n] for r in group]) for n in ("teacher", "best", "ensemble")),
        ]
        rows.append(f"| {data} | {labels} | {len(group)} | {' | '.join(columns)} | {f'`{flags}`' if flags else ''} |")
    return "\n".join(rows)


def put(path: Path, text: str) -> None:
    """Replace what stands between the two marks in the file."""
    before, _, rest = path.read_text().partition(BEGIN)
    _, mark, after = rest.partition(END)
    if not mark:
        sys.exit(f"{path}: expected the lines {BEGIN!r} and {END!r}, to write the table between them")
    path.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="what `nanonet train --data` takes")
    parser.add_argument("--labels", default="10", help="labels a class, separated by commas (default: 10)")
    parser.add_argument("--seeds", default="0-4", help="a range such as 0-4, or one seed (default: 0-4)")
    parser.add_argument("--table", action="store_true", help="write the tables from the lines measured so far")
    parser.add_argument("flags", nargs="*", help="further flags of nanonet train, after --")
    arguments = parser.parse_args()
    if arguments.data:
        first, _, last = arguments.seeds.partition("-")
        done = {key(record) for record in records()}
        for labels in map(int, arguments.labels.split(",")):
            for seed in range(int(first), int(last or first) + 1):
                if (Path(arguments.data).name, labels, seed, " ".join(arguments.flags)) in done:
                    continue
                record = measure(arguments.data, labels, seed, arguments.flags)
                LINES.parent.mkdir(exist_ok=True)
                with LINES.open("a") as file:
                    file.write(json.dumps(record) + "\n")
                print(json.dumps(record), flush=True)
    if arguments.table or not arguments.data:
        for path in (ROOT / "README.md", ROOT / "docs" / "results.md"):
            put(path, table())


if __name__ == "__main__":
    main()
