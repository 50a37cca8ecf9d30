"""Makes hostile model folders and hostile tables, each by name."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

ROWS = "text,label\n" + "a cat,animals\nthe bread,food\nsome rain,weather\n" * 20
CONFIGS = {
    "layers": {"num_hidden_layers": 10**7},
    "no layers": {"num_hidden_layers": -1},
    "width": {"hidden_size": 10**9},
    "heads": {"num_attention_heads": 0},
    "words": {"vocab_size": 10**12},
    "labels": {"id2label": {str(i): f"c{i}" for i in range(10**5)}},
    "types": {"id2label": 7, "hidden_size": None},
    "code": {"auto_map": {"AutoConfig": "evil.Evil", "AutoModel": "evil.Evil"}, "model_type": "evil"},
}
FILES: dict[str, Callable[[Path], None]] = {
    "truncated": lambda f: f.write_bytes(f.read_bytes()[:-1000]),
    "cut in the header": lambda f: f.write_bytes(f.read_bytes()[:20]),
    "flipped header": lambda f: f.write_bytes(b"\xff" * 8 + f.read_bytes()[8:]),
    "no header": lambda f: f.write_bytes(bytes(8)),
    "empty": lambda f: f.write_bytes(b""),
    "nan": lambda f: save_nan(f),
}


def save_nan(file: Path) -> None:
    tensors = load_file(file)
    for value in tensors.values():
        if value.is_floating_point():
            value.view(-1)[0] = torch.nan
    save_file(tensors, file, {"format": "pt"})


def replace(file: Path, kind: str) -> None:
    file.unlink(missing_ok=True)
    if kind == "fifo":
        os.mkfifo(file)
    else:
        file.symlink_to("/dev/zero" if kind == "zero" else kind)


def shards(folder: Path, name: str) -> None:
    (folder / "model.safetensors").rename(folder / "weights.bin")
    index = {"metadata": {}, "weight_map": {"classifier.weight": name}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def model(good: Path, folder: Path, kind: str) -> Path:
    """A copy of a good model folder, spoilt."""
    shutil.copytree(good, folder)
    config, weights = folder / "config.json", folder / "model.safetensors"
    if kind in CONFIGS:
        config.write_text(json.dumps(json.loads(config.read_text()) | CONFIGS[kind]))
    elif kind in FILES:
        FILES[kind](weights)
    elif kind in ("fifo", "zero"):
        replace(weights, kind)
    elif kind == "config zero":
        replace(config, "zero")
    elif kind == "tokenizer fifo":
        replace(folder / "tokenizer.json", "fifo")
    elif kind == "deep config":
        config.write_text("[" * 100_000)
    else:
        shards(folder, {"bin shard": "weights.bin", "shard outside": "../weights.safetensors"}[kind])
    return folder


MODELS = [
    *CONFIGS,
    *FILES,
    "fifo",
    "zero",
    "config zero",
    "tokenizer fifo",
    "deep config",
    "bin shard",
    "shard outside",
]
TABLES: dict[str, str | bytes] = {
    "an open quote": ROWS + '"' + "cat,food\n" * 300_000,
    "zeros": ROWS.encode() + bytes(3_000_000),
    "not utf-8": ROWS.encode() + b"\xff\xfe\x1b[2J,food\n",
    "a control character for a column": "te\x1b[2Jxt,label\n\x07,a\n",
    "too few columns": ROWS + "cat\n",
    "empty": "",
}


def table(folder: Path, kind: str) -> Path:
    folder.mkdir()
    file = folder / "t.csv"
    if kind in ("fifo", "zero"):
        replace(file, kind)
    else:
        content = TABLES[kind]
        file.write_bytes(content.encode() if isinstance(content, str) else content)
    return file
