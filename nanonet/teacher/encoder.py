"""The teacher's body: a pretrained encoder that makes embeddings of texts, as it is or tuned on the labels.

N rows, B rows at a time, L tokens, D features.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize
from transformers import PreTrainedModel

from nanonet.cohort.packing import can_pack, packed
from nanonet.data.batches import BatchPlan, Encoded, collate
from nanonet.inference.forward import run
from nanonet.models.parts import find_parts
from nanonet.teacher.soft_labels import STRENGTH, classify, linear

PASSES = 20  # over the labelled rows
BATCH = 16  # rows a step
LEARNING_RATE, HEAD_LEARNING_RATE = 5e-5, 1e-3
WEIGHT_DECAY = 0.01
WARM_STEPS = 10


def tuning_steps(most: int, rows: int) -> int:
    """PASSES over the labelled rows, or `most` steps where these are fewer."""
    return min(most, -(-PASSES * rows // BATCH))


@dataclass(frozen=True, eq=False)
class Encoder:
    """pooling: mean, cls or max. autocast: what the forward runs under."""

    model: PreTrainedModel
    pooling: str
    pad_id: int
    device: torch.device
    autocast: Callable[[], AbstractContextManager] = nullcontext

    def __call__(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Pooled, L2-normalised embeddings (B,D) of ids and mask (B,L)."""
        with self.autocast():
            hidden = self.model(input_ids=ids, attention_mask=mask).last_hidden_state.float()
        shown = mask[..., None].to(hidden.dtype)
        if self.pooling == "cls":
            pooled = hidden[:, 0]
        elif self.pooling == "max":
            pooled = hidden.masked_fill(shown == 0, -torch.inf).amax(1)
        else:
            pooled = (hidden * shown).sum(1) / shown.sum(1)
        return normalize(pooled, dim=-1)

    def embed(self, rows: Encoded, done: Callable[[int], Any] = lambda rows: None) -> Tensor:
        """(N,D) float32 on the CPU; `done` is told the number of rows after each batch."""
        self.model.eval().to(self.device)
        return run(self, rows, self.pad_id, self.device, done=done)

    def tuned(
        self, rows: Encoded, label: Tensor, steps: int, seed: int, done: Callable[[int], Any] = lambda step: None
    ) -> Encoder:
        """This encoder, trained on N labelled rows: a copy, which shares the embeddings of the tokens.

        First a logistic regression on the embeddings as they are, then all layers and that head together: a head drawn
        at random would tear up in the first steps what the encoder knows. On a CPU its layers see no padding, where
        they can do without. label: (N,) int64; `done` is told of each step. Source: Kumar et al. 2022
        (arXiv 2202.10054).
        """
        parts = find_parts(self.model.eval().to(self.device))  # before the copy, which would stay behind
        shared = [p.requires_grad_(False) for n, p in self.model.named_parameters() if parts.of(n) == "embeddings"]
        model = copy.deepcopy(self.model, {id(p): p for p in shared})
        encoder, body = replace(self, model=model), [p for p in model.parameters() if p.requires_grad]
        classes, target = label.unique(return_inverse=True)
        head = [
            t.to(self.device).requires_grad_()
            for t in linear(classify(self.embed(rows).double().numpy(), target.numpy(), STRENGTH))
        ]
        groups = [{"params": body, "peak": LEARNING_RATE}, {"params": head, "peak": HEAD_LEARNING_RATE}]
        packs = self.device.type == "cpu" and can_pack(model, parts.layers[:-1], encoder)
        optimizer = torch.optim.AdamW(groups, lr=0.0, weight_decay=WEIGHT_DECAY)
        plan = BatchPlan(target.tolist(), [], BATCH, 1, seed)
        model.train()
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            for step in range(steps):
                torch.manual_seed(seed * 1_000_003 + step)
                for group in optimizer.param_groups:
                    group["lr"] = group["peak"] * min(1, (step + 1) / WARM_STEPS) * (1 - step / steps)
                batch = plan.rows(step)[0]
                ids, mask = (t.to(self.device) for t in collate(rows, batch, self.pad_id))
                lengths = mask.sum(-1).tolist() if packs else [ids.shape[1]] * len(ids)
                with packed(model, parts.layers[:-1], lengths, ids.shape[1]):
                    logits = encoder(ids, mask) @ head[0].T + head[1]
                cross_entropy(logits, target[batch].to(self.device)).backward()
                optimizer.step()
                optimizer.zero_grad()
                done(1)
        return encoder
