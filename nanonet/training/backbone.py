"""Cached backbone features: where only heads are trained (`--tuning head`), everything below them runs once per text.

`find_head_input` names the module that a head begins with, `compute_backbone_features` stores the input of that module
for every text, and `Cohort.forward(..., head_input=features[rows])` continues from there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from nanonet.cohort.model import Cohort
from nanonet.data.batches import Encoded
from nanonet.errors import InputError
from nanonet.files import atomic_write
from nanonet.inference.forward import run
from nanonet.models.dummy_inputs import dummy_inputs, same_logits


@dataclass(frozen=True, eq=False)
class BackboneFeatures:
    """What the module `head` reads of N texts: (K,N,D) float32, on the CPU or in a file."""

    head: str
    read: Tensor

    def __getitem__(self, rows: Sequence[int]) -> dict[str, Tensor]:
        return {self.head: self.read[:, rows]}


@torch.no_grad()
def find_head_input(cohort: Cohort) -> str | None:
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
    ids, mask = dummy_inputs(cohort.model.config, next(cohort.parameters()).device)
    training = cohort.training
    cohort.eval()
    try:
        logits = cohort(ids, mask, chunk=cohort.students).logits
        head, shape = entered[0]
        if shape[:-1] != (cohort.students_at_once * len(ids),):
            return None
        seen = cohort(ids, mask, features=head).features
        again = cohort(ids, mask, head_input={head: seen}).logits
    finally:
        cohort.train(training)
        for hook in hooks:
            hook.remove()
    return head if same_logits(again, logits) else None


def compute_backbone_features(
    cohort: Cohort,
    rows: Encoded,
    pad_id: int,
    device: torch.device,
    done: Callable[[int], Any] = lambda rows: None,
) -> BackboneFeatures | None:
    """What the heads of an evaluated cohort read of every text; None where they read what is still trained."""
    head = find_head_input(cohort)
    if head is None:
        return None
    cohort.eval()
    seen = run(lambda ids, mask: cohort(ids, mask, features=head).features, rows, pad_id, device, done=done)
    # cloned: a tensor made in inference mode cannot be trained on
    return BackboneFeatures(head, seen.clone())


def cached_backbone_features(path: Path, make: Callable[[], BackboneFeatures | None]) -> BackboneFeatures | None:
    """The backbone in this file, read from it as rows are asked for; made and written first where there is none."""
    if not path.exists():
        backbone = make()
        if backbone is None:
            return None
        with atomic_write(path) as temporary:
            save_file({backbone.head: backbone.read}, temporary)
    return open_backbone_features(path)


def open_backbone_features(path: Path) -> BackboneFeatures:
    """The backbone in this file, nothing of it read yet.

    Raises:
        InputError: it is damaged.
    """
    try:
        with safe_open(path, "pt") as file:
            (head,) = file.keys()
            return BackboneFeatures(head, file.get_tensor(head))
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{path}: damaged ({error}); delete it") from error
