"""Tiny random encoders: every parameter drawn anew, so that no zero bias or unit norm hides a mistake."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn
from transformers import (
    BertConfig,
    DebertaV2Config,
    DistilBertConfig,
    ElectraConfig,
    ModernBertConfig,
    MPNetConfig,
    PreTrainedModel,
    RobertaConfig,
)
from transformers.models.auto import AutoModel

from nanonet.cohort.build import plain_student

COMMON = {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 6, "num_attention_heads": 4}
WIDE = {**COMMON, "intermediate_size": 48, "max_position_embeddings": 64}
CONFIGS = {
    "bert": BertConfig(**WIDE),
    "roberta": RobertaConfig(**WIDE),
    "modernbert": ModernBertConfig(
        **WIDE, local_attention=8, pad_token_id=0, bos_token_id=1, cls_token_id=1, eos_token_id=2, sep_token_id=2
    ),
    "distilbert": DistilBertConfig(vocab_size=97, dim=32, n_layers=6, n_heads=4, hidden_dim=48),
    "electra": ElectraConfig(**WIDE, embedding_size=16),
    "mpnet": MPNetConfig(**WIDE),
    "deberta": DebertaV2Config(**WIDE, relative_attention=True, pos_att_type=["c2p", "p2c"]),
}


LABELS = ["a", "b", "c"]
# students that share a layer in one slot and not in the other; all of one attention type per slot for ModernBERT
MAPPING = [[0, 5], [0, 4], [0, 2]]


@pytest.fixture
def make_teacher() -> Callable[..., PreTrainedModel]:
    def make(kind: str) -> PreTrainedModel:
        torch.manual_seed(0)
        model = AutoModel.from_config(copy.deepcopy(CONFIGS[kind]))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(torch.randn_like(parameter) * 0.2 + (parameter == 1))
        return model.eval()

    return make


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask (6,11), the rows of different lengths."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(5, 97, (6, 11), generator=generator)
    length = torch.tensor([11, 9, 11, 4, 3, 7])
    mask = (torch.arange(11) < length[:, None]).long()
    return torch.where(mask == 1, ids, 1), mask


@pytest.fixture
def models_of() -> Callable[[PreTrainedModel, str], list[PreTrainedModel]]:
    """Three plain students of a teacher, tuned in one way."""
    return lambda teacher, tuning: [
        plain_student(teacher, layers, LABELS, tuning, k) for k, layers in enumerate(MAPPING)
    ]


@pytest.fixture
def gradients_of() -> Callable[[nn.Module, torch.Tensor], dict[str, torch.Tensor]]:
    """The gradients by name of a loss that weighs every logit differently."""

    def gradients(module: nn.Module, logits: torch.Tensor) -> dict[str, torch.Tensor]:
        module.zero_grad()
        weight = torch.linspace(-1, 1, logits[0].numel()).view(logits[0].shape)
        (logits * weight).sum().backward()
        return {name: p.grad for name, p in module.named_parameters() if p.grad is not None}

    return gradients
