"""One process of several of three trainings; run as a program: processes.py FOLDER.

Without torchrun's variables in the environment it is the only one. Writes losses and parameters of each to
FOLDER/RANK.pt.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from support.causal import arguments, collate, make_model, make_rows
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from nanonet import distill_loss
from nanonet.compat.transformers import DistillTrainer

STEPS, ROWS = 3, 8


def sharded(model: torch.nn.Module) -> torch.nn.Module:
    """FSDP2, on the CPU: each layer, then what is left."""
    mesh = dist.init_device_mesh("cpu", (dist.get_world_size(),))
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def fsdp(folder: Path, rank: int, world: int) -> tuple[list[float], torch.nn.Module]:
    """Recipe: fully_shard and a loop."""
    return plain(folder, rank, world, sharded)


def plain(folder: Path, rank: int, world: int, wrap=DistributedDataParallel) -> tuple[list[float], torch.nn.Module]:
    """Recipe: DistributedDataParallel and a loop. Every process divides by the tokens of all of them."""
    model, teacher = make_model(0), make_model(1)
    wrapped = model
    if world > 1:
        store = f"file://{folder}/{wrap.__name__}"
        dist.init_process_group("gloo", init_method=store, rank=rank, world_size=world)
        wrapped = wrap(model)
    optimizer, losses = torch.optim.SGD(model.parameters(), lr=0.1), []
    batch = collate(make_rows(ROWS)[rank::world])  # of another number of tokens in each process
    labels = batch.pop("labels")[:, 1:]
    count = (labels != -100).sum().float()
    if world > 1:
        dist.all_reduce(count)
    for _ in range(STEPS):
        with torch.no_grad():
            p = teacher(**batch).logits[:, :-1]
        q = wrapped(**batch).logits[:, :-1]
        loss, _ = distill_loss(
            q,
            p,
            labels,
            weights=(1.0, 1.0, 0.0),
            row_weight=labels != -100,
            denominators=count.repeat(2) / world,  # the gradients are averaged over the processes
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total = loss.detach() / world
        if world > 1:
            dist.all_reduce(total)
        losses.append(total.item())
    return losses, model


def trainer(folder: Path, rank: int, world: int) -> tuple[list[float], torch.nn.Module]:
    """Recipe: transformers' Trainer under torchrun."""
    size = ROWS // world
    given = arguments(folder / f"{rank}", per_device_train_batch_size=size, optim="sgd", max_steps=STEPS)
    made = DistillTrainer(make_model(0), given, train_dataset=make_rows(ROWS), teacher_model=make_model(1))
    made.train()
    return [line["loss"] for line in made.state.log_history if "loss" in line], made.model


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder, rank, world = Path(sys.argv[1]), int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    results = {}
    for recipe in (plain, fsdp, trainer):
        losses, model = recipe(folder, rank, world)
        parameters = [p.full_tensor() if isinstance(p, DTensor) else p for p in model.parameters()]
        results[recipe.__name__] = {"losses": losses, "parameters": [p.detach() for p in parameters]}
        if dist.is_initialized():
            dist.destroy_process_group()
    torch.save(results, folder / f"{rank}.pt")
