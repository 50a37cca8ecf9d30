"""python optimum_client.py ROOT REQUEST.json ANSWER.json: as node.js, by Optimum; it needs transformers 4."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from optimum.onnxruntime import ORTModelForSequenceClassification
from transformers import AutoTokenizer, PretrainedConfig, PreTrainedTokenizerFast, pipeline

FILES = {"fp32": "model.onnx", "q8": "model_quantized.onnx"}


def classify(folder: str, texts: list[str], own: bool) -> dict[str, Any]:
    found = {}
    for dtype, file in FILES.items():
        options = {"config": PretrainedConfig.from_pretrained(folder)} if own else {}
        model = ORTModelForSequenceClassification.from_pretrained(folder, subfolder="onnx", file_name=file, **options)
        tokenizer = (PreTrainedTokenizerFast if own else AutoTokenizer).from_pretrained(folder)
        run = pipeline("text-classification", model=model, tokenizer=tokenizer)
        for name, rows in ((dtype, 1), (f"{dtype} batch", len(texts))):
            answers = run(texts, top_k=None, truncation=True, batch_size=rows)
            found[name] = [{row["label"]: row["score"] for row in scores} for scores in answers]
    return found


def main(root: str, request: str, answer: str) -> None:
    wanted = json.loads(Path(request).read_text(encoding="utf-8"))
    found = {name: classify(f"{root}/{name}", wanted["texts"], name in wanted["own"]) for name in wanted["names"]}
    Path(answer).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
