"""Cached backbone features: where only heads are trained (`--tuning head`), the layers below run once per text.

`find_head_input` names the module that a head begins with, `compute_backbone_features` stores the input of that module
for every text, and `Cohort.forward(..., head_input=features[rows])` continues from there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nanonet.cohort.model import Cohort
from nanonet.data.batches import Encoded
from nanonet.errors import InputError
from nanonet.inference.forward import run
from nanonet.models.dummy_inputs import dummy_inputs, same_logits
from nanonet.processes import ALONE, Processes
from nanonet.tensor_file import load_tensors, save_tensors


@dataclass(frozen=True, eq=False)
class BackboneFeatures:
    """The input of the module `head` for N texts: (K,N,D) float32, on the CPU or in a file."""

    head: str
    features: Tensor

    def __getitem__(self, rows: Sequence[int]) -> dict[str, Tensor]:
        return {self.head: self.features[:, rows]}


@torch.no_grad()
def find_head_input(cohort: Cohort) -> str | None:
    """The first module of the head, if its input is one vector a row and determines the logits.

    None if the head's input still changes during training, or if a forward from there gives other logits.
    """
    trained = {name for name, parameter in cohort.model.named_parameters() if parameter.requires_grad}
    if any(cohort.parts.of(name) != "head" for name in trained):
        return None
    calls: list[tuple[str, tuple[int, ...]]] = []  # a module and the shape of its input
    owners = sorted({name.rpartition(".")[0] for name in trained})
    hooks = [
        cohort.model.get_submodule(name).register_forward_pre_hook(
            lambda module, inputs, name=name: calls.append((name, tuple(inputs[0].shape) if inputs else ()))
        )
        for name in owners
    ]
    ids, mask = dummy_inputs(cohort.model.config, next(cohort.parameters()).device)
    training = cohort.training
    cohort.eval()
    try:
        logits = cohort(ids, mask, chunk=cohort.students).logits
        head, shape = calls[0]
        if shape[:-1] != (cohort.students_at_once * len(ids),):
            return None
        features = cohort(ids, mask, features=head).features
        resumed = cohort(ids, mask, head_input={head: features}).logits
    finally:
        cohort.train(training)
        for hook in hooks:
            hook.remove()
    return head if same_logits(resumed, logits) else None


def compute_backbone_features(
    cohort: Cohort,
    rows: Encoded,
    pad_id: int,
    device: torch.device,
    done: Callable[[int], Any] = lambda rows: None,
    processes: Processes = ALONE,
) -> BackboneFeatures | None:
    """The input of the heads for every text, in eval mode; None if it still changes during training. The processes
    divide the texts."""
    head = find_head_input(cohort)
    if head is None:
        return None
    cohort.eval()

    def forward(ids: Tensor, mask: Tensor) -> Tensor:
        features: Tensor = cohort(ids, mask, features=head).features
        return features

    features = run(forward, rows, pad_id, device, done=done, processes=processes)
    # cloned: a tensor made in inference mode cannot be trained on
    return BackboneFeatures(head, features.clone())


def cached_backbone_features(
    path: Path, make: Callable[[], BackboneFeatures | None], processes: Processes = ALONE
) -> BackboneFeatures | None:
    """The features in this file, mapped into memory. If there is no such file, all processes make them, and the first
    one writes it."""
    if not processes.from_first(path.exists):
        made = make()
        if made is None:
            return None
        processes.from_first(lambda: save_tensors(path, {made.head: made.features}, {}))
    return open_backbone_features(path)


def open_backbone_features(path: Path) -> BackboneFeatures:
    """The features in this file, mapped into memory.

    Raises:
        InputError: it is damaged.
    """
    tensors, _ = load_tensors(path, "delete it")
    if len(tensors) != 1:
        raise InputError(f"{path}: damaged ({len(tensors)} tensors instead of one); delete it")
    ((head, features),) = tensors.items()
    return BackboneFeatures(head, features)
