"""How an encoder makes one vector of a text: the pooling that it was trained with."""

from __future__ import annotations

import json
from pathlib import Path

from transformers.utils import cached_file

from nanonet.errors import InputError

POOLINGS = {"mean_tokens": "mean", "cls_token": "cls", "max_tokens": "max"}  # sentence-transformers' names before 6


def pooling_of(source: str, local: bool) -> str:
    """The pooling that the encoder was trained with: mean, cls or max, by 1_Pooling/config.json; mean without it.

    Raises:
        InputError: the file is damaged, or names another pooling.
    """
    name = "1_Pooling/config.json"
    path = cached_file(source, name, local_files_only=local, _raise_exceptions_for_missing_entries=False)
    if path is None:
        return "mean"
    try:
        settings = dict(json.loads(Path(path).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{path}: cannot be read as JSON; get the encoder again") from error
    chosen = [kind for old, kind in POOLINGS.items() if settings.get(f"pooling_mode_{old}")]
    chosen += [settings["pooling_mode"]] if "pooling_mode" in settings else []
    if len(chosen) != 1 or chosen[0] not in POOLINGS.values():
        raise InputError(f"{path}: expected one pooling of {', '.join(POOLINGS.values())}; give an encoder with one")
    return chosen[0]
