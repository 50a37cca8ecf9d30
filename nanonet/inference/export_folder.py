"""The files of an exported folder, in the layout of Optimum and transformers.js; its card is written by card.py.

Tokenizer and configuration are written so that older versions of transformers and JavaScript read them the same.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from nanonet.errors import InputError
from nanonet.files import write
from nanonet.inference.classifier import Classifier, most_tokens
from nanonet.inference.onnx_graph import input_names, write_graph, write_properties
from nanonet.inference.onnx_int8 import write_quantized
from nanonet.inference.onnx_model import EXPORTED, FLOAT, QUANTIZED
from nanonet.versions import versions

TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


def file_names(folder: Path) -> set[str]:
    """The files of an export, relative to it; those of the weights as `folder` has them."""
    weights = {path.name for path in folder.glob("*.safetensors*")}
    return {"config.json", "README.md", *TOKENIZER, FLOAT, QUANTIZED, *weights}


def write_files(classifier: Classifier, folder: Path) -> None:
    """Write the folder, which is not there yet.

    Raises:
        InputError: a tokenizer that has no tokenizer.json, or an architecture that ONNX cannot represent.
    """
    (folder / FLOAT).parent.mkdir(parents=True)
    for path in classifier.folder.glob("*.safetensors*"):
        shutil.copyfile(path, folder / path.name)
    names = input_names(classifier.model, classifier.tokenizer)
    _write_config(classifier, folder)
    _write_tokenizer(classifier, folder, names)
    write_graph(classifier.model, folder / FLOAT, names)
    write_quantized(folder / FLOAT, folder / QUANTIZED)
    for name in (FLOAT, QUANTIZED):
        write_properties(folder / name, {"labels": classifier.classes, "positions": most_tokens(classifier.model)})


def _write_config(classifier: Classifier, folder: Path) -> None:
    """The model's own config.json, with the class names, and the mark that the folder is an export."""
    config = json.loads((classifier.folder / "config.json").read_text(encoding="utf-8"))
    config["id2label"] = dict(enumerate(classifier.classes))
    config["label2id"] = {name: i for i, name in enumerate(classifier.classes)}
    config[EXPORTED] = versions()["nanonet"]
    _write_json(folder / "config.json", config)


def _write_tokenizer(classifier: Classifier, folder: Path, names: tuple[str, ...]) -> None:
    """The tokenizer as the `tokenizers` library has it, under the class name that all versions know. It cuts texts
    where nanonet does, and makes the inputs of the ONNX files, no others."""
    tokenizer = classifier.tokenizer
    if not tokenizer.is_fast:
        raise InputError("--model: its tokenizer has no form as tokenizer.json; give --format huggingface")
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    backend |= {"truncation": None, "padding": None}  # of the last call
    special = {name: token for name, token in tokenizer.special_tokens_map.items() if isinstance(token, str)}
    settings: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": classifier.max_tokens,
        "model_input_names": list(names),
        "padding_side": "right",
        "truncation_side": tokenizer.truncation_side,
        **special,
    }
    for name, content in zip(TOKENIZER, (backend, settings, special), strict=True):
        _write_json(folder / name, content)


def _write_json(path: Path, content: Any) -> None:
    write(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
