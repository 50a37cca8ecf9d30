"""metrics.jsonl: a record of each step of a run."""

from __future__ import annotations

import json
import math
from pathlib import Path

from nanonet.files import write


def step_of(line: str) -> float:
    """The step of a line of metrics.jsonl; infinity if the line is truncated or not a record."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf


class Metrics:
    """One line a step; a resumed run continues after the steps of its checkpoint."""

    def __init__(self, path: Path, start: int, active: bool) -> None:
        self.file = None
        if active:
            old = path.read_text(errors="replace").splitlines() if start and path.exists() else []
            write(path, "".join(line + "\n" for line in old if step_of(line) < start))
            self.file = path.open("a")

    def write(self, record: dict) -> None:
        if self.file:
            self.file.write(json.dumps(record) + "\n")

    def flush(self) -> None:
        if self.file:
            self.file.flush()

    def close(self) -> None:
        if self.file:
            self.file.close()
