"""The processes and the precision of a run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs, parse_flag_from_env
from torch import distributed

from nanonet.device import device
from nanonet.errors import InputError
from nanonet.processes import Processes

TIMEOUT = timedelta(days=1)  # of the processes that wait for one that works alone
PRECISION = {"auto": "no", "float32": "no", "bfloat16": "bf16", "float16": "fp16"}


def launch(precision: str, tensorboard: bool, folder: Path) -> Accelerator:
    """Join the processes of the run.

    Raises:
        InputError: a launcher that is not supported, or a precision that the device does not have.
    """
    for kind in ("FSDP", "DEEPSPEED", "MEGATRON_LM"):  # on a CPU Accelerate would silently run DDP instead
        if parse_flag_from_env(f"ACCELERATE_USE_{kind}"):
            raise InputError(
                f"accelerate launch: {kind} cuts weights over processes; a cohort is small and clipped student by"
                " student; launch with --multi_gpu (DDP) instead"
            )
    if precision == "float16" and device().type == "cpu":
        raise InputError("--precision float16: a CPU has no float16 arithmetic of its own; give bfloat16 or float32")
    AcceleratorState._reset_state()  # a process may run several jobs, each in its own precision
    with matmul_precision_restored():
        return Accelerator(
            cpu=device().type == "cpu",  # else Accelerate would not connect the processes of torchrun
            mixed_precision=PRECISION[precision],
            log_with="tensorboard" if tensorboard else None,
            project_dir=folder,
            kwargs_handlers=[
                InitProcessGroupKwargs(timeout=TIMEOUT),
                DistributedDataParallelKwargs(gradient_as_bucket_view=True),  # else they are copied once more
            ],
        )


def processes_of(accelerator: Accelerator) -> Processes:
    return Processes(accelerator.process_index, accelerator.num_processes, accelerator.device)


@contextmanager
def ends_with_the_others(accelerator: Accelerator) -> Iterator[None]:
    """Within, a process that finds another one gone ends with one line: that one has said what is wrong.

    Raises:
        InputError: says so.
    """
    try:
        yield
    except RuntimeError as error:
        lost = isinstance(error, distributed.DistError) or "gloo" in str(error)  # gloo raises no class of its own
        if accelerator.num_processes == 1 or not lost:
            raise
        raise InputError("another process of this run has ended; what it says is the reason") from error


@contextmanager
def matmul_precision_restored() -> Iterator[None]:
    """Restore the precision of float32 products at the end: with a compiler Accelerate turns TF32 on permanently."""
    before = torch.get_float32_matmul_precision()
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
