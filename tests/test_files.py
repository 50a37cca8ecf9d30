"""Files are whole or not there."""

from __future__ import annotations

from pathlib import Path

import pytest

from nanonet.files import atomic_write, write


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
