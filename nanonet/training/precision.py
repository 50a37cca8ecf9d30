"""`--precision auto`: the dtype in which this machine is through with a run first."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor

from nanonet.config.settings import StageSettings
from nanonet.data.batches import Encoded, collate
from nanonet.progress import note
from nanonet.teacher.source import EncoderSource
from nanonet.training.run import Run

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
ROUNDS = 2  # the first one warms up; the faster counts
ROWS = 16  # that the teacher embeds
GAIN = 0.9  # bfloat16 is taken where it needs less than this fraction of the time
SHORT_S = 60.0  # a run that takes less in float32 stays in it, and is the same on every machine


def choose_precision(run: Run) -> Any:
    """float32, or bfloat16 where it saves a tenth of more than SHORT_S: the first process decides for all."""
    chosen = ["float32"]
    if run.accelerator.is_main_process and job_seconds(run, ["float32"], 1)["float32"] > SHORT_S:
        seconds = job_seconds(run, list(DTYPES), ROUNDS)
        if seconds.get("bfloat16", float("inf")) < GAIN * seconds["float32"]:
            chosen = ["bfloat16"]
        shown = ", ".join(f"{name} {s:.0f} s" for name, s in seconds.items())
        note(f"--precision auto: {chosen[0]} (estimated for the teacher's embeddings and the students' steps: {shown})")
    broadcast_object_list(chosen)
    return chosen[0]


def job_seconds(run: Run, names: list[str], rounds: int) -> dict[str, float]:
    """What the teacher's embeddings and the students' steps will take in each of these dtypes that the device can do,
    measured on one batch of each, in turn, so many times.

    Weights, gradients and random numbers are afterwards what they were.
    """
    cohort, batches, source = run.cohort.to(run.device).train(), run.settings.batches, run.source
    ids, mask = _batch(run.data.rows, batches.labelled_batch + batches.unlabelled_batch, run.pad_id, run.device)
    parts: list[tuple[float, Callable[[], Any]]] = [(run.settings.optimizer.steps, lambda: _step(cohort, ids, mask))]
    if isinstance(source, EncoderSource):  # in a cache or not: runs that share one have to choose alike
        encoder, rows = source.encoder, source.data.rows
        encoder.model.eval().to(encoder.device)
        some = _batch(rows, ROWS, encoder.pad_id, encoder.device)
        passes = 2 if run.settings.teacher.tuned else 1
        parts.append((passes * len(rows) / len(some[0]), lambda: torch.inference_mode()(encoder)(*some)))
    can = [name for name in names if name == "float32" or _has_bfloat16(run.device)]
    with torch.random.fork_rng():
        seconds = {name: 0.0 for name in can}
        for count, work in parts:
            times = _fastest(can, work, run.device.type, rounds)
            seconds = {name: seconds[name] + count * times[name] for name in can}
    cohort.eval()
    return seconds


def _batch(rows: Encoded, count: int, pad_id: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """ids and mask (B,L) of at most `count` rows from all over the table."""
    count = min(count, len(rows))
    ids, mask = collate(rows, range(0, len(rows), len(rows) // count)[:count], pad_id)
    return ids.to(device), mask.to(device)


def _step(cohort: torch.nn.Module, ids: Tensor, mask: Tensor) -> None:
    cohort(ids, mask).logits.float().square().mean().backward()
    cohort.zero_grad(set_to_none=True)


def _fastest(names: list[str], work: Callable[[], Any], device: str, rounds: int) -> dict[str, float]:
    """Seconds of `work` in each dtype, the fewest of so many rounds."""
    times: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(rounds):
        for name in names:
            began = time.perf_counter()
            with torch.autocast(device, DTYPES[name], enabled=name != "float32"):
                work()
            if device != "cpu":
                torch.accelerator.synchronize()
            times[name].append(time.perf_counter() - began)
    return {name: min(seconds) for name, seconds in times.items()}


def with_precision(run: Run, settings: StageSettings, accelerator: Accelerator) -> Run:
    """The run under the settings and the accelerator of another precision."""
    settings = replace(settings, teacher=replace(settings.teacher, max_steps=run.settings.teacher.max_steps))
    settings = settings.with_steps(len(run.data.classes))
    return replace(run, settings=settings, accelerator=accelerator, source=run.make_source(settings, accelerator))


def _has_bfloat16(device: torch.device) -> bool:
    return device.type == "cpu" or device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
