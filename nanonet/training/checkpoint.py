"""Checkpoints: the trained parameters and the state of their optimizers, in one file that is written atomically."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from nanonet.errors import InputError
from nanonet.tensor_file import load_tensors, save_tensors

NAME = "checkpoint.safetensors"
STATE = ("exp_avg", "exp_avg_sq", "step")  # of AdamW

Trained = Mapping[str, tuple[nn.Module, Any]]


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of a run.

    run: hash of the settings and the data that decide it; a checkpoint of another run is refused
    every: steps between checkpoints, 0 for none; resume: whether to continue from the one there is
    ensure_ours: raises if another run has replaced the folder
    """

    folder: Path
    run: str
    every: int
    resume: bool
    ensure_ours: Callable[[], None]


def save(checkpoints: Checkpoints, trained: Trained, accelerator: Accelerator, step: int) -> None:
    """Write the state after `step` steps."""
    if accelerator.is_main_process:
        scaler = json.dumps(accelerator.scaler.state_dict() if accelerator.scaler is not None else {})
        checkpoints.ensure_ours()
        metadata = {"run": checkpoints.run, "step": str(step), "scaler": scaler}
        save_tensors(checkpoints.folder / NAME, _tensors(trained), metadata)
    accelerator.wait_for_everyone()


def restore(checkpoints: Checkpoints, trained: Trained, accelerator: Accelerator, steps: int) -> int:
    """Load the checkpoint, if the run is resumed and has one; returns the number of steps done, at most `steps`.

    Raises:
        InputError: it is damaged, or another run's.
    """
    path = checkpoints.folder / NAME
    if not checkpoints.resume or not path.exists():
        return 0
    stored, metadata = load_tensors(path, "delete it to start again")
    expected = {
        f"{name}/{key}{part}": torch.Size() if part == "/step" else parameter.shape
        for name, (module, _) in trained.items()
        for key, parameter in _parameters(module)
        for part in ("", *(f"/{state}" for state in STATE))
    }
    same_run = metadata.get("run") == checkpoints.run and {k: t.shape for k, t in stored.items()} == expected
    if not same_run or not 0 <= int(metadata["step"]) <= steps:
        raise InputError(f"{path}: not a checkpoint of this run; delete it to start again")
    for name, (module, optimizer) in trained.items():
        for key, parameter in _parameters(module):
            parameter.data.copy_(stored[f"{name}/{key}"])
            optimizer.state[parameter] = {
                state: stored[f"{name}/{key}/{state}"].to(parameter.device) for state in STATE
            }
    if accelerator.scaler is not None:
        accelerator.scaler.load_state_dict(json.loads(metadata["scaler"]))
    return int(metadata["step"])


def _parameters(module: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(key, p) for key, p in module.named_parameters() if p.requires_grad]


def _tensors(trained: Trained) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for name, (module, optimizer) in trained.items():
        for key, parameter in _parameters(module):
            tensors[f"{name}/{key}"] = parameter
            for state in STATE:
                tensors[f"{name}/{key}/{state}"] = torch.as_tensor(optimizer.state[parameter][state])
    return tensors
