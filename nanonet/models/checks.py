"""Checks of a pretrained model: of its files before they are read, of its weights, and of what its forward does.

`what` names the flag and its value; errors begin with it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, cached_file

from nanonet.errors import InputError
from nanonet.files import read_small
from nanonet.models.dummy_inputs import dummy_inputs
from nanonet.models.parts import find_parts

CURE = "give an encoder such as BERT, RoBERTa or ModernBERT"
TOLERANCE = 1e-3  # of the largest hidden state
# more than any model has; far more would fill the memory before a weight is read
LARGEST = {
    "num_hidden_layers": 1_000,
    "num_labels": 100_000,
    "vocab_size": 10_000_000,
    "hidden_size": 100_000,
    "intermediate_size": 1_000_000,
    "max_position_embeddings": 100_000_000,
}


def check_files(source: str, local: bool, what: str) -> None:
    """Refuse special files, a config.json with absurd sizes or class names, and shards that are no files in it.

    Raises:
        InputError: says what is wrong with which file.
    """
    for path in sorted(Path(source).iterdir()) if Path(source).is_dir() else ():
        if path.exists() and not path.is_file() and not path.is_dir():
            raise InputError(f"{what}: {path.name} in it is a pipe, socket or device; get the model again")
    config = _read_json(source, "config.json", local, what)
    for name, most in LARGEST.items():
        value = config.get(name)
        if isinstance(value, int | float) and not value <= most:
            raise InputError(f"{what}: its config.json has {name} {value}; give a model with {most} at most")
    names = config.get("id2label")
    if names is not None and not _is_table_of_names(names):
        raise InputError(f"{what}: transformers cannot load it (id2label in config.json is no table of names); {CURE}")
    shards = _read_json(source, SAFE_WEIGHTS_INDEX_NAME, local, what).get("weight_map", {})
    for shard in set(map(str, shards.values())) if isinstance(shards, dict) else {str(shards)}:
        if Path(shard).name != shard or not shard.endswith(".safetensors"):
            raise InputError(
                f"{what}: {SAFE_WEIGHTS_INDEX_NAME} names {shard!r:.80}, which is no *.safetensors file of the folder;"
                " get the model again"
            )


def _is_table_of_names(names: Any) -> bool:
    return (
        isinstance(names, dict)
        and len(names) <= LARGEST["num_labels"]
        and all(isinstance(name, str | int) and not isinstance(name, bool) for name in names.values())
        and all(str(key).isdecimal() for key in names)
    )


def _read_json(source: str, name: str, local: bool, what: str) -> dict:
    """The object in this file of a model; empty where there is no such file."""
    # a hub that does not answer is reported by from_pretrained
    quiet = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
    path = cached_file(source, name, local_files_only=local, **quiet)
    if path is None:
        return {}
    try:
        found = json.loads(read_small(Path(path)))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{what}: {name} is no JSON object ({type(error).__name__}); get the model again") from error
    if not isinstance(found, dict):
        raise InputError(f"{what}: {name} is no JSON object ({type(found).__name__}); get the model again")
    return found


@torch.no_grad()
def check_finite(model: PreTrainedModel, what: str) -> None:
    """Refuse weights that are NaN or infinite.

    Raises:
        InputError: names the first.
    """
    for name, parameter in model.named_parameters():
        if parameter.numel() and not torch.stack(torch.aminmax(parameter)).isfinite().all():
            raise InputError(f"{what}: {name} has values that are no finite numbers; get the model again")


def check_kind(config: Any, what: str) -> None:
    """Refuse what is no encoder of texts, by its config alone.

    Raises:
        InputError: names its kind.
    """
    parts = [name for name in ("vision_config", "audio_config", "max_2d_position_embeddings") if hasattr(config, name)]
    if parts:
        kind = f"reads more than text ({parts[0]})"
    elif config.model_type in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES:
        kind = "is an encoder with a decoder"
    elif getattr(config, "is_decoder", False):
        kind = "is a decoder"
    elif not isinstance(getattr(config, "vocab_size", None), int):
        kind = "does not read text"
    else:
        return
    raise InputError(f"{what}: {config.model_type} {kind}; {CURE}")


@torch.no_grad()
def check_encoder(teacher: PreTrainedModel, layers: bool) -> None:
    """Refuse a teacher that is no encoder of texts, or whose `layers` have to be found and are not.

    What it is shows in its forward: a hidden state of every token from ids and a mask alone, which depends on the
    tokens to the right and not on the padding.

    Raises:
        InputError: names its kind.
    """
    check_kind(teacher.config, "--teacher")
    name = type(teacher).__name__
    if teacher.main_input_name != "input_ids" or {*_as_tuple(teacher.input_modalities)} != {"text"}:
        raise InputError(f"--teacher: {name} reads more than text; {CURE}")
    ids, mask = dummy_inputs(teacher.config, teacher.device)
    try:
        hidden = teacher(input_ids=ids, attention_mask=mask).last_hidden_state
        shape, why = hidden.shape, ""
    except Exception as error:  # whatever an architecture makes of them
        shape, why = (), f" ({type(error).__name__}: {(str(error).strip() or '?').splitlines()[0]:.100})"
    if shape[:2] != ids.shape:
        raise InputError(f"--teacher: {name} makes no vector of every token from ids and a mask alone{why}; {CURE}")
    if layers:
        find_parts(teacher)
    row, seen = ids[:1], mask[:1]
    # one row alone, with its last token changed, and beside as much padding
    alone = teacher(input_ids=row, attention_mask=seen).last_hidden_state
    changed = torch.cat([row[:, :-1], _another_id(teacher.config, row[0, -1])], 1)
    other = teacher(input_ids=changed, attention_mask=seen).last_hidden_state
    if torch.equal(alone[:, :-1], other[:, :-1]):
        raise InputError(f"--teacher: {name} is a decoder: no token sees what follows it; {CURE}")
    long = torch.cat([row, ids[1:, -1:].expand_as(row)], 1), torch.cat([seen, torch.zeros_like(seen)], 1)
    padded = teacher(input_ids=long[0], attention_mask=long[1]).last_hidden_state[:, : row.shape[1]]
    if not _close(padded, alone):
        raise InputError(f"--teacher: the answers of {name} depend on the padding beside a text; {CURE}")


def _another_id(config: Any, token: Tensor) -> Tensor:
    """(1,1): the next id after that of `token` () which is not the padding."""
    pad = config.pad_token_id if config.pad_token_id is not None else 0
    following = (token + 1) % config.vocab_size
    return torch.where(following == pad, (token + 2) % config.vocab_size, following).view(1, 1)


def _close(a: Tensor, b: Tensor) -> bool:
    return bool((a - b).abs().max() <= TOLERANCE * b.abs().max())


def _as_tuple(value: Any) -> tuple:
    return (value,) if isinstance(value, str) else tuple(value)
