"""A text classifier of word vectors as a Hugging Face model: their weighted mean, the first ones, a small dense head.

    word vectors -> mean over the text, each piece by its own trained weight, beside the vectors of the first pieces
                 -> dense -> head

The first words of a question say what it asks for; the order of the others is not seen. Of a pair the mean is taken
over each text, and the two are matched (pairs.py), without the first pieces.

Importing this module makes it known to AutoConfig and AutoModelForSequenceClassification. A program that has one of
these folders needs

    import nanonet.models.static
    model = AutoModelForSequenceClassification.from_pretrained(folder)

B rows, L tokens, W width of the word vectors, C classes.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

from nanonet.models.pairs import MATCHED, masks_of_texts, matched


@strict
class StaticConfig(PreTrainedConfig):
    """The sizes of a static classifier."""

    model_type = "nanonet_static"

    vocab_size: int = 30522
    # width of the word vectors; the table has one column more, the logarithm of a piece's weight
    embedding_size: int = 100
    # width of the layer between the mean and the head
    dense_size: int = 100
    # pieces at a text's beginning that the dense layer reads one by one; 0 in folders that do not say, and of pairs
    first_pieces: int = 0
    # of the first pieces' vectors in training: few texts begin alike, so that their beginnings would be learnt by heart
    first_dropout: float = 0.0
    dropout: float = 0.1
    pad_token_id: int | None = 0
    # of a model of pairs (pairs.py)
    text_pair: dict[str, Any] | None = None


class StaticForSequenceClassification(PreTrainedModel):
    """forward: input_ids, attention_mask (B,L), padded at the end -> logits (B,C), the same whatever the padding."""

    config: StaticConfig
    config_class = StaticConfig

    def __init__(self, config: StaticConfig) -> None:
        super().__init__(config)
        if config.first_pieces and config.text_pair:
            raise ValueError(f"first_pieces {config.first_pieces}: expected 0 of a model of pairs")
        self.embeddings = nn.Embedding(config.vocab_size, config.embedding_size + 1)
        vectors = config.first_pieces + (MATCHED if config.text_pair else 1)
        self.dense = nn.Linear(config.embedding_size * vectors, config.dense_size)
        self.first_dropout = nn.Dropout(config.first_dropout)
        self.dropout = nn.Dropout(config.dropout)
        classes: Any = config.num_labels  # declared so that it may be None
        self.classifier = nn.Linear(config.dense_size, classes)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        **ignored: Any,  # such as token_type_ids, which some tokenizers return
    ) -> SequenceClassifierOutput:
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        table = self.embeddings(input_ids)  # (B,L,W+1)
        vectors, log_weight = table[..., :-1], table[..., -1].float()
        means = []  # (B,W) of each text; 0 of one without a token
        for own in masks_of_texts(self.config, input_ids, mask):
            weight = log_weight.masked_fill(own == 0, torch.finfo(torch.float32).min).softmax(-1) * own
            means.append((weight.to(vectors.dtype)[:, None] @ vectors)[:, 0])
        features = matched(means)
        if self.config.first_pieces:
            features = torch.cat([features, self.first_dropout(self._first(vectors, mask))], -1)
        logits = self.classifier(self.dropout(F.relu(self.dense(features))))
        loss = None if labels is None else F.cross_entropy(logits, labels)
        return SequenceClassifierOutput(loss=loss, logits=logits)  # type: ignore[arg-type]

    def _first(self, vectors: Tensor, mask: Tensor) -> Tensor:
        """The vectors of a row's first pieces (B, first_pieces * W), 0 past its end; vectors (B,L,W), mask (B,L)."""
        L = mask.shape[1]
        place = torch.arange(self.config.first_pieces, device=mask.device)
        own = place.clamp(max=L - 1)  # L may be less
        shown = mask.index_select(1, own) * (place < L)
        return (vectors.index_select(1, own) * shown[..., None].to(vectors.dtype)).flatten(1)

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Every piece starts with the same weight."""
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight)
            # transformers 5.4 calls this for weights that it has read as well, which nn.init leaves as they are
            if not getattr(module.weight, "_is_hf_initialized", False):
                module.weight[:, -1] = 0


AutoConfig.register(StaticConfig.model_type, StaticConfig)
AutoModelForSequenceClassification.register(StaticConfig, StaticForSequenceClassification)
