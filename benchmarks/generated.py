"""Generated against real unlabelled text: the same small CNN student on few labels and 0, 1x, 4x generated texts.

    python benchmarks/generator.py --data DIR --output runs/generator
    python benchmarks/generated.py --data DIR --generator runs/generator --texts 4000 --seeds 0
    python benchmarks/generated.py --table

The student trains on the labelled rows of the draw and no other rows of the train table: the other texts come from
`nanonet generate`, or (real) from that table. Every run is one `nanonet train` and one line of
benchmarks/results/generated.jsonl; a line that stands there already is not measured again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np

from nanonet.benchmarks.evidence import append, measure, name_of
from nanonet.benchmarks.evidence_tables import mean_and_deviation, read_lines
from nanonet.benchmarks.tables import ROOT
from nanonet.data.read import load_dataset
from nanonet.data.split import draw_labels

LINES = ROOT / "benchmarks" / "results" / "generated.jsonl"
# a student of 1.1M parameters on a vocabulary of 30,522
STUDENT = "--student cnn --embedding-width 22 --students 1 --steps 800 --learning-rate 4e-3 --max-unlabelled 0"
KINDS = ("0", "1x generated", "4x generated", "real")


def write_rows(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def prepare(
    place: Path, data: str, labels: int, seed: int, texts: int, generator: str, kinds: list[str]
) -> dict[str, list[str]]:
    """The draw as a data folder in `place` and the unlabelled files of `kinds` beside it: the flags of every kind."""
    dataset = load_dataset(data)
    train, known = dataset.train, dataset.train.labels or []
    draw = draw_labels(known, labels, seed, len(dataset.classes), dataset.classes)
    folder = place / Path(data).name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "labels.json").write_text(json.dumps(dataset.classes))
    test = dataset.test
    for name, table, rows in (("train", train, draw.labelled), ("test", test, range(len(test.texts) if test else 0))):
        if table is not None:
            found = [{"text": table.texts[i], "label": (table.labels or [])[i]} for i in rows]
            write_rows(folder / f"{name}.jsonl", found)
    real = np.random.default_rng([seed, 1]).permutation(draw.unlabelled)[:texts]
    write_rows(place / "real.jsonl", [{"text": train.texts[i]} for i in real])
    command = [sys.executable, "-m", "nanonet", "generate", "--model", generator, "--labelled", str(folder)]
    command += ["--output", str(place / "4x.jsonl"), "--count", str(4 * texts), "--seed", str(seed)]
    if any("generated" in kind for kind in kinds):
        if not (place / "4x.jsonl").exists():
            subprocess.run([*command, "--tuning", "full", "--sample-rows", "128"], check=True)
        written = (place / "4x.jsonl").read_text().splitlines()
        (place / "1x.jsonl").write_text("\n".join(written[:texts]) + "\n")
    files = {"1x generated": "1x", "4x generated": "4x", "real": "real"}
    return {kind: ["--unlabelled", str(place / f"{files[kind]}.jsonl")] if kind in files else [] for kind in KINDS}


def table() -> str:
    """Markdown: one row for each kind and count of texts, over its seeds."""
    groups = defaultdict(list)
    for record in read_lines(LINES):
        groups[record["texts"], record["kind"]].append(record)
    rows = ["| unlabelled texts | draws | embeddings + LR | teacher | student |", "|---|---|---|---|---|"]
    for texts, kind in sorted(groups, key=lambda key: (key[0], KINDS.index(key[1]))):
        group = groups[texts, kind]
        columns = " | ".join(
            mean_and_deviation([r[name] for r in group]) for name in ("linear_probe", "teacher", "best")
        )
        said = kind if kind == "0" else f"{kind}, {texts * (4 if kind.startswith('4x') else 1):,}"
        rows.append(f"| {said} | {len(group)} | {columns} |")
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="what `nanonet train --data` takes")
    parser.add_argument("--generator", default="gpt2", help="what `nanonet generate --model` takes (default: gpt2)")
    parser.add_argument("--labels", default=10, type=int, help="labels a class (default: 10)")
    parser.add_argument("--texts", default=4000, type=int, help="texts that are called 1x (default: 4000)")
    parser.add_argument("--seeds", default="0", help="a range such as 0-2, or one seed (default: 0)")
    parser.add_argument("--kinds", default=",".join(KINDS), help="of the runs, separated by commas (default: all)")
    parser.add_argument("--place", default=Path("runs/generated"), type=Path, help="folder of the texts")
    parser.add_argument("--table", action="store_true", help="print the table of the lines measured so far")
    parser.add_argument("flags", nargs="*", help="further flags of nanonet train, after --")
    arguments = parser.parse_args()
    first, _, last = arguments.seeds.partition("-")
    done = {(r["data"], r["seed"], r["texts"], r["kind"], r["flags"]) for r in read_lines(LINES)}
    for seed in range(int(first), int(last or first) + 1) if arguments.data else ():
        kinds = [
            kind
            for kind in arguments.kinds.split(",")
            if (name_of(arguments.data), seed, arguments.texts, kind, " ".join(arguments.flags)) not in done
        ]
        if not kinds:
            continue
        # not deleted, so that an interrupted command goes on with the same texts
        place = arguments.place / f"{Path(arguments.data).name}-{arguments.labels}-{seed}-{arguments.texts}"
        flags = prepare(place, arguments.data, arguments.labels, seed, arguments.texts, arguments.generator, kinds)
        for kind in kinds:
            folder = str(place / Path(arguments.data).name)
            record = measure(
                folder, seed, ["--labels-per-class", "0", *STUDENT.split(), *flags[kind], *arguments.flags]
            )
            record |= {"labels_per_class": arguments.labels, "texts": arguments.texts, "kind": kind}
            record |= {"flags": " ".join(arguments.flags), "generator": Path(arguments.generator).name}
            LINES.parent.mkdir(exist_ok=True)
            append(LINES, record)
            print(json.dumps(record), flush=True)
    if arguments.table:
        print(table())


if __name__ == "__main__":
    main()
