"""Other methods for few labels on the draws of `nanonet evidence`: the other columns of its table.

    python benchmarks/baselines.py supervised --data DIR --seeds 0-2 --output benchmarks/results/evidence.jsonl

supervised: the teacher tuned on the labels alone, a logistic regression on its embeddings. propagation: label
propagation over the neighbour graph of the pretrained embeddings of the same unlabelled rows, and a classifier trained
on its labels. setfit (`pip install setfit`): SetFit (arXiv 2209.11055) on the same encoder with its own defaults, but
at most 200 contrastive steps; no unlabelled text. All layers, the same labelled rows, the full test set, float32.
"""

from __future__ import annotations

import argparse
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nanonet.benchmarks.evidence import append, name_of, runs
from nanonet.benchmarks.evidence_tables import BASELINES, read_lines
from nanonet.benchmarks.measure import commit
from nanonet.config.commands import EvidenceConfig
from nanonet.config.settings import data_settings
from nanonet.config.train import TrainConfig
from nanonet.data.prepare import prepare
from nanonet.data.read import load_dataset
from nanonet.data.split import draw_labels
from nanonet.models.load import find_model, load_encoder, load_tokenizer
from nanonet.models.pooling import pooling_of
from nanonet.teacher.encoder import Encoder, tuning_steps
from nanonet.teacher.frozen import apply_rule
from nanonet.teacher.selection import Choice
from nanonet.teacher.soft_labels import INVERSE_REGULARISATION, classify

STEPS = 200  # of SetFit, at most


def setfit(config: TrainConfig) -> dict[str, Any]:
    from datasets import Dataset
    from setfit import SetFitModel, Trainer, TrainingArguments

    dataset = load_dataset(config.data)
    known, test = dataset.train.labels or [], dataset.test
    assert test is not None
    rows = draw_labels(known, config.labels_per_class or 0, config.seed, len(dataset.classes), dataset.classes).labelled
    few = Dataset.from_dict({"text": [dataset.train.texts[i] for i in rows], "label": [known[i] for i in rows]})
    model = SetFitModel.from_pretrained(str(find_model(config.teacher)[0]))
    model.model_body.max_seq_length = config.max_tokens
    began = time.perf_counter()
    arguments = TrainingArguments(max_steps=STEPS, seed=config.seed, save_strategy="no", report_to="none")
    Trainer(model=model, args=arguments, train_dataset=few).train()
    trained = time.perf_counter()
    guess = model.predict(test.texts, batch_size=64, as_numpy=True, show_progress_bar=False)
    return {
        "teacher": round(float((guess == test.labels).mean()), 6),
        "test_rows": len(test.texts),
        "parameters": {"total": sum(p.numel() for p in model.model_body.parameters())},
        "seconds": {"training": round(trained - began, 2), "testing": round(time.perf_counter() - trained, 2)},
        "versions": {name: version(name) for name in ("setfit", "sentence-transformers", "torch")},
    }


def without_extra_library(config: TrainConfig, method: str) -> dict[str, Any]:
    """The methods supervised and propagation."""
    tokenizer, model = load_tokenizer(config.teacher), load_encoder(config.teacher)
    material = prepare(data_settings(config), tokenizer)
    encoder = Encoder(model, pooling_of(*find_model(config.teacher)), tokenizer.pad_token_id, torch.device("cpu"))
    few, classes = int((material.label >= 0).sum()), len(material.classes)
    began = time.perf_counter()
    if method == "supervised":
        rows, label = material.rows[range(few)], material.label[:few]
        encoder = encoder.tuned(rows, label, tuning_steps(config.teacher_steps, few), config.seed)
        head = classify(encoder.embed(rows).double().numpy(), label.numpy(), INVERSE_REGULARISATION)
    else:
        embedding = encoder.embed(material.rows).double().numpy()
        choice = Choice("propagation", INVERSE_REGULARISATION, {"propagation": np.nan})
        head = apply_rule(choice, embedding, material.label.numpy(), classes, config.uniform_prior)[1]
    trained = time.perf_counter()
    guess = head.predict(encoder.embed(material.test).double().numpy())
    return {
        "teacher": round(float((guess == np.array(material.test_label)).mean()), 6),
        "test_rows": len(material.test),
        "parameters": {"total": sum(p.numel() for p in model.parameters())},
        "seconds": {"training": round(trained - began, 2), "testing": round(time.perf_counter() - trained, 2)},
        "versions": {name: version(name) for name in ("torch", "transformers", "scikit-learn")},
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("method", choices=BASELINES)
    parser.add_argument("--data", required=True)
    parser.add_argument("--labels", default="10")
    parser.add_argument("--seeds", default="0-2")
    parser.add_argument("--output", required=True)
    given = parser.parse_args()
    name, path = BASELINES[given.method], Path(given.output)
    for labels, seed in runs(EvidenceConfig(labels=given.labels, seeds=given.seeds)):
        key = {"data": name_of(given.data), "labels_per_class": labels, "seed": seed, "flags": name}
        if any(key.items() <= record.items() for record in read_lines(path)):
            continue
        config = TrainConfig(data=given.data, labels_per_class=labels, seed=seed)
        found = setfit(config) if given.method == "setfit" else without_extra_library(config, given.method)
        append(path, {**key, "linear_probe": None, "best": None, "ensemble": None, **found, "commit": commit()})
        print(*key.values(), found["teacher"], flush=True)
