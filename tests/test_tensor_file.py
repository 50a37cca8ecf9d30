"""Files of tensors with a digest."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from nanonet.errors import InputError
from nanonet.tensor_file import folder_digest, load_tensors, save_tensors

TENSORS = {
    "float32": torch.arange(6.0).view(2, 3),
    "bfloat16": torch.arange(3.0).bfloat16(),
    "number": torch.tensor(7),
    "empty": torch.zeros(0, 4),
    "transposed": torch.arange(6.0).view(2, 3).T,
}


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_tensors(path, TENSORS, {"step": "3"})
    tensors, metadata = load_tensors(path, "delete it")
    assert metadata == {"step": "3"} and tensors.keys() == TENSORS.keys()
    assert all(tensors[name].equal(value) and tensors[name].dtype == value.dtype for name, value in TENSORS.items())


def test_every_flipped_byte_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_tensors(path, {"x": torch.arange(4.0)}, {"step": "3"})
    stored = path.read_bytes()
    for i in range(len(stored)):
        for bit in (1, 128):
            path.write_bytes(stored[:i] + bytes([stored[i] ^ bit]) + stored[i + 1 :])
            # a space in the JSON header may change into nothing that matters; anything else is refused
            with pytest.raises(
                InputError, match=r"a\.safetensors: (damaged|written by an older version).*; delete it$"
            ):
                load_tensors(path, "delete it")


def test_a_truncated_file_and_one_without_a_digest(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"x": torch.zeros(2)}, path, {"step": "3"})
    with pytest.raises(InputError, match="written by an older version of nanonet; delete it$"):
        load_tensors(path, "delete it")
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(InputError, match="damaged .*; delete it$"):
        load_tensors(path, "delete it")
    with pytest.raises(InputError, match="damaged .*; delete it$"):
        load_tensors(tmp_path / "none", "delete it")


def test_the_digest_of_a_folder_covers_names_and_bytes(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("1")
    (tmp_path / "b").write_text("2")
    first = folder_digest(tmp_path)
    (tmp_path / "b").write_text("3")
    second = folder_digest(tmp_path)
    (tmp_path / "b").rename(tmp_path / "c")
    assert len({first, second, folder_digest(tmp_path)}) == 3
