"""Accuracy against speed and size: the students and teachers of some runs, measured beside each other.

    python benchmarks/students.py RUN...    # measures the best student of each run, and its kept teacher
    python benchmarks/students.py           # draws the plot and table of docs/explanation/students.md from the lines

A run is the folder of a `nanonet train --keep-teacher` on a data set with a test table. All models of one call run in
turn on the same texts, the tokenisation included, on one thread, batched as `predict` does.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections import defaultdict
from pathlib import Path

import matplotlib
import torch
from matplotlib.figure import Figure

import nanonet
from nanonet.benchmarks.tables import RESULTS, ROOT, markdown, put
from nanonet.data.read import load_dataset
from nanonet.inference.classifier import Classifier

LINES, PAGE = RESULTS / "students.jsonl", ROOT / "docs" / "explanation" / "students.md"
PLOT = ROOT / "docs" / "img" / "students.svg"
TEXTS, ROUNDS, SECONDS = 512, 3, 1.0
TEACHER = "teacher, 6 layers"
KINDS = {"cnn": "convolutional", "static": "static"}
MARKERS = "osD^vPX"


def kind(config: dict) -> str:
    """What a run's students are, in words."""
    layers = f"{config['student_layers']} layers"
    return KINDS.get(config["student"], layers if config["tuning"] == "full" else f"{layers}, {config['tuning']}")


def models(folder: Path) -> dict[str, tuple[Classifier, dict]]:
    """{name: (model, line without its speed)} of a run's best student and of the teacher that it kept."""
    report = json.loads((folder / "report.json").read_text())
    config, best = report["config"], report["students"][report["best"]]
    key = {"data": report["data"]["name"], "labels_per_class": config["labels_per_class"], "seed": config["seed"]}
    paths = {kind(config): ("best", best), TEACHER: ("teacher-classifier", report["teacher"])}
    found = {}
    for name, (place, scores) in paths.items():
        weights = folder / place / "model.safetensors"
        if weights.is_file():
            line = key | {"model": name, "accuracy": scores["accuracy"], "megabytes": weights.stat().st_size / 1e6}
            found[f"{sorted(key.items())} {name}"] = nanonet.load(folder / place), line
    return found


def rows_per_s(model: Classifier, texts: list[str]) -> float:
    """Texts a second, in repetitions of `texts` for SECONDS."""
    began, done = time.perf_counter(), 0
    while time.perf_counter() - began < SECONDS or not done:
        model.predict_proba(texts)
        done += len(texts)
    return done / (time.perf_counter() - began)


def measure(folders: list[Path]) -> None:
    """Measure in turn, ROUNDS times; the fastest counts. Replaces the lines of the same models."""
    torch.set_num_threads(1)
    found = {name: one for folder in folders for name, one in models(folder).items()}
    data = json.loads((folders[0] / "report.json").read_text())["config"]["data"]
    test = load_dataset(data).test
    if test is None:
        sys.exit(f"{folders[0]}: {data} has no test table, whose texts are measured on")
    texts = test.texts[:TEXTS]
    speeds: dict[str, list[float]] = defaultdict(list)
    for _ in range(ROUNDS):
        for name, (model, _) in found.items():
            speeds[name].append(rows_per_s(model, texts))
    lines = [line | {"rows_per_s": round(max(speeds[name]), 1)} for name, (_, line) in found.items()]
    new = {identity(line) for line in lines}
    every = [*(line for line in read() if identity(line) not in new), *lines]
    LINES.write_text("".join(json.dumps(line) + "\n" for line in every))


def identity(line: dict) -> tuple:
    return line["data"], line["labels_per_class"], line["seed"], line["model"]


def read() -> list[dict]:
    return [json.loads(line) for line in LINES.read_text().splitlines()] if LINES.exists() else []


def means() -> dict[tuple[str, str], dict[str, float]]:
    """{(data set, model): means over the draws}"""
    groups = defaultdict(list)
    for line in read():
        groups[f"{line['data']}, {line['labels_per_class']} labels a class", line["model"]].append(line)
    names = ("accuracy", "megabytes", "rows_per_s")
    return {
        key: {name: statistics.mean(line[name] for line in group) for name in names} | {"draws": len(group)}
        for key, group in groups.items()
    }


def table(found: dict[tuple[str, str], dict[str, float]]) -> str:
    rows = [
        [data, model, str(m["draws"]), f"{100 * m['accuracy']:.1f}", f"{m['rows_per_s']:,.0f}", f"{m['megabytes']:.1f}"]
        for (data, model), m in sorted(found.items(), key=lambda item: (item[0][0], item[1]["rows_per_s"]))
    ]
    return markdown(["data", "model", "draws", "accuracy [%]", "rows/s, one core", "MB, float32"], rows)


def draw(found: dict[tuple[str, str], dict[str, float]]) -> None:
    """Accuracy against rows/s, a panel for each data set; the area of a mark grows with the megabytes."""
    names, kinds = sorted({data for data, _ in found}), sorted({model for _, model in found})
    with matplotlib.rc_context({"svg.hashsalt": "nanonet", "svg.fonttype": "none", "font.size": 9}):
        figure = Figure(figsize=(4.2 * len(names), 3.4), layout="constrained")
        for axis, data in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
            for marker, model in zip(MARKERS, kinds, strict=False):
                if m := found.get((data, model)):
                    size = 12 + 3 * m["megabytes"]
                    axis.scatter(m["rows_per_s"], 100 * m["accuracy"], s=size, marker=marker, alpha=0.75, label=model)
                    axis.annotate(f"{m['megabytes']:.0f} MB", (m["rows_per_s"], 100 * m["accuracy"]), fontsize=7)
            axis.set(xscale="log", title=data, xlabel="rows/s on one core, tokenisation included")
            axis.grid(alpha=0.25)
        figure.axes[0].set_ylabel("accuracy [%]")
        figure.axes[0].legend(fontsize=8, markerscale=0.6)
        figure.savefig(PLOT, format="svg", metadata={"Date": None})


if __name__ == "__main__":
    if sys.argv[1:]:
        measure([Path(name) for name in sys.argv[1:]])
    results = means()
    put(PAGE, {"students": table(results)})
    draw(results)
