"""Tiny random causal language models, rows of token ids for them, and the options of a short training."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, TrainingArguments

VOCABULARY = 61


def make_model(seed: int, width: int = 16) -> LlamaForCausalLM:
    """A Llama of two layers with sharp logits; another seed, other weights."""
    torch.manual_seed(seed)
    sizes = dict(hidden_size=width, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, max_position_embeddings=32, **sizes))
    with torch.no_grad():
        model.lm_head.weight.mul_(20)
    return model


def make_rows(count: int, length: int = 12) -> list[dict[str, Tensor]]:
    """Rows of ids, mask and labels; each has a prompt of another length, and every second is padded."""
    g = torch.Generator().manual_seed(0)
    rows = []
    for i in range(count):
        ids = torch.randint(3, VOCABULARY, (length,), generator=g)
        mask = torch.ones(length, dtype=torch.int64)
        mask[length - 3 * (i % 2) :] = 0
        labels = ids.masked_fill(mask == 0, -100)
        labels[: 2 + i % 5] = -100
        rows.append({"input_ids": ids, "attention_mask": mask, "labels": labels})
    return rows


def collate(rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


def arguments(folder: Any, kind: type = TrainingArguments, **options: Any) -> Any:
    """Training arguments of a short run on the CPU, without a network or files to look at."""
    quiet = dict(report_to="none", use_cpu=True, save_strategy="no", logging_steps=1, disable_tqdm=True)
    steps = dict(max_steps=3, learning_rate=1e-2, per_device_train_batch_size=4, lr_scheduler_type="constant")
    return kind(output_dir=str(folder), **{**quiet, **steps, **options})
