"""Where the parts of a pretrained model lie, found and not written down per architecture.

The layers are the one ModuleList as long as `num_hidden_layers`. The embeddings are the branch that holds the word
embeddings. The head is what lies outside the base model, and a pooler.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from transformers import PreTrainedModel

from nanonet.errors import InputError
from nanonet.models.dummy_inputs import dummy_inputs
from nanonet.models.pairs import model_inputs

Part = Literal["embeddings", "layers", "other", "head"]
# settings of a config that are lists with one entry per layer
PER_LAYER = ("layer_types", "attention_window")
# ModernBERT's ways to have no biases; tuning them needs them created
BIAS_FLAGS = ("attention_bias", "mlp_bias", "norm_bias", "classifier_bias")


@dataclass(frozen=True)
class Parts:
    """Where the parts of a model lie: prefixes of parameter names, each with its dot."""

    base: str
    embeddings: str
    layers: str

    def of(self, name: str) -> Part:
        """The part that a parameter belongs to. `other` is the rest of the base model, such as a final norm."""
        if name.startswith(self.embeddings):
            return "embeddings"
        if name.startswith(self.layers):
            return "layers"
        inside = name.startswith(self.base) and not name.startswith(self.base + "pooler.")
        return "other" if inside else "head"


def find_parts(model: PreTrainedModel) -> Parts:
    """The parts of an encoder, with or without a head.

    Raises:
        InputError: its layers or embeddings do not lie where those of an encoder do.
    """
    base: Any = model.base_model
    names = {id(module): name for name, module in model.named_modules()}
    depth = getattr(base.config, "num_hidden_layers", None)
    stacks = [m for m in base.modules() if isinstance(m, nn.ModuleList) and len(m) == depth]
    try:
        word = names.get(id(base.get_input_embeddings()))
    except NotImplementedError:  # there is not one table of words, but none or several
        word = None
    if len(stacks) != 1 or word is None:
        found = f"{len(stacks)} lists of {depth} layers" if len(stacks) != 1 else "no table of words"
        raise InputError(
            f"--teacher: {type(model).__name__} is no encoder whose layers can be chosen"
            f" ({found}); give one such as BERT, RoBERTa or ModernBERT"
        )
    layers = names[id(stacks[0])]
    # the embeddings are the highest branch that leads to the word embeddings and not to the layers
    steps = word.split(".")
    end = next(i for i in range(1, len(steps) + 1) if not (layers + ".").startswith(".".join(steps[:i]) + "."))
    prefix = names[id(base)]
    return Parts(prefix + "." if prefix else "", ".".join(steps[:end]) + ".", layers + ".")


def want_biases(config: Any) -> None:
    """Let a config ask for the biases that its architecture leaves out."""
    for flag in BIAS_FLAGS:
        if getattr(config, flag, None) is False:
            setattr(config, flag, True)


@torch.no_grad()
def find_classifier_layer(model: PreTrainedModel) -> str:
    """Name of the linear layer that makes the logits: the last one that runs in a forward.

    By a trace, because modules may be registered in another order (XLM-R registers its head before its layers).
    """
    ran: list[str] = []
    hooks = [
        module.register_forward_pre_hook(lambda *_, name=name: ran.append(name))
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
    ]
    ids, mask = dummy_inputs(model.config, model.device)
    training = model.training
    try:
        model.eval()(**model_inputs(model.config, ids, mask))
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
    return ran[-1]
