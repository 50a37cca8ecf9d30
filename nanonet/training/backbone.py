"""The trunk: all that lies below the heads. Where none of it is trained (`--tuning head`) it runs once for each text.

`entrance` finds the module that a head begins with, `keep_trunk` what this module reads of every text; given that,
`Cohort.forward(..., entering=trunk[rows])` goes on from there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from nanonet.cohort.model import Cohort
from nanonet.data.batches import Encoded
from nanonet.errors import InputError
from nanonet.files import whole_file
from nanonet.inference.forward import run
from nanonet.models.dummy_inputs import alike, probe


@dataclass(frozen=True, eq=False)
class Trunk:
    """What the module `head` reads of N texts: (K,N,D) float32, on the CPU or in a file."""

    head: str
    read: Tensor

    def __getitem__(self, rows: Sequence[int]) -> dict[str, Tensor]:
        return {self.head: self.read[:, rows]}


@torch.no_grad()
def entrance(cohort: Cohort) -> str | None:
    """The module of the head that runs first, if a head can go on from what it reads: one vector a row.

    None where something below it is trained, or where going on from there gives other logits.
    """
    trained = {name for name, parameter in cohort.model.named_parameters() if parameter.requires_grad}
    if any(cohort.parts.of(name) != "head" for name in trained):
        return None
    entered: list[tuple[str, tuple[int, ...]]] = []  # a module and the shape that it reads
    owners = sorted({name.rpartition(".")[0] for name in trained})
    hooks = [
        cohort.model.get_submodule(name).register_forward_pre_hook(
            lambda module, given, name=name: entered.append((name, tuple(given[0].shape) if given else ()))
        )
        for name in owners
    ]
    ids, mask = probe(cohort.model.config, next(cohort.parameters()).device)
    training = cohort.training
    cohort.eval()
    try:
        logits = cohort(ids, mask, chunk=cohort.students)
        head, shape = entered[0]
        if shape[:-1] != (cohort.students * len(ids),):
            return None
        seen = cohort(ids, mask, features=head)
        again = cohort(ids, mask, entering={head: seen[..., logits.shape[-1] :]})
    finally:
        cohort.train(training)
        for hook in hooks:
            hook.remove()
    return head if alike(again, logits) else None


def keep_trunk(
    cohort: Cohort,
    rows: Encoded,
    pad_id: int,
    device: torch.device,
    done: Callable[[int], Any] = lambda rows: None,
) -> Trunk | None:
    """What the heads of an evaluated cohort read of every text; None where they read what is still trained."""
    head = entrance(cohort)
    if head is None:
        return None
    classes: Any = cohort.model.config.num_labels
    seen = run(partial(cohort.eval(), features=head), rows, pad_id, device, done=done)
    return Trunk(head, seen[..., classes:].clone())  # a tensor of its own: it must not be one of inference mode


def mapped(path: Path, make: Callable[[], Trunk | None]) -> Trunk | None:
    """The trunk in this file, read from it as rows are asked for; made and written first where there is none."""
    if not path.exists():
        trunk = make()
        if trunk is None:
            return None
        with whole_file(path) as temporary:
            save_file({trunk.head: trunk.read}, temporary)
    return open_trunk(path)


def open_trunk(path: Path) -> Trunk:
    """The trunk in this file, nothing of it read yet.

    Raises:
        InputError: it is damaged.
    """
    try:
        with safe_open(path, "pt") as file:
            (head,) = file.keys()
            return Trunk(head, file.get_tensor(head))
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{path}: damaged ({error}); delete it") from error
