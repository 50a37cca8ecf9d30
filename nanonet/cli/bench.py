"""`nanonet bench`: the benchmark suites as tables, as JSON lines, and as a chart."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

from nanonet.config.commands import BenchConfig
from nanonet.config.train import Tuning
from nanonet.errors import InputError
from nanonet.files import atomic_write
from nanonet.installation.parts import ensure_checked
from nanonet.progress import note

COLUMNS = (
    "implementation", "p20 ms", "p50 ms", "p80 ms", "nanonet is",
    "% of memcpy", "rows/s", "peak MB", "error", "torch's", "must",
)  # fmt: skip


def bench(config: BenchConfig) -> None:
    """Run a suite and print it as it goes.

    Raises:
        InputError: an invalid shape, dtype or file name; or a wrong result of nanonet's, which is not timed.
    """
    plot = Path(config.plot).expanduser()
    if config.plot and plot.suffix not in (".png", ".svg"):
        raise InputError(f"--plot {config.plot}: give a name that ends in .png or .svg")
    if config.plot and plot.is_dir():
        raise InputError(f"--plot {config.plot} is a folder; give a file")
    if config.plot and plot.exists():
        raise InputError(f"--plot {config.plot} is there already; delete it, or give another name")
    if not plot.absolute().parent.is_dir():
        raise InputError(f"--plot {config.plot}: there is no folder {plot.parent}; make it first")
    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    title = ""
    records = _records(config)
    if config.device == "cuda":
        ensure_checked(note)
    for record in records:
        if title and title != _title(record) and not config.json:
            print(_table(title, groups[title]), flush=True)
        title = _title(record)
        groups[title].append(record)
        if config.json:
            print(json.dumps(record), flush=True)
    if title and not config.json:
        print(_table(title, groups[title]))
    if config.plot:
        _plot(groups, plot)


def _records(config: BenchConfig) -> Iterator[dict[str, Any]]:
    import torch

    from nanonet.benchmarks import bench_distill, bench_linear

    names = ("step", "linear", "swap", "topk", "from_hidden")
    suites = [f"--{name.replace('_', '-')}" for name in names if getattr(config, name)]
    if len(suites) > 1:
        raise InputError(f"{' '.join(suites)}: give one of them")
    _refuse(config, ("data", "teacher", "batch", "memory", "students", "tunings"), config.step, "--step")
    _refuse(config, ("shapes",), not suites, "the loss, without another suite")
    _refuse(config, ("eager_only",), suites in ([], ["--swap"]), "the losses, without --step or --linear")
    one_thread = config.swap or config.topk or config.from_hidden
    _refuse(config, ("device",), not one_thread, f"the other suites: {''.join(suites[:1])} is timed on one CPU thread")
    if config.device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: torch finds no GPU here; give cpu")
    dtypes = _names("--dtypes", config.dtypes, tuple(bench_distill.DTYPES))
    shapes = _shapes(config.shapes)
    if config.step:
        try:
            students = tuple(int(k) for k in config.students.split(","))
        except ValueError:
            students = (0,)
        if min(students) < 1:
            raise InputError(f"--students {config.students}: give numbers of students, such as 2,4")
        from nanonet.benchmarks import bench_step  # imports transformers and peft, which the other suites do not need

        tunings = _names("--tunings", config.tunings, get_args(Tuning))
        if config.batch < 3:
            raise InputError(f"--batch {config.batch}: give 3 rows or more, of which a third has labels")
        case = bench_step.Case(config.data, config.teacher, config.batch, config.device)
        return bench_step.records(students, tunings, dtypes, case, config.memory)
    if config.linear:
        return bench_linear.records(dtypes, config.device)
    if config.topk or config.from_hidden:
        from nanonet.benchmarks import bench_language

        return bench_language.records("topk" if config.topk else "from_hidden", dtypes)
    if config.swap:
        from nanonet.benchmarks import bench_swap  # what stands in for other projects' losses

        return bench_swap.records(dtypes, not config.eager_only)
    return bench_distill.records(shapes, dtypes, not config.eager_only, config.device)


def _refuse(config: BenchConfig, names: tuple[str, ...], used: bool, where: str) -> None:
    """Refuse a flag that the suite would ignore."""
    for name in names:
        if not used and getattr(config, name) != getattr(BenchConfig(), name):
            raise InputError(f"--{name.replace('_', '-')}: it belongs to {where}; leave it out")


def _names(flag: str, text: str, known: tuple[str, ...]) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(","))
    for name in names:
        if name not in known:
            raise InputError(f"{flag} {name}: give {' or '.join(known)}")
    return names


def _shapes(text: str) -> tuple[tuple[int, int, int], ...]:
    shapes = []
    for part in filter(None, text.split(",")):
        try:
            K, N, C = (int(size) for size in part.lower().split("x"))
        except ValueError:
            raise InputError(f"--shapes {part}: give students x rows x classes, such as 4x256x30522") from None
        if min(K, N, C) < 1:
            raise InputError(f"--shapes {part}: every size is at least 1")
        shapes.append((K, N, C))
    return tuple(shapes)


def _title(record: dict[str, Any]) -> str:
    sizes = " ".join(f"{name}={size}" for name, size in record["shape"].items())
    own = " ".join(record[name] for name in ("weight", "tuning", "phase") if name in record)
    return f"{record['op']} {sizes} {record['dtype']} {own}".rstrip()


def _table(title: str, records: list[dict[str, Any]]) -> str:
    """A table; its ratios: time of the row over nanonet's time."""
    own = next(r["p50_ms"] for r in records if r["implementation"] in ("nanonet", "cohort"))
    rows: list[tuple[str, ...]] = [COLUMNS]
    for r in sorted(records, key=lambda r: r["p50_ms"]):
        rows.append(
            (
                r["implementation"],
                *(f"{r[name]:.4g}" for name in ("p20_ms", "p50_ms", "p80_ms")),
                f"{r['p50_ms'] / own:.2f}x",
                *(_number(value, form) for value, form in _optional(r)),
                r.get("must") or "",
            )
        )
    shown = [i for i in range(len(COLUMNS)) if any(row[i] for row in rows[1:])]
    widths = [max(len(row[i]) for row in rows) for i in range(len(COLUMNS))]
    lines = ["  ".join(row[i].rjust(widths[i]) for i in shown) for row in rows]
    return "\n".join(["", f"{title}, {records[0]['device']}, {records[0]['commit']}", *lines])


def _optional(r: dict[str, Any]) -> tuple[tuple[float | None, str], ...]:
    share = None if r["floor_fraction"] is None else 100 * r["floor_fraction"]
    return (
        (share, ".0f"),
        (r.get("rows_per_s"), ".1f"),
        (r["peak_mem_mb"], ".1f"),
        (r["error"], ".1e"),
        (r["reference_error"], ".1e"),
    )


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _plot(groups: dict[str, list[dict[str, Any]]], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 2.4 * len(groups)), layout="constrained")
    for i, (title, records) in enumerate(groups.items()):
        axes = figure.add_subplot(len(groups), 1, i + 1)
        ordered = sorted(records, key=lambda r: -r["p50_ms"])
        axes.barh([r["implementation"] for r in ordered], [r["p50_ms"] for r in ordered])
        axes.set(xscale="log", xlabel="ms (median)", title=title)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format=path.suffix[1:])
