"""Files that are whole or not there."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """A path beside `path` to write to: it gets that name when the block ends, and goes away where the block fails.

    Where `path` is a link, what it leads to is replaced.
    """
    path = path.resolve()
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield temporary
        temporary.rename(path)
    finally:
        temporary.unlink(missing_ok=True)


def write(path: Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def apply_umask(folder: Path) -> None:
    """Give the files below a folder that was just made the permissions of the umask.

    safetensors and save_pretrained write files that only their owner can read.
    """
    mode = folder.stat().st_mode & 0o666  # a new folder's own are what the umask left
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(mode)


def empty(folder: Path, last: str = "") -> None:
    """Delete what the folder holds, not the folder itself; the file named `last` when all else is gone."""
    for path in sorted(folder.iterdir(), key=lambda path: path.name == last):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def lies_in(path: str, folder: Path) -> bool:
    """Whether `path` is something that is there, and is `folder` or lies in it; links are followed."""
    found = Path(path).expanduser()
    return bool(path) and found.exists() and found.resolve().is_relative_to(folder.resolve())
