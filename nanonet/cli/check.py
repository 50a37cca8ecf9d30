"""`nanonet check`: the result of every part as one table."""

from __future__ import annotations

import dataclasses
import json
from collections import defaultdict
from collections.abc import Sequence

import torch

from nanonet.backends import gate
from nanonet.config.commands import CheckConfig
from nanonet.errors import InputError, escape_controls
from nanonet.installation import parts
from nanonet.installation.parts import Part, Result, Row
from nanonet.progress import note
from nanonet.versions import versions

HEAD = ("kernels", "device", "op", "checks", "error / bar", "")
FAILURES = 12  # lines shown


def check(config: CheckConfig) -> int:
    """Check this installation and print what was found; the exit code, 1 where anything failed.

    Raises:
        InputError: a GPU that is not there, or a time limit that is none.
    """
    if config.limit < 1:
        raise InputError(f"--limit {config.limit}: give the seconds that one step may take, 1 or more")
    gpu = torch.cuda.is_available()
    if config.device == "cuda" and not gpu:
        raise InputError("--device cuda: torch finds no GPU here; give cpu")
    todo: list[Part] = [] if config.device == "cuda" else parts.cpu_parts()
    if gpu and config.device != "cpu":
        todo += [part for index in parts.gpus() for part in parts.gpu_parts(index)]
    results = parts.check(todo, note, config.limit)
    parts.keep(results, note)
    print(_json(results) if config.json else table(results))
    return 0 if all(result.passed for result in results) else 1


def _json(results: Sequence[Result]) -> str:
    rows = [dataclasses.asdict(row) for result in results for row in result.rows]
    found = {"passed": all(r.passed for r in results), "versions": versions(), "gpus": states(results), "rows": rows}
    return json.dumps(found, indent=2)


def states(results: Sequence[Result]) -> list[str]:
    """What is known now of each GPU that was checked."""
    return [gate.state(int(d[5:])) for d in dict.fromkeys(r.part.device for r in results) if d != "cpu"]


def table(results: Sequence[Result]) -> str:
    """One line for each op and kernels over all dtypes, then what failed."""
    groups: dict[tuple[str, str, str], list[Row]] = defaultdict(list)
    for row in (row for result in results for row in result.rows):
        groups[row.kernels, row.device, row.op].append(row)
    lines: list[tuple[str, ...]] = [HEAD]
    for key, rows in groups.items():
        worst = [row.worst for row in rows]
        share = "inf" if None in worst else f"{max(w for w in worst if w is not None):.2f}"
        verdict = "FAILED" if any(row.failures for row in rows) else "ok"
        lines.append((*key, str(sum(row.checks for row in rows)), share, verdict))
    widths = [max(len(line[i]) for line in lines) for i in range(len(HEAD))]
    right = ("checks", "error / bar")
    shown = [
        "  ".join(c.rjust(w) if h in right else c.ljust(w) for c, w, h in zip(line, widths, HEAD, strict=True)).rstrip()
        for line in lines
    ]
    failures = [
        f"{row.kernels}, {row.op}: {failure}" for rows in groups.values() for row in rows for failure in row.failures
    ]
    shown += ["", *map(escape_controls, failures[:FAILURES])] if failures else []
    if len(failures) > FAILURES:
        shown.append(f"and {len(failures) - FAILURES} more (--json has all)")
    total = sum(row.checks for rows in groups.values() for row in rows)
    summary = f"{len(failures)} failures" if failures else "all passed"
    return "\n".join([*shown, "", *states(results), f"{total} checks against float64: {summary}"])
