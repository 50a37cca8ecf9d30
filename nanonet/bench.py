"""`nanonet bench`: the benchmark suite as a table, as JSON lines, and as a chart."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from nanonet.config import BenchConfig, InputError

COLUMNS = ("implementation", "p20 ms", "p50 ms", "p80 ms", "nanonet is", "% of memcpy", "peak MB", "error", "torch's")


def bench(config: BenchConfig) -> None:
    """Run the suite and print it as it goes.

    Raises:
        InputError: a shape, dtype or file name that makes no sense; or our gradient is wrong, so nothing is timed.
    """
    from nanonet.benchmarks import bench_distill

    shapes = _shapes(config.shapes) or bench_distill.SHAPES
    dtypes = tuple(name.strip() for name in config.dtypes.split(","))
    for name in dtypes:
        if name not in bench_distill.DTYPES:
            raise InputError(f"--dtypes {name}: give {' or '.join(bench_distill.DTYPES)}")
    if config.plot and Path(config.plot).suffix not in (".png", ".svg"):
        raise InputError(f"--plot {config.plot}: give a name that ends in .png or .svg")
    groups: dict[tuple, list[dict[str, Any]]] = defaultdict(list)
    for record in bench_distill.records(shapes, dtypes, not config.eager_only):
        key = (record["dtype"], *record["shape"].values())
        groups[key].append(record)
        if config.json:
            print(json.dumps(record), flush=True)
    if not config.json:
        for key, records in groups.items():
            print(_table(key, records))
    if config.plot:
        _plot(groups, Path(config.plot))


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


def _table(key: tuple, records: list[dict[str, Any]]) -> str:
    """A table whose ratios say how many times faster `nanonet` is than the row, forward and backward."""
    own = next(r["p50_ms"] for r in records if r["implementation"] == "nanonet")
    dtype, K, N, C = key
    rows = [COLUMNS]
    for r in sorted(records, key=lambda r: r["p50_ms"]):
        peak, error = r["peak_mem_mb"], r["error"]
        rows.append(
            (
                r["implementation"],
                *(f"{r[name]:.4g}" for name in ("p20_ms", "p50_ms", "p80_ms")),
                f"{r['p50_ms'] / own:.2f}x",
                f"{100 * r['floor_fraction']:.0f}",
                "" if peak is None else f"{peak:.1f}",
                "" if error is None else f"{error:.1e}",
                f"{r['reference_error']:.1e}",
            )
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(COLUMNS))]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    title = f"distill_loss K={K} N={N} C={C} {dtype}, {records[0]['device']}, {records[0]['commit']}"
    return "\n".join(["", title, *lines])


def _plot(groups: dict[tuple, list[dict[str, Any]]], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 2.4 * len(groups)), layout="constrained")
    for i, (key, records) in enumerate(groups.items()):
        axes = figure.add_subplot(len(groups), 1, i + 1)
        ordered = sorted(records, key=lambda r: -r["p50_ms"])
        axes.barh([r["implementation"] for r in ordered], [r["p50_ms"] for r in ordered])
        axes.set(xscale="log", xlabel="ms (median)", title="{} K={} N={} C={}".format(*key))
    temporary = path.with_name(f".{path.name}")
    figure.savefig(temporary, format=path.suffix[1:])
    temporary.rename(path)
