"""The processes, the precision and the threads that a run has."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import InitProcessGroupKwargs, parse_flag_from_env

from nanonet.config.train import TrainConfig
from nanonet.device import device
from nanonet.errors import InputError

PATIENCE = timedelta(days=1)  # with which processes wait for the one that makes the teacher
PRECISION = {"float32": "no", "bfloat16": "bf16", "float16": "fp16"}


def launch(config: TrainConfig, folder: Path) -> Accelerator:
    """This process's place among those of the run.

    Raises:
        InputError: a launcher or a precision that there is no arithmetic for.
    """
    for kind in ("FSDP", "DEEPSPEED", "MEGATRON_LM"):  # on a CPU Accelerate would run DDP instead and say nothing
        if parse_flag_from_env(f"ACCELERATE_USE_{kind}"):
            raise InputError(
                f"accelerate launch: {kind} cuts weights over processes; a cohort is small and clipped student by"
                " student; launch with --multi_gpu (DDP) instead"
            )
    if config.precision == "float16" and device().type == "cpu":
        raise InputError("--precision float16: a CPU has no float16 arithmetic of its own; give bfloat16 or float32")
    AcceleratorState._reset_state()  # a process may run several jobs, each in its own precision
    with products_as_they_are():
        return Accelerator(
            cpu=device().type == "cpu",  # else Accelerate would leave each process of torchrun by itself there
            mixed_precision=PRECISION[config.precision],
            log_with="tensorboard" if config.tensorboard else None,
            project_dir=folder,
            kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)],
        )


@contextmanager
def products_as_they_are() -> Iterator[None]:
    """Afterwards float32 products are as exact as they were: for a compiler Accelerate turns TF32 on, for good."""
    before = torch.get_float32_matmul_precision()
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
