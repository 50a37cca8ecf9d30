"""An output file that survives a kill: whole chunks of rows lie beside it until it is complete.

    NAME.partial    the rows, chunk by chunk
    NAME.progress   JSON lines, one after each chunk: what was done by then, and digests of all that decides it

A program that is started again with the same model, settings and texts goes on after the last whole chunk, and so ends
with the bytes of one that was never killed.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import BinaryIO

from nanonet.errors import InputError
from nanonet.inference.texts import Text
from nanonet.progress import note


@dataclass(frozen=True)
class Done:
    """What has been written. texts, output: digests of the texts so far and of the rows [hex]; size [bytes]; empty,
    unsure: rows whose label is null; first_empty: the place of the first text without a word."""

    settings: str = ""
    texts: str = ""
    output: str = ""
    size: int = 0
    rows: int = 0
    empty: int = 0
    first_empty: str = ""
    unsure: int = 0


class Resumable:
    """The rows of `path`, as they come. `done`: what there is, at first of an interrupted run."""

    narrow = False  # the rows may hold more than ASCII

    def __init__(self, path: Path, settings: str, partial: BinaryIO, progress: BinaryIO) -> None:
        self.name, self.partial, self.progress = path.name, partial, progress
        self.cure = f"give the command that began it, or delete {path.name}.partial to start anew"
        self.texts, self.output = hashlib.sha256(), hashlib.sha256()
        self.done = Done(settings)
        self._find()
        self.partial.truncate(self.done.size)
        self.partial.seek(self.done.size)

    def _find(self) -> None:
        """Read what an interrupted run left; raise InputError where it is not of these settings, or damaged."""
        lines = self.progress.read().split(b"\n")[:-1]  # the last one may be half-written
        if not lines or not self.partial.seek(0, 2):
            self.progress.truncate(0)
            return
        try:
            found = Done(**json.loads(lines[-1]))
        except (ValueError, TypeError):
            raise InputError(f"{self.name}.progress is damaged; delete it to start anew") from None
        if found.settings != self.done.settings:
            raise InputError(
                f"{self.name}.partial is of an interrupted run of another model or other settings; {self.cure}"
            )
        self.partial.seek(0)
        left = found.size
        while left and (block := self.partial.read(min(left, 1 << 20))):
            self.output.update(block)
            left -= len(block)
        if left or self.output.hexdigest() != found.output:
            raise InputError(f"{self.name}.partial is damaged; delete it to start anew")
        self.progress.truncate(sum(len(line) + 1 for line in lines))
        self.done = found

    def rest(self, chunks: Iterable[list[Text]]) -> Iterator[list[Text]]:
        """The chunks that are not done yet; InputError where those that are had other texts."""
        left = self.done.rows
        for chunk in chunks:
            if left <= 0:
                yield chunk
                continue
            self._read([text for _, text in chunk])
            left -= len(chunk)
            if left <= 0:
                if left or self.texts.hexdigest() != self.done.texts:
                    break
                note(f"{self.done.rows} rows are there already: going on after them")
        else:
            if left <= 0:
                return
        raise InputError(f"{self.name}.partial is of an interrupted run over other texts; {self.cure}")

    def write(self, texts: list[dict[str, str]], rows: str, done: Done) -> None:
        """Append the rows of a chunk, then the line that says so. done: the counts after them."""
        self._read(texts)
        content = rows.encode()
        self.output.update(content)
        self.partial.write(content)
        self.partial.flush()
        before, texts_so_far, output = self.done, self.texts.hexdigest(), self.output.hexdigest()
        size = before.size + len(content)
        self.done = replace(done, settings=before.settings, texts=texts_so_far, output=output, size=size)
        self.progress.write(json.dumps(asdict(self.done)).encode() + b"\n")
        self.progress.flush()

    def _read(self, texts: list[dict[str, str]]) -> None:
        self.texts.update(json.dumps(texts).encode())


@contextmanager
def resumable(path: Path, settings: str) -> Iterator[Resumable]:
    """Within, rows are written beside `path`; at the end they get that name. If the block fails, what was written stays
    for a next call with the same `settings` (a digest).

    Raises:
        InputError: what lies there is of other settings or damaged, or another run is writing it.
        OSError: it cannot be written.
    """
    path = path.resolve()
    partial, progress = (path.with_name(f"{path.name}.{end}") for end in ("partial", "progress"))
    with partial.open("a+b") as rows, progress.open("a+b") as lines:
        _lock(rows, partial)
        lines.seek(0)
        output = Resumable(path, settings, rows, lines)
        try:
            yield output
        except BaseException:
            if output.done.rows:
                note(f"{output.done.rows} rows are kept in {partial.name}: the same command goes on after them")
            else:
                partial.unlink(missing_ok=True)
                progress.unlink(missing_ok=True)
            raise
    partial.rename(path)
    progress.unlink()


def _lock(file: BinaryIO, path: Path) -> None:
    """Refuse a file that another run is writing, or has just finished."""
    with suppress(OSError):  # a file system without locks
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.exists() and os.path.samestat(path.stat(), os.fstat(file.fileno())):
                return
        except BlockingIOError:
            pass
        raise InputError(f"another run is writing {path.name}; wait for it, or give another --output")
