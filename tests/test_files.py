"""Files are whole or not there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nanonet import files
from nanonet.files import atomic_write, read_small, write


def test_a_block_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write(path, "old")
    with pytest.raises(ValueError, match="stop"), atomic_write(path) as temporary:
        temporary.write_text("half")
        assert path.read_text() == "old"
        raise ValueError("stop")
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"] and path.read_text() == "old"
    write(path, "new")
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"] and path.read_text() == "new"


def test_a_pipe_or_a_device_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    (tmp_path / "long").write_text("12345")
    monkeypatch.setattr(files, "SMALL", 4)
    for name in ("pipe", "zero", "long", "."):
        with pytest.raises(OSError, match="no file of 4 bytes or fewer"):
            read_small(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        read_small(tmp_path / "none")
    (tmp_path / "short").write_text("1234")
    assert read_small(tmp_path / "short") == "1234"
