"""Context managers that capture or replace what a module reads while a model runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor, nn


@contextmanager
def captured_input(model: nn.Module, name: str) -> Iterator[list[Tensor]]:
    """Yields a list that receives the first argument of every call of the module `name`; "" captures nothing."""
    inputs: list[Tensor] = []
    if not name:
        yield inputs
        return
    hook = model.get_submodule(name).register_forward_pre_hook(lambda module, given: inputs.append(given[0]))
    try:
        yield inputs
    finally:
        hook.remove()


@contextmanager
def replaced_inputs(model: nn.Module, replacements: Mapping[str, Tensor]) -> Iterator[None]:
    """Within, each named module reads its replacement in place of its first and only argument."""
    hooks = [
        model.get_submodule(name).register_forward_pre_hook(lambda *_, value=value: (value,))
        for name, value in replacements.items()
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
