"""One training step of K students: teacher, forward, loss, backward, clipping, optimizer.

    nanonet bench --step --data DIR

cohort            K students in one model, logits of the frozen teacher cached before the training
cohort-online     as `cohort`, with the teacher's forward in the step
cohort-padded     on a CPU: as `cohort`, every row padded to the longest of the step
cohort-grouped    on a CPU: as `cohort`, every row padded to the longest of its group of rows of similar length
cohort-packed     on a GPU: as `cohort`, no layer sees padding
cohort-checkpoint as `cohort`, a student's activations recomputed in the backward
cohort-uncached   only the head is trained: as `cohort`, but the frozen layers run in every step; `cohort` reads
                  their cached output
eager-loop        K plain models, pairwise losses in eager torch, dynamic padding; the teacher runs in the step
peft-loop         the same with PEFT's LoRA models
eager-loop-cached the loop with cached logits of the teacher: the share of this saving alone
eager-loop-256    the loop padded to 256 tokens, as the papers' programs do
cohort-graph      on a GPU: `cohort`, its forward and backward replayed as CUDA graphs, one for each padded length, of
                  which there are few: rows are padded to a multiple of 64 tokens

All read the same batches of real lengths. Peak memory is measured in a process of its own, beyond the start-up.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from functools import partial
from itertools import cycle, product
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from nanonet.benchmarks.measure import each_ms, peak_mb, record, times_ms
from nanonet.benchmarks.step_programs import Batch, Case, make_step
from nanonet.config.train import Tuning
from nanonet.data.batches import collate, encode
from nanonet.data.read import load_dataset
from nanonet.errors import InputError
from nanonet.models.load import load_tokenizer

BATCHES, LABELLED = 8, 1 / 3  # batches in turn; the labelled share of a batch
FIXED_TOKENS, MEMORY_STEPS = 256, 4
SECONDS = {"cpu": 4.0, "cuda": 1.0}  # of each implementation
GRAPH_VISITS = 3  # of each length: to warm up, to record, to replay
GRAPH_TOKENS = 64  # that a graph's length is a multiple of: each takes seconds to record


def implementations(case: Case) -> tuple[str, ...]:
    loop = "peft-loop" if case.tuning == "lora" else "eager-loop"
    loops = loop, "eager-loop-cached", "eager-loop-256"
    if case.tuning == "head":
        return "cohort", "cohort-uncached", *loops
    every = "cohort", "cohort-online", "cohort-checkpoint", *loops
    own = ("cohort-padded", "cohort-grouped") if case.device == "cpu" else ("cohort-packed", "cohort-graph")
    return *every, *own


def batches(case: Case, tokens: int = 0) -> tuple[list[Batch], int]:
    """Batches of ids, mask (B,L), label (B,), teacher's logits (B,C); and the number of classes.

    The rows are the first of the train texts, as they come; `tokens` pads to a fixed length.
    """
    dataset = load_dataset(case.data)
    tokenizer = load_tokenizer(case.teacher)
    rows, C = case.batch * BATCHES, len(dataset.classes)
    encoded = encode(tokenizer, dataset.train.texts[:rows], tokens or 128)
    labels = torch.tensor((dataset.train.labels or [])[:rows])
    g = torch.Generator().manual_seed(0)
    made = []
    for begin in range(0, rows, case.batch):
        own = list(range(begin, begin + case.batch))
        ids, mask = collate(encoded, own, tokenizer.pad_token_id)
        missing = max(0, tokens - ids.shape[1])
        ids, mask = F.pad(ids, (0, missing), value=tokenizer.pad_token_id), F.pad(mask, (0, missing))
        label = labels[own]
        label[round(LABELLED * case.batch) :] = -100
        made.append(tuple(t.to(case.device) for t in (ids, mask, label, 2 * torch.randn(case.batch, C, generator=g))))
    return made, C


def rounded(some: list[Batch]) -> list[Batch]:
    """The same batches in few lengths: padded to the next multiple of GRAPH_TOKENS."""
    made = []
    for ids, mask, *others in some:
        missing = -ids.shape[1] % GRAPH_TOKENS
        made.append((F.pad(ids, (0, missing)), F.pad(mask, (0, missing)), *others))
    return made


def over(step: Callable[[Batch], float], some: list[Batch]) -> Callable[[], float]:
    """One step a call, on the batches in turn."""
    turn = cycle(some)
    return lambda: step(next(turn))


def visited_ms(runs: dict[str, Callable[[], float]], steps: int, seconds: float) -> dict[str, np.ndarray]:
    """Times [ms] after so many steps of each: the cached features of a batch, and the tiles and
    graph of its length, are made before the timing."""
    for run in runs.values():
        for _ in range(steps):
            run()
    return times_ms(runs, seconds)


def memory_mb(name: str, case: Case) -> float:
    """Peak memory of a step [MB] beyond that of the process before its models, in a process of its own."""
    command = [sys.executable, "-m", "nanonet.benchmarks.bench_step", name, json.dumps(asdict(case))]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise InputError(f"the memory of {name} could not be measured: {done.stderr.strip().splitlines()[-1]}")
    return float(done.stdout)


def records(
    students: tuple[int, ...],
    tunings: tuple[Tuning, ...],
    dtypes: tuple[str, ...],
    case: Case,
    memory: bool = True,
    seconds: float | None = None,
) -> Iterator[dict[str, Any]]:
    """One record for each K, tuning, dtype and implementation of `case`; on a CPU they take their steps in turn."""
    dynamic, C = batches(case)
    fixed, few = batches(case, FIXED_TOKENS)[0], rounded(dynamic)
    for dtype, tuning, K in product(dtypes, tunings, students):
        own = replace(case, K=K, tuning=tuning, dtype=dtype)
        names = implementations(own)
        of = {"eager-loop-256": fixed, "cohort-graph": few}
        runs = {name: over(make_step(name, own, C), of.get(name, dynamic)) for name in names}
        visits = GRAPH_VISITS if case.device != "cpu" else int(tuning == "head")
        clock = partial(visited_ms, steps=visits * len(dynamic), seconds=seconds or SECONDS[case.device])
        times = clock(runs).items() if case.device == "cpu" else each_ms(runs, clock, names[1:])
        for name, values in times:
            yield record(
                "step",
                {"K": K, "N": case.batch, "C": C},
                dtype,
                case.device,
                name,
                values,
                peak_mem_mb=round(memory_mb(name, own), 1) if memory else None,
                K=K,
                tuning=tuning,
                layers=2,
                data=Path(case.data).name,
                rows_per_s=round(case.batch / float(values.mean()) * 1e3, 1),
            )


def main() -> None:
    """Print the peak memory [MB] of one implementation: what `memory_mb` starts."""
    name, case = sys.argv[1], Case(**json.loads(sys.argv[2]))
    some, C = batches(case, FIXED_TOKENS if name.endswith("256") else 0)

    def train() -> None:
        run = over(make_step(name, case, C), some)
        for _ in range(MEMORY_STEPS):
            run()

    print(peak_mb(train, case.device, warm=False))


if __name__ == "__main__":
    main()
