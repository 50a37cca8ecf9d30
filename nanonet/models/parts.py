"""Where the parts of a pretrained model lie, found and not written down per architecture.

The layers are the one ModuleList as long as `num_hidden_layers`, the embeddings are the branch that holds the word
embeddings, the head is what lies outside the base model, and a pooler.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from nanonet.errors import InputError


@dataclass(frozen=True)
class Parts:
    """Where the parts of a model lie: prefixes of parameter names, each with its dot."""

    base: str
    embeddings: str
    layers: str

    def of(self, name: str) -> str:
        """embeddings, layers, body (the base's rest, such as a final norm) or head."""
        if name.startswith(self.embeddings):
            return "embeddings"
        if name.startswith(self.layers):
            return "layers"
        inside = name.startswith(self.base) and not name.startswith(self.base + "pooler.")
        return "body" if inside else "head"


def find_parts(model: PreTrainedModel) -> Parts:
    """The parts of an encoder, with or without a head.

    Raises:
        InputError: its layers or embeddings do not lie where those of an encoder do.
    """
    base: Any = model.base_model
    names = {id(module): name for name, module in model.named_modules()}
    depth = getattr(model.config, "num_hidden_layers", None)
    stacks = [m for m in base.modules() if isinstance(m, nn.ModuleList) and len(m) == depth]
    word = names.get(id(base.get_input_embeddings()))
    if len(stacks) != 1 or word is None:
        raise InputError(
            f"--teacher: {type(model).__name__} is no encoder whose layers can be chosen"
            f" ({len(stacks)} lists of {depth} layers); give one such as BERT, RoBERTa or ModernBERT"
        )
    layers = names[id(stacks[0])]
    # the embeddings are the highest branch that leads to the word embeddings and not to the layers
    steps = word.split(".")
    end = next(i for i in range(1, len(steps) + 1) if not (layers + ".").startswith(".".join(steps[:i]) + "."))
    prefix = names[id(base)]
    return Parts(prefix + "." if prefix else "", ".".join(steps[:end]) + ".", layers + ".")
