"""`--precision auto`: the dtype in which this machine makes a step of this run fastest."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from nanonet.config.settings import StageSettings
from nanonet.data.batches import collate
from nanonet.progress import note
from nanonet.training.run import Run

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
ROUNDS = 3  # timed after one that warms up; the fastest counts
GAIN = 0.9  # bfloat16 is taken where a step needs less than this fraction of the time


def choose_precision(run: Run) -> Any:
    """float32, or bfloat16 where it is faster by a tenth: forward and backward of the students are timed. The first
    process decides for all."""
    chosen = [""]
    if run.accelerator.is_main_process:
        times_ms = {name: 1000 * seconds for name, seconds in step_times(run).items()}
        faster = times_ms.get("bfloat16", float("inf")) < GAIN * times_ms["float32"]
        chosen = ["bfloat16" if faster else "float32"]
        shown = ", ".join(f"{name} {ms:.1f} ms" for name, ms in times_ms.items())
        note(f"--precision auto: {chosen[0]} (a step takes {shown})")
    broadcast_object_list(chosen)
    return chosen[0]


def step_times(run: Run) -> dict[str, float]:
    """The time [s] of a step in each dtype that the device can do, the fastest of ROUNDS, taken in turn.

    Weights, gradients and random numbers are afterwards what they were.
    """
    cohort, device, batches = run.cohort.to(run.device).train(), run.device, run.settings.batches
    count = min(batches.labelled_batch + batches.unlabelled_batch, len(run.data.rows))
    spread = range(0, len(run.data.rows), len(run.data.rows) // count)
    ids, mask = (t.to(device) for t in collate(run.data.rows, spread[:count], run.pad_id))
    can = {name: dtype for name, dtype in DTYPES.items() if dtype == torch.float32 or _has_bfloat16(device)}
    times: dict[str, list[float]] = {name: [] for name in can}
    with torch.random.fork_rng():
        for _ in range(ROUNDS + 1):
            for name, dtype in can.items():
                began = time.perf_counter()
                with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                    loss = cohort(ids, mask).logits.float().square().mean()
                loss.backward()
                if device.type != "cpu":
                    torch.accelerator.synchronize()
                times[name].append(time.perf_counter() - began)
                cohort.zero_grad(set_to_none=True)
    cohort.eval()
    return {name: min(seconds[1:]) for name, seconds in times.items()}


def with_precision(run: Run, settings: StageSettings, accelerator: Accelerator) -> Run:
    """The run under the settings and the accelerator of another precision."""
    settings = replace(settings, teacher=replace(settings.teacher, max_steps=run.settings.teacher.max_steps))
    settings = settings.with_steps(len(run.data.classes))
    return replace(run, settings=settings, accelerator=accelerator, source=run.make_source(settings, accelerator))


def _has_bfloat16(device: torch.device) -> bool:
    return device.type == "cpu" or device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
