"""A teacher as a Hugging Face classifier: an encoder, its pooled and L2-normalised embedding, and a linear head on it.

transformers has no such model. Importing this module makes it known to AutoConfig and
AutoModelForSequenceClassification; a program that has one of these folders needs

    import nanonet.models.pooled

B rows, L tokens, D features, C classes.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

from nanonet.models.pairs import model_inputs, without_types
from nanonet.models.parts import want_biases
from nanonet.models.pooling import POOLINGS


@strict
class PooledConfig(PreTrainedConfig):
    """encoder: the config of the encoder, as a dictionary; pooling: mean, cls or max."""

    model_type = "nanonet_pooled"

    encoder: dict[str, Any] | None = None
    pooling: str = "mean"
    hidden_size: int = 384
    vocab_size: int = 30522
    max_position_embeddings: int | None = None
    pad_token_id: int | None = 0
    # of a model of pairs (pairs.py); the encoder's own says whether it takes token types
    text_pair: dict[str, Any] | None = None


class PooledForSequenceClassification(PreTrainedModel):
    """forward: input_ids, attention_mask (B,L) -> logits (B,C)."""

    config: PooledConfig
    config_class = PooledConfig
    base_model_prefix = "encoder"

    def __init__(self, config: PooledConfig) -> None:
        super().__init__(config)
        if config.pooling not in POOLINGS.values():
            raise ValueError(f"its pooling is {config.pooling!r:.40}")
        settings = dict(config.encoder or {"model_type": "bert"})
        self.encoder = AutoModel.from_config(AutoConfig.for_model(settings.pop("model_type"), **settings))
        classes: Any = config.num_labels  # declared so that it may be None
        self.classifier = nn.Linear(config.hidden_size, classes)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        **ignored: Any,  # such as token_type_ids, which some tokenizers return
    ) -> SequenceClassifierOutput:
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        hidden = self.encoder(**model_inputs(self.encoder.config, input_ids, mask)).last_hidden_state
        logits = self.classifier(F.normalize(pool(hidden, mask, self.config.pooling), dim=-1))
        loss = None if labels is None else F.cross_entropy(logits, labels)
        return SequenceClassifierOutput(loss=loss, logits=logits)  # type: ignore[arg-type]

    def get_input_embeddings(self) -> nn.Module:
        return self.encoder.get_input_embeddings()


def pool(hidden: Tensor, mask: Tensor, pooling: str) -> Tensor:
    """One vector (B,D) of every row's hidden states (B,L,D); pooling: mean, cls or max."""
    visible = mask[..., None].to(hidden.dtype)
    if pooling == "cls":
        return hidden[:, 0]
    if pooling == "max":
        return hidden.masked_fill(visible == 0, -torch.inf).amax(1)
    return (hidden * visible).sum(1) / visible.sum(1)


@torch.no_grad()
def pooled_classifier(
    encoder: PreTrainedModel, pooling: str, weight: Tensor, bias: Tensor, classes: list[str], biases: bool = False
) -> PooledForSequenceClassification:
    """The classifier of an encoder and a head, weight (C,D) and bias (C,), on the CPU in eval mode; all is copied.

    biases: create those that the architecture leaves out, as zeros, which changes no output
    """
    settings = copy.deepcopy(encoder.config)
    settings.name_or_path = ""  # the place of the files that it was read from
    if biases:
        want_biases(settings)
    config = PooledConfig(
        encoder=settings.to_dict(),
        pooling=pooling,
        hidden_size=weight.shape[1],
        vocab_size=settings.vocab_size,
        max_position_embeddings=getattr(settings, "max_position_embeddings", None),
        pad_token_id=settings.pad_token_id,
        text_pair=without_types(settings),
        id2label=dict(enumerate(classes)),
        label2id={name: i for i, name in enumerate(classes)},
    )
    with torch.random.fork_rng(devices=[]):
        model = PooledForSequenceClassification(config)
    for name in model.encoder.load_state_dict(encoder.state_dict(), strict=not biases).missing_keys:
        model.encoder.get_parameter(name).zero_()
    model.classifier.weight.copy_(weight)
    model.classifier.bias.copy_(bias)
    return model.eval()


AutoConfig.register(PooledConfig.model_type, PooledConfig)
AutoModelForSequenceClassification.register(PooledConfig, PooledForSequenceClassification)
