"""Peak learning rates, their schedule, AdamW over stacked tensors, and clipping student by student."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable

import torch
from torch import Tensor, nn

from nanonet.cohort.model import Cohort, matrix_names
from nanonet.config.settings import OptimizerSettings

LEARNING_RATE = {"bias": 2e-2, "lora": 1e-3, "full": 5e-4, "head": 1e-2}
# the teacher is deeper and its pretrained layers are all it has: it learns more slowly than its students
TEACHER_LEARNING_RATE = {"bias": 1e-3, "lora": 5e-4, "full": 5e-5, "head": 1e-2}


def learning_rate(settings: OptimizerSettings, step: int, peak: float) -> float:
    """The learning rate of `step`, counted from 0: a linear rise over the warm-up, then the schedule."""
    warm = max(1, round(settings.warmup * settings.steps))
    if step < warm:
        return peak * (step + 1) / warm
    done = (step - warm) / max(1, settings.steps - warm)
    decay = {"linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2, "constant": 1.0}
    return peak * decay[settings.schedule]


def make_optimizer(cohort: Cohort, weight_decay: float) -> torch.optim.Optimizer:
    """AdamW over the trained parameters. Decay is chosen by name: by dimensions, a stacked bias would be decayed."""
    decayed = matrix_names(cohort)
    groups: dict[float, list[nn.Parameter]] = {weight_decay: [], 0.0: []}
    for name, parameter in cohort.named_parameters():
        if parameter.requires_grad:
            groups[weight_decay if name in decayed else 0.0].append(parameter)
    return torch.optim.AdamW([{"params": p, "weight_decay": d} for d, p in groups.items() if p], lr=0.0, fused=True)


def step_all(optimizers: Collection[torch.optim.Optimizer], scaler: torch.amp.GradScaler | None) -> None:
    """Step every optimizer, whose gradients are unscaled already, and clear them; then update their common scale."""
    for optimizer in optimizers:
        optimizer.step() if scaler is None else scaler.step(optimizer)
        optimizer.zero_grad()
    if scaler is not None:
        scaler.update()


def clip_per_student(parameters: Iterable[Tensor], max_norm: float) -> Tensor:
    """Scale the gradients of each student to a norm of at most `max_norm`; returns the norms before, (K,).

    Every trained parameter is stacked, (K, ...). Under a joint norm one student's spike would shrink its peers' steps.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    norms = torch.stack([g.flatten(1).float().square().sum(1) for g in gradients]).sum(0).sqrt()
    if max_norm > 0:
        factor = (max_norm / (norms + 1e-6)).clamp(max=1.0)
        for g in gradients:
            g.mul_(factor.to(g.dtype).view(-1, *[1] * (g.dim() - 1)))
    return norms
