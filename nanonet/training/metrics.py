"""metrics.jsonl: what a run says of each of its steps."""

from __future__ import annotations

import json
import math
from pathlib import Path

from nanonet.files import write


def step_of(line: str) -> float:
    """The step that a line of metrics.jsonl tells of; infinity where the line was cut off or is no record."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf


class Metrics:
    """A line a step; a resumed run goes on after the steps that its checkpoint has."""

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
