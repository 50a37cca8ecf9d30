"""Write the tables of docs/lab/performance.md, and the main ones of docs/explanation/performance.md, from the lines in
benchmarks/results: python benchmarks/tables.py"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

from nanonet.benchmarks import gpu_table

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results"
LAB, EXPLANATION = (ROOT / "docs" / folder / "performance.md" for folder in ("lab", "explanation"))
SUMMARY = ("cohort", "eager-loop", "peft-loop")  # the programs of the short table of steps
MS = "p50_ms"
Group = dict[str, dict[str, Any]]


def groups(file: str, *names: str) -> dict[tuple, Group]:
    """{(dtype, sizes..., further values): {implementation: record}}, in the order of the file."""
    found: dict[tuple, Group] = defaultdict(dict)
    for line in (RESULTS / file).read_text().splitlines():
        r = json.loads(line)
        found[r["dtype"], *r["shape"].values(), *(r[name] for name in names)][r["implementation"]] = r
    return found


def markdown(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def loss(dtype: str) -> str:
    """Each shape a column."""
    some = {key[1:]: group for key, group in groups("cpu.jsonl").items() if key[0] == dtype}

    def row(name: str, value: Any) -> list[str]:
        return [name, *(value(group) for group in some.values())]

    def slower(name: str) -> Any:
        return lambda g: f"{g[name][MS] / g['nanonet'][MS]:.1f}x"

    rows = [
        row("`distill_loss` + backward [ms]", lambda g: f"{g['nanonet'][MS]:.3g}"),
        row("the kernel alone, reused buffer [ms]", lambda g: f"{g['nanonet-op'][MS]:.3g}"),
        row("the kernel alone, fresh buffer [ms]", lambda g: f"{g['nanonet-op-fresh'][MS]:.3g}"),
        row("reused buffer, in memcpys of the floor's bytes", lambda g: f"{1 / g['nanonet-op']['floor_fraction']:.2f}"),
        row("forward + backward, in `student.sum().backward()`s", lambda g: f"{g['nanonet'][MS] / g['sum'][MS]:.2f}"),
        row("torch.compile of the closed form takes longer by", slower("compiled")),
        row("closed form in eager torch", slower("closed")),
        row("torchtune's pattern, a call a student, no peers", slower("torchtune")),
        row("naive eager, pair by pair", slower("naive")),
        row("peak memory beyond inputs and gradient [MB]", lambda g: f"{g['nanonet']['peak_mem_mb']:.3f}"),
        row(
            "error of the gradient, ours / torch's",
            lambda g: f"{g['nanonet']['error']:.1e} / {g['nanonet']['reference_error']:.1e}",
        ),
    ]
    return markdown([dtype, *("x".join(map(str, key)) for key in some)], rows)


def linear() -> str:
    """nanonet's time over that of torch's best call, at each shape."""
    rows = []
    for (dtype, K, M, D, F, weight, tuning), phases in _by_phase().items():
        cells = [f"{phases[phase]:.2f}" for phase in ("forward", "forward+backward")]
        rows.append([dtype, f"{K}x{M}, {D} to {F}", weight, tuning, *cells])
    return markdown(["dtype", "shape", "W", "tuning", "forward", "forward + backward"], rows)


def _by_phase() -> dict[tuple, dict[str, float]]:
    found: dict[tuple, dict[str, float]] = defaultdict(dict)
    for (*key, phase), group in groups("linear.jsonl", "weight", "tuning", "phase").items():
        best = min(r[MS] for name, r in group.items() if name != "nanonet")
        found[tuple(key)][phase] = group["nanonet"][MS] / best
    return found


def step(dtypes: tuple[str, ...] = ("float32", "bfloat16"), programs: tuple[str, ...] = ()) -> str:
    """Rows/s of the median step and peak memory [MB] of each program, and how much longer it takes than the cohort."""
    rows = []
    for (dtype, K, N, _, tuning), group in groups("step.jsonl", "tuning").items():
        for name, r in group.items() if dtype in dtypes else ():
            if programs and name not in programs:
                continue
            memory = "" if r["peak_mem_mb"] is None else f"{r['peak_mem_mb']:.0f}"
            cpu = r["device"].split(" x ")[-1].removesuffix(" Processor").replace("(R)", "")
            speed = f"{1e3 * N / r[MS]:.1f}", f"{r[MS] / group['cohort'][MS]:.2f}x"
            rows.append([dtype, tuning, str(K), cpu, name, *speed, memory])
    header = ["dtype", "tuning", "K", "CPU", "program", "rows/s", "cohort is faster by", "peak memory [MB]"]
    return markdown(header, rows)


def inference() -> str:
    """Rows/s of each model, and its multiple of the teacher's and of BERT-base's in torch and float32."""
    sizes = {key[1]: group for key, group in _by_batch().items()}
    rows = []
    for name, r in sizes[32].items():
        cells = [name, f"{r['parameters'] / 1e6:.1f}M"]
        for group in sizes.values():
            own = group[name]
            ratios = (own["rows_per_s"] / group[other]["rows_per_s"] for other in ("minilm", "bert-base"))
            cells += [f"{own['p50_ms']:.3g}", f"{own['rows_per_s']:.4g}", *(f"{ratio:.3g}x" for ratio in ratios)]
        rows.append(cells)
    header = ["model", "parameters"]
    for size in sizes:
        header += [f"batch {size}: ms", "rows/s", "minilm's", "bert-base's"]
    return markdown(header, rows)


def _by_batch() -> dict[tuple, Group]:
    found: dict[tuple, Group] = defaultdict(dict)
    for (_, batch, *_rest), group in groups("inference.jsonl").items():
        found["classify", batch].update(group)
    return found


def put(path: Path, tables: dict[str, str]) -> None:
    """Replace what stands between the marks `<!-- NAME -->` and `<!-- end -->`."""
    text = path.read_text()
    for name, table in tables.items():
        before, mark, rest = text.partition(f"<!-- {name} -->")
        _, end, after = rest.partition("<!-- end -->")
        if not mark or not end:
            sys.exit(f"{path}: expected the marks <!-- {name} --> and <!-- end -->, to write the table between them")
        text = f"{before}{mark}\n{table}\n{end}{after}"
    path.write_text(text)


if __name__ == "__main__":
    main_ones = {"loss": loss("float32") + "\n\n" + loss("bfloat16"), "inference": inference()}
    put(LAB, main_ones | {"linear": linear(), "step": step(), "gpu": gpu_table.table()})
    put(EXPLANATION, main_ones | {"loss": loss("float32"), "step-summary": step(("float32",), SUMMARY)})
