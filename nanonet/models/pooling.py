"""How an encoder makes one vector of a text: the pooling that it was trained with, as sentence-transformers wrote it.

`modules.json` lists the modules that run one after the other: a Transformer, a Pooling, and perhaps others, each with
the folder of its settings. The Transformer lies in the model's folder or, in old models, in one below it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from transformers.utils import cached_file

from nanonet.errors import InputError

POOLINGS = {"mean_tokens": "mean", "cls_token": "cls", "max_tokens": "max"}  # sentence-transformers' names before 6
MODULES = "modules.json"
WITHOUT_EFFECT = {"Transformer", "Pooling", "Normalize", "Dropout"}  # embeddings are normalised anyway


def transformer_folder(folder: Path) -> Path:
    """Where the encoder itself lies: `folder`, or the folder below it that modules.json names as its Transformer."""
    if (folder / "config.json").is_file() or not (folder / MODULES).is_file():
        return folder
    for kind, path in _modules(folder / MODULES):
        if kind == "Transformer" and (folder / path / "config.json").is_file():
            return folder / path
    return folder


def pooling_of(source: str, local: bool) -> str:
    """The pooling that the encoder was trained with: mean, cls or max; mean where nothing is said.

    Raises:
        InputError: a file is damaged, or names another pooling.
    """
    root, path = source, _file(source, MODULES, local)
    if path is None and local and (Path(source).parent / MODULES).is_file():  # the Transformer of an old model
        root, path = str(Path(source).parent), Path(source).parent / MODULES
    folders = ["1_Pooling"]
    if path is not None:
        modules = _modules(path)
        folders = [folder for kind, folder in modules if kind == "Pooling"]
        if len(folders) != 1:
            raise InputError(f"{path}: names {len(folders)} modules of type Pooling; give an encoder with one")
        others = sorted({kind for kind, _ in modules} - WITHOUT_EFFECT)
        if others:
            print(
                f"nanonet: {path}: embeddings are taken from the pooling, without the {others[0]} after it",
                file=sys.stderr,
            )
    settings = _file(root, f"{folders[0]}/config.json", local)
    if settings is None:
        if path is not None:
            raise InputError(f"{path}: names {folders[0]}, which has no config.json; get the encoder again")
        return _kept_pooling(source, local)
    return _pooling(settings)


def _kept_pooling(source: str, local: bool) -> str:
    """What the config.json of a kept teacher says (pooled.py); mean of any other model."""
    path = _file(source, "config.json", local)
    config = _read(path) if path else {}
    if not isinstance(config, dict) or config.get("model_type") != "nanonet_pooled":
        return "mean"
    return str(config.get("pooling", "mean"))


def _pooling(path: Path) -> str:
    """What the config.json of a Pooling says."""
    settings = _read(path)
    if not isinstance(settings, dict):
        raise InputError(f"{path}: cannot be read as a JSON object; get the encoder again")
    chosen = [kind for old, kind in POOLINGS.items() if settings.get(f"pooling_mode_{old}")]
    chosen += [settings["pooling_mode"]] if "pooling_mode" in settings else []
    others = sorted(
        name.removeprefix("pooling_mode_")
        for name, value in settings.items()
        if name.startswith("pooling_mode_") and value and name.removeprefix("pooling_mode_") not in POOLINGS
    )
    if len(chosen) != 1 or chosen[0] not in POOLINGS.values() or others:
        found = ", ".join(map(str, [*chosen, *others])) or "none"
        raise InputError(
            f"{path}: expected one pooling of {', '.join(POOLINGS.values())}, got {found:.80}; give an encoder with one"
        )
    return chosen[0]


def _modules(path: Path) -> list[tuple[str, str]]:
    """(last name of its type, folder) of every module that a modules.json lists, in order."""
    listed = _read(path)
    try:
        modules = [(str(module["type"]).rsplit(".", 1)[-1], str(module["path"])) for module in listed]
    except (TypeError, KeyError) as error:
        raise InputError(f"{path}: expected a list of modules with type and path; get the encoder again") from error
    for _, folder in modules:
        if Path(folder).is_absolute() or ".." in Path(folder).parts:
            raise InputError(f"{path}: {folder!r:.80} does not lie in the model's folder; get the encoder again")
    return modules


def _file(source: str, name: str, local: bool) -> Path | None:
    try:
        path = cached_file(source, name, local_files_only=local, _raise_exceptions_for_missing_entries=False)
    except OSError as error:  # a hub that does not answer
        raise InputError(f"{source}: cannot look for {name} ({type(error).__name__}); try again") from error
    return None if path is None else Path(path)


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read as JSON; get the encoder again") from error
