"""What a person sees while a run goes on: a bar a stage, with time left; plain lines where there is no terminal."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars


class Progress:
    """Stages on standard error; `seconds` holds how long each took [s], all times that it came, without the stages
    within it."""

    def __init__(self, active: bool = True) -> None:
        self.seconds: dict[str, float] = {}
        self.within = 0.0  # what stages took that ended within the one that goes on
        self.console = Console(stderr=True, quiet=not active, highlight=False)
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
        if self.console.is_terminal:  # stopping what never started prints an empty line
            self.bars.stop()

    @contextmanager
    def stage(self, name: str, total: int) -> Iterator[Callable[..., None]]:
        """Yield tick(done, note=""): so much more of `total` is done."""
        began, task, said = time.perf_counter(), self.bars.add_task(name, total=total, note=""), ""
        before, self.within = self.within, 0.0

        def tick(done: int, note: str = "") -> None:
            nonlocal said
            said = note or said
            self.bars.update(task, advance=done, note=said)

        yield tick
        taken = time.perf_counter() - began
        self.seconds[name] = round(self.seconds.get(name, 0.0) + taken - self.within, 2)
        self.within = before + taken
        if not self.console.is_terminal:
            self.console.print(f"{name}: {total} in {taken:.1f} s  {said}")
