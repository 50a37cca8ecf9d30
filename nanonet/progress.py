"""Progress of a run on standard error: a bar per stage with the time left; lines where it is no terminal."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from nanonet.errors import escape_controls


def note(text: str) -> None:
    """Tell the user one line on standard error, once: of several processes the first one does."""
    if os.environ.get("RANK", "0") == "0":
        print(f"nanonet: {escape_controls(text)}", file=sys.stderr, flush=True)


class Progress:
    """Stages on standard error. `seconds`: time of each stage [s], summed over its calls, without nested stages."""

    def __init__(self, active: bool = True) -> None:
        self.seconds: dict[str, float] = {}
        self.nested = 0.0  # time of the stages that ended within the current one [s]
        self.console = Console(file=_own_stderr(), stderr=True, quiet=not active, highlight=False)
        columns = (TextColumn("{task.description:<24}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self.bars = Bars(
            *columns,
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=self.console,
            refresh_per_second=4,
        )

    def __enter__(self) -> Progress:
        if self.console.is_terminal:
            self.bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.console.is_terminal:  # stopping bars that were not started prints an empty line
            self.bars.stop()

    @contextmanager
    def stage(self, name: str, total: int | None) -> Iterator[Callable[..., None]]:
        """Yield tick(done, note=""), which adds `done` to the progress of `total`; None where nobody knows it."""
        began, task, last_note, count = time.perf_counter(), self.bars.add_task(name, total=total, note=""), "", 0
        before, self.nested = self.nested, 0.0

        def tick(done: int, note: str = "") -> None:
            nonlocal last_note, count
            last_note, count = note or last_note, count + done
            self.bars.update(task, advance=done, note=last_note)

        yield tick
        taken = time.perf_counter() - began
        self.seconds[name] = round(self.seconds.get(name, 0.0) + taken - self.nested, 2)
        self.nested = before + taken
        if not self.console.is_terminal:
            self.console.print(f"{name}: {count if total is None else total} in {taken:.1f} s  {last_note}")


def _own_stderr() -> TextIO | None:
    """A copy of a terminal's standard error: a tokenizer at work closes file descriptor 2 (`tokenizer_faults`). None
    stands for whatever sys.stderr is."""
    try:
        return os.fdopen(os.dup(2), "w", encoding=sys.stderr.encoding) if os.isatty(sys.stderr.fileno()) else None
    except (AttributeError, OSError, ValueError):  # closed, or a stream without a file
        return None
