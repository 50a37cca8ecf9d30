"""Checkpoints: what is trained and the state of its optimizer, in one safetensors file that is whole or not there."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from nanonet.config.train import TrainConfig
from nanonet.errors import InputError
from nanonet.files import atomic_write

NAME = "checkpoint.safetensors"
# what may differ between a run and its resumption
FREE = {"output", "resume", "overwrite", "save_every", "threads", "tensorboard", "max_test", "teacher_cache"}

Trained = Mapping[str, tuple[nn.Module, Any]]


def save(folder: Path, trained: Trained, accelerator: Accelerator, step: int) -> None:
    """Write the state after `step` steps."""
    if accelerator.is_main_process:
        tensors = {name: t.detach().cpu().contiguous() for name, t in _tensors(trained).items()}
        scaler = json.dumps(accelerator.scaler.state_dict() if accelerator.scaler is not None else {})
        with atomic_write(folder / NAME) as temporary:
            save_file(tensors, temporary, {"step": str(step), "scaler": scaler})
    accelerator.wait_for_everyone()


def changes(old: Mapping[str, Any], config: TrainConfig) -> str:
    """Which settings that decide the result differ between a run's config.yaml and `config`; "" if none does."""
    new = {key: value for key, value in dataclasses.asdict(config).items() if key not in FREE}
    return ", ".join(f"{key} {old.get(key)!r} -> {value!r}" for key, value in new.items() if old.get(key) != value)


def restore(folder: Path, trained: Trained, accelerator: Accelerator) -> int:
    """Load the checkpoint of `folder` into what is trained; returns the steps it has done, 0 where there is none.

    Raises:
        InputError: it is damaged.
    """
    path = folder / NAME
    if not path.exists():
        return 0
    try:
        with safe_open(path, "pt") as file:
            stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            step, scaler = int(file.metadata()["step"]), json.loads(file.metadata()["scaler"])
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: damaged checkpoint ({error}); delete it to start again") from error
    wanted = {
        f"{name}/{key}{part}": torch.Size() if part == "/step" else parameter.shape
        for name, (module, _) in trained.items()
        for key, parameter in _parameters(module)
        for part in ("", "/exp_avg", "/exp_avg_sq", "/step")
    }
    if step < 0 or any(name not in stored or stored[name].shape != shape for name, shape in wanted.items()):
        raise InputError(f"{path}: not a checkpoint of this run; delete it to start again")
    for name, (module, optimizer) in trained.items():
        for key, parameter in _parameters(module):
            parameter.data.copy_(stored[f"{name}/{key}"])
            own = {part: stored[f"{name}/{key}/{part}"] for part in ("exp_avg", "exp_avg_sq", "step")}
            optimizer.state[parameter] = {part: value.to(parameter.device) for part, value in own.items()}
    if accelerator.scaler is not None:
        accelerator.scaler.load_state_dict(scaler)
    return step


def _parameters(module: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(key, p) for key, p in module.named_parameters() if p.requires_grad]


def _tensors(trained: Trained) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for name, (module, optimizer) in trained.items():
        for key, parameter in _parameters(module):
            tensors[f"{name}/{key}"] = parameter
            for part in ("exp_avg", "exp_avg_sq", "step"):
                tensors[f"{name}/{key}/{part}"] = torch.as_tensor(optimizer.state[parameter][part])
    return tensors
