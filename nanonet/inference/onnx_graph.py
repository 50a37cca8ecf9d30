"""Write a classifier as an ONNX graph in float32."""

from __future__ import annotations

import contextlib
import importlib.util
import inspect
import json
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from nanonet.errors import InputError
from nanonet.inference.onnx_model import INPUTS
from nanonet.models.pairs import model_inputs

NEEDED = ("onnx", "onnxscript", "onnxruntime")


def check_packages() -> None:
    """Raise InputError unless what ONNX needs is installed."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(f"ONNX needs {', '.join(missing)}: pip install nanonet[onnx]; or give --format huggingface")


def input_names(model: PreTrainedModel, tokenizer: Any) -> tuple[str, ...]:
    """The inputs that other programs give this model: token_type_ids too where it tells types apart, as BERT does. A
    model without them assumes zeros: where its tokenizer makes others of one text, they stay out."""
    takes = "token_type_ids" in inspect.signature(model.forward).parameters
    types = getattr(model.config, "type_vocab_size", None) or 0
    made = tokenizer("a", return_token_type_ids=True).get("token_type_ids", [1])
    return INPUTS if takes and types > 1 and not any(made) else INPUTS[:2]


def write_graph(model: PreTrainedModel, path: Path, names: Sequence[str] = INPUTS[:2]) -> None:
    """The file of logits (B,C) from int64 inputs (B,L) of these names, of any B and L.

    Raises:
        InputError: torch cannot write this architecture.
    """

    class Logits(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, *inputs: Tensor) -> Tensor:
            given = dict(zip(names, inputs, strict=True))
            found = model_inputs(self.model.config, given["input_ids"], given["attention_mask"])
            return self.model(**found | given).logits

    # two rows of different length: the exporter takes a size of 1 for a constant
    ids = torch.arange(32).view(2, 16) % 7 + 3
    mask = torch.ones_like(ids)
    mask[1, 9:] = 0
    given = (ids, mask, torch.zeros_like(ids))[: len(names)]
    axes = {0: "batch", 1: "length"}
    try:
        with without_warnings():
            # eval() on the wrapper too: the exporter restores the wrapper's mode, which includes the model's dropout
            torch.onnx.export(
                Logits().eval(),
                given,
                str(path),
                dynamo=True,
                dynamic_shapes={"inputs": (axes,) * len(names)},
                external_data=False,
                input_names=list(names),
                output_names=["logits"],
                verbose=False,
            )
    except Exception as error:  # the exporter raises many types, with messages of pages
        kind = type(model).__name__
        why = f"{type(error).__name__}: {(str(error).strip() or '?').splitlines()[0]:.100}"
        raise InputError(f"--model: torch cannot write {kind} as ONNX ({why}); give --format huggingface") from error


def write_properties(path: Path, properties: Mapping[str, Any]) -> None:
    """Set the file's metadata, each value as JSON."""
    import onnx

    graph = onnx.load(path)
    onnx.helper.set_model_props(graph, {name: json.dumps(value) for name, value in properties.items()})
    onnx.save(graph, path)


@contextlib.contextmanager
def without_warnings() -> Iterator[None]:
    """Without the exporters' warnings: their output is compared with the model."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
