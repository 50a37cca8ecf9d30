"""Tiny random encoders: every parameter drawn anew, so that no zero bias or unit norm hides a mistake."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
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
