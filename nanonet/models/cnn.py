"""A convolutional text classifier as a Hugging Face model: the "blend" CNN of arXiv 1909.03508.

    word embeddings -> 8 convolutions with ReLU -> the maximum over the text of EVERY layer -> dense -> head

Of a pair the convolutions read both texts as one row; the maxima are taken over each of them, and matched (pairs.py).

Importing this module makes it known to AutoConfig and AutoModelForSequenceClassification; `import nanonet` alone does
not, because it would load transformers. A program that has one of these folders needs

    import nanonet.models.cnn
    model = AutoModelForSequenceClassification.from_pretrained(folder)

B rows, L tokens, W width of the embeddings, F channels, D depth in layers, C classes.
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
class CnnConfig(PreTrainedConfig):
    """The sizes of a blend CNN; the defaults are the paper's, the embedding's width apart (300 there)."""

    model_type = "nanonet_cnn"

    vocab_size: int = 30522
    # width of the word embeddings, and the output of each layer [channels]
    embedding_size: int = 100
    hidden_size: int = 100
    num_hidden_layers: int = 8
    # tokens that a convolution spans; an odd number
    kernel_size: int = 5
    # width of the layer between the pooled channels and the head
    dense_size: int = 100
    dropout: float = 0.1
    pad_token_id: int | None = 0
    # of a model of pairs (pairs.py)
    text_pair: dict[str, Any] | None = None


class CnnForSequenceClassification(PreTrainedModel):
    """forward: input_ids, attention_mask (B,L) -> logits (B,C), the same whatever the padding of the batch.

    The activations are channels last, as the embedding makes them: a convolution over tokens is a 2-d one of height 1,
    which oneDNN runs on that layout without a copy.
    """

    config: CnnConfig
    config_class = CnnConfig

    def __init__(self, config: CnnConfig) -> None:
        super().__init__(config)
        if config.kernel_size % 2 == 0:
            raise ValueError(f"kernel_size {config.kernel_size}: expected an odd number")
        self.embeddings = nn.Embedding(config.vocab_size, config.embedding_size)
        widths = [config.embedding_size] + [config.hidden_size] * config.num_hidden_layers
        size, padding = (1, config.kernel_size), (0, config.kernel_size // 2)
        self.layers = nn.ModuleList(
            nn.Conv2d(before, after, size, padding=padding) for before, after in zip(widths, widths[1:], strict=False)
        )
        pooled = config.num_hidden_layers * config.hidden_size
        self.dense = nn.Linear(pooled * (MATCHED if config.text_pair else 1), config.dense_size)
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
        shown = mask[:, None, None].to(self.embeddings.weight.dtype)  # (B,1,1,L)
        x = self.embeddings(input_ids)[:, None].permute(0, 3, 1, 2) * shown  # (B,W,1,L)
        # ReLU and mask in one pass: the padding becomes 0, as beyond a text's end, and never exceeds a maximum
        least, most = shown.new_zeros(()), torch.where(shown > 0, torch.inf, 0.0).to(shown.dtype)
        texts = [m[:, None, None].to(x.dtype) for m in masks_of_texts(self.config, input_ids, mask)]
        pooled = []  # of every layer, of each text
        for layer in self.layers:
            x = torch.clamp(layer(x), least, most)
            pooled.append([x.amax((2, 3))] if len(texts) == 1 else [(x * own).amax((2, 3)) for own in texts])
        maxima = [torch.cat(layers, -1) for layers in zip(*pooled, strict=True)]
        features = self.dropout(F.relu(self.dense(matched(maxima))))
        logits = self.classifier(features)
        loss = None if labels is None else F.cross_entropy(logits, labels)
        return SequenceClassifierOutput(loss=loss, logits=logits)  # type: ignore[arg-type]

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """He's initialisation keeps the scale of the activations over eight layers of ReLU; the head starts near 0."""
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight)
        bias = getattr(module, "bias", None)
        if isinstance(bias, Tensor):
            nn.init.zeros_(bias)


AutoConfig.register(CnnConfig.model_type, CnnConfig)
AutoModelForSequenceClassification.register(CnnConfig, CnnForSequenceClassification)
