"""safetensors files that are written atomically and carry a digest: a changed byte is refused when they are read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from nanonet.errors import InputError
from nanonet.files import atomic_write


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write `tensors` and `metadata` atomically, with their digest."""
    stored = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with atomic_write(path) as temporary:
        save_file(stored, temporary, {**metadata, "digest": digest(stored, metadata)})


def load_tensors(path: Path, cure: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors, mapped into memory, and the metadata of a file that `save_tensors` wrote.

    Raises:
        InputError: it is damaged, or has no digest; says what, and `cure`.
    """
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata = dict(file.metadata() or {})
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{path}: damaged ({error}); {cure}") from error
    expected = metadata.pop("digest", None)
    if expected is None:
        raise InputError(f"{path}: written by an older version of nanonet; {cure}")
    if digest(tensors, metadata) != expected:
        raise InputError(f"{path}: damaged (its bytes do not match its digest); {cure}")
    return tensors, metadata


def digest(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """SHA-256 of the names, dtypes, shapes and bytes of contiguous CPU tensors, and of the metadata."""
    found = hashlib.sha256(json.dumps(dict(metadata), sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def folder_digest(folder: Path) -> str:
    """SHA-256 of the names and bytes of the files in `folder`."""
    found = hashlib.sha256()
    for path in sorted(filter(Path.is_file, folder.iterdir())):
        with path.open("rb") as file:
            found.update(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}".encode())
    return found.hexdigest()
