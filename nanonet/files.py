"""Atomic writes: a file appears under its name complete, or not at all."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SMALL = 100_000_000  # bytes that a file of settings or a report may have


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` to write to: renamed to `path` at the end of the block, deleted if it fails.

    If `path` is a symbolic link, its target is replaced.
    """
    path = path.resolve()
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield temporary
        temporary.rename(path)
    finally:
        temporary.unlink(missing_ok=True)


def write(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_small(path: Path) -> str:
    """The text of a file of settings.

    Raises:
        OSError: it cannot be read, is a pipe or a device, which may never end, or has more than SMALL bytes.
        UnicodeDecodeError: it is not utf-8.
    """
    if path.exists() and not (path.is_file() and path.stat().st_size <= SMALL):
        raise OSError(errno.EINVAL, f"no file of {SMALL} bytes or fewer", str(path))
    return path.read_text(encoding="utf-8")


def remove(path: Path) -> None:
    """Delete a file, a symbolic link (not its target) or a folder, if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def apply_umask(folder: Path) -> None:
    """Give the files below a folder that was just made the permissions of the umask.

    safetensors and save_pretrained write files that only their owner can read.
    """
    mode = folder.stat().st_mode & 0o666  # a new folder's own are what the umask left
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(mode)


def lies_in(path: str, folder: Path) -> bool:
    """Whether `path` exists and is `folder` or lies in it; symbolic links are followed."""
    found = Path(path).expanduser()
    return bool(path) and found.exists() and found.resolve().is_relative_to(folder.resolve())
