"""The lines of a file within limits: neither a long line nor a large file is ever in memory as a whole."""

from __future__ import annotations

import gzip
import stat
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nanonet.data.problems import problem, shorten
from nanonet.errors import InputError

_BOM = b"\xef\xbb\xbf"
_CHUNK = 1 << 20  # bytes that are read at a time
_MOST_DEFLATED = 1032  # bytes that a byte of gzip can hold


@dataclass(frozen=True)
class Limits:
    """text: the longest line or text; data: the largest table, unpacked [bytes]."""

    text: int = 1_000_000
    data: int = 8_000_000_000

    def __post_init__(self) -> None:
        for flag, value in (("--max-text-bytes", self.text), ("--max-data-bytes", self.data)):
            if value < 1:
                raise InputError(f"{flag} {value}: give 1 or more")


DEFAULT_LIMITS = Limits()


def check_regular(path: Path) -> None:
    """Raise InputError unless `path` is a regular file: a pipe or device may never end."""
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise problem(path, f"does not exist or cannot be read ({reason}): check the path") from error
    if stat.S_ISDIR(mode):
        raise problem(path, "is a folder: give one of the files in it")
    if not stat.S_ISREG(mode):
        raise problem(path, "is a pipe, socket or device, not a file: copy its content into a file")


def check_size(path: Path, limits: Limits) -> None:
    """Raise InputError where a file, unpacked, has more than `limits.data` bytes, before anything of it is stored."""
    size = path.stat().st_size
    if path.suffix.lower() == ".gz" and size <= limits.data < size * _MOST_DEFLATED:
        size = 0
        try:
            with gzip.open(path, "rb") as file:
                while size <= limits.data and (chunk := file.read(_CHUNK)):
                    size += len(chunk)
        except (OSError, EOFError, zlib.error):  # `text_lines` says what is wrong
            return
    if size > limits.data:
        what = f"more than {limits.data} bytes of data: split the file, or raise --max-data-bytes"
        raise problem(path, what)


def check_readable(path: Path, limits: Limits) -> None:
    """Raise InputError unless `path` is a regular file that is not empty, and not too large."""
    if not path.exists():
        raise problem(path, "does not exist: check the path")
    check_regular(path)
    if path.stat().st_size == 0:
        raise problem(path, "is empty: give a file with rows")
    check_size(path, limits)


def raw_lines(file: Any, source: Path | str, limits: Limits) -> Iterator[bytes]:
    """Yield the lines of a binary file with their ends: LF, or CR where the first part of the file has no LF.

    Raises InputError for a line or file over the limits.
    """
    number = total = size = 0
    end = b""
    parts: list[bytes] = []  # of the line that is not complete yet
    while chunk := file.read1(_CHUNK):
        total += len(chunk)
        if total > limits.data:
            what = f"more than {limits.data} bytes of data: split the file, or raise --max-data-bytes"
            raise problem(source, what, f"after line {number}")
        parts.append(chunk)
        size += len(chunk)
        if not end:
            parts = [b"".join(parts)]
            end = b"\n" if b"\n" in parts[0] else b"\r" if b"\r" in parts[0][:-1] else b""
        if end and end in parts[-1]:
            *complete, rest = b"".join(parts).split(end)
            for line in complete:
                number += 1
                _check_length(len(line), source, number, limits)
                yield line + end
            parts, size = [rest], len(rest)
        _check_length(size, source, number + 1, limits)
    if size:
        yield b"".join(parts)


def _check_length(size: int, source: Path | str, number: int, limits: Limits) -> None:
    if size > limits.text:
        what = f"the line has more than {limits.text} bytes: cut it, or raise --max-text-bytes"
        raise problem(source, what, f"line {number}")


def text_lines(path: Path, limits: Limits) -> Iterator[str]:
    """Yield the lines of a utf-8 file, perhaps gzipped, with their line ends. Raises InputError."""
    number = 0
    try:
        with gzip.open(path, "rb") if path.suffix.lower() == ".gz" else path.open("rb") as file:
            for raw in raw_lines(file, path, limits):
                number += 1
                yield (raw.removeprefix(_BOM) if number == 1 else raw).decode("utf-8")
    except UnicodeDecodeError as error:
        if number == 1 and error.object.startswith(b"\x1f\x8b"):
            raise problem(path, "is gzip: add .gz to its name") from error
        bad = f"byte {error.start + 1} of the line is 0x{error.object[error.start]:02x}"
        raise problem(path, f"not utf-8 ({bad}): save the file as utf-8", f"line {number}") from error
    except EOFError as error:
        raise problem(
            path, "the gzip stream ends too early: copy or download it again", f"after line {number}"
        ) from error
    except (gzip.BadGzipFile, zlib.error) as error:
        what = f"not sound gzip ({shorten(str(error))}): compress it again, or drop .gz if it is not compressed"
        raise problem(path, what, f"after line {number}") from error
    except OSError as error:
        raise problem(path, f"cannot be read ({error.strerror}): check its permissions") from error


def head_of(path: Path) -> bytes:
    """The first bytes of a file, perhaps gzipped, after white space; b"" where `text_lines` will say what is wrong."""
    try:
        with gzip.open(path, "rb") if path.suffix.lower() == ".gz" else path.open("rb") as file:
            return file.read(_CHUNK).removeprefix(_BOM).lstrip()
    except (OSError, EOFError, zlib.error):
        return b""
