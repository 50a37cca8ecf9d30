"""SetFit (arXiv 2209.11055) on the draws of `nanonet evidence`: the few-shot classifier that practitioners reach for.

    pip install setfit
    python benchmarks/baseline_setfit.py --data DIR --seeds 0-2 --output benchmarks/results/evidence.jsonl

The same encoder (all its layers), the same labelled rows, the whole test set; no unlabelled text, which SetFit does not
use. SetFit's own defaults, but for at most `--steps` contrastive steps.
"""

from __future__ import annotations

import argparse
import time
from importlib.metadata import version
from pathlib import Path

from datasets import Dataset
from setfit import SetFitModel, Trainer, TrainingArguments

from nanonet.benchmarks.evidence import append, name_of, runs
from nanonet.benchmarks.evidence_tables import read_lines
from nanonet.benchmarks.measure import commit
from nanonet.cohort.load import find_model
from nanonet.commands import EvidenceConfig
from nanonet.config import TrainConfig
from nanonet.data.read import load_dataset
from nanonet.data.split import draw_labels


def measure(data: str, labels: int, seed: int, steps: int) -> dict:
    dataset = load_dataset(data)
    known, test = dataset.train.labels or [], dataset.test
    if test is None:
        raise SystemExit(f"{data}: no test table; SetFit is scored on one")
    rows = draw_labels(known, labels, seed, len(dataset.classes), dataset.classes).labelled
    few = Dataset.from_dict({"text": [dataset.train.texts[i] for i in rows], "label": [known[i] for i in rows]})
    model = SetFitModel.from_pretrained(str(find_model(TrainConfig.teacher)[0]))
    model.model_body.max_seq_length = TrainConfig.max_tokens
    began = time.perf_counter()
    arguments = TrainingArguments(max_steps=steps, seed=seed, save_strategy="no", report_to="none")
    Trainer(model=model, args=arguments, train_dataset=few).train()
    trained = time.perf_counter()
    guess = model.predict(test.texts, batch_size=64, as_numpy=True, show_progress_bar=False)
    return {
        "data": name_of(data),
        "labels_per_class": labels,
        "seed": seed,
        "floor": None,
        "teacher": round(float((guess == test.labels).mean()), 6),
        "best": None,
        "ensemble": None,
        "test_rows": len(test.texts),
        "parameters": {"total": sum(p.numel() for p in model.model_body.parameters())},
        "seconds": {"training": round(trained - began, 2), "testing": round(time.perf_counter() - trained, 2)},
        "versions": {"setfit": version("setfit"), "sentence-transformers": version("sentence-transformers")},
        "commit": commit(),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--labels", default="10")
    parser.add_argument("--seeds", default="0-2")
    parser.add_argument("--steps", type=int, default=200, help="at most so many contrastive steps")
    parser.add_argument("--output", required=True)
    given = parser.parse_args()
    name, path = f"SetFit, at most {given.steps} steps", Path(given.output)
    for labels, seed in runs(EvidenceConfig(labels=given.labels, seeds=given.seeds)):
        key = (name_of(given.data), labels, seed, name)
        if key not in {(r["data"], r["labels_per_class"], r["seed"], r["flags"]) for r in read_lines(path)}:
            record = {"flags": name, **measure(given.data, labels, seed, given.steps)}
            append(path, record)
            print(record["data"], labels, seed, record["teacher"])
