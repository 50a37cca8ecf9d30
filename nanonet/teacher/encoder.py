"""The teacher's encoder: embeddings of texts by a pretrained model, as it is or tuned on the labels.

N rows, B rows of a batch, L tokens, D features.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize
from transformers import PreTrainedModel

from nanonet.cohort.packing import can_pack, packed
from nanonet.config.train import TeacherTuning
from nanonet.data.batches import BatchPlan, Encoded, collate
from nanonet.errors import InputError
from nanonet.inference.forward import run
from nanonet.models.pairs import model_inputs
from nanonet.models.parts import Parts, find_parts
from nanonet.models.pooled import pool
from nanonet.processes import ALONE, Processes
from nanonet.teacher.dropout import WholeBatchDropout
from nanonet.teacher.soft_labels import INVERSE_REGULARISATION, classify, linear_head

PASSES = 20  # over the labelled rows
BATCH = 16  # rows of a step
LEARNING_RATE = {"full": 5e-5, "bias": 3e-3, "lora": 1e-3}
HEAD_LEARNING_RATE = 1e-3
LORA_RANK, LORA_ALPHA = 8, 16
WEIGHT_DECAY = 0.01
WARMUP_STEPS = 10


def tuning_steps(max_steps: int, rows: int) -> int:
    """PASSES over the labelled rows, or `max_steps` where that is fewer."""
    return min(max_steps, -(-PASSES * rows // BATCH))


@dataclass(frozen=True, eq=False)
class Encoder:
    """pooling: mean, cls or max. tuning: what `tuned` trains. autocast: the context in which the forward runs.
    processes: those that share its work, all of which call its methods"""

    model: PreTrainedModel
    pooling: str
    pad_id: int
    device: torch.device
    tuning: TeacherTuning = "full"
    autocast: Callable[[], AbstractContextManager] = nullcontext
    processes: Processes = ALONE

    def __call__(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Pooled, L2-normalised embeddings (B,D) of ids and mask (B,L)."""
        with self.autocast():
            hidden = self.model(**model_inputs(self.model.config, ids, mask)).last_hidden_state.float()
        return normalize(pool(hidden, mask, self.pooling), dim=-1)

    def embed(self, rows: Encoded, done: Callable[[int], Any] = lambda rows: None) -> Tensor:
        """(N,D) float32 on the CPU; `done` is called with the number of rows after each batch."""
        self.model.eval().to(self.device)
        return run(self, rows, self.pad_id, self.device, done=done, processes=self.processes)

    def tuned(
        self, rows: Encoded, label: Tensor, steps: int, seed: int, done: Callable[[int], Any] = lambda step: None
    ) -> Encoder:
        """This encoder tuned on N labelled rows: a copy, which shares the token embeddings.

        First a logistic regression on the embeddings as they are, then that head together with all layers, their biases
        or adapters on their matrices: a random head would distort the pretrained features in the first steps. On a CPU
        the layers run without padding if they can.
        label: (N,) int64; `done` is called after each step. Source: Kumar et al. 2022 (arXiv 2202.10054).

        Raises:
            InputError: biases are to be tuned, and the architecture has none.
        """
        encoder = self.copied()
        parts = find_parts(encoder.model)
        _, target = label.unique(return_inverse=True)
        embedding = self.embed(rows).numpy()
        head = self.processes.from_first(
            lambda: linear_head(classify(embedding, target.numpy(), INVERSE_REGULARISATION))
        )
        weight, bias = (t.to(self.device).requires_grad_() for t in head)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            adapted = _choose_trained(encoder.model, parts, self.tuning)
        packs = self.device.type == "cpu" and can_pack(encoder.model, parts.layers[:-1], encoder)
        optimizer = _optimizer(encoder.model, [weight, bias], LEARNING_RATE[self.tuning])
        plan = BatchPlan(target.tolist(), [], BATCH, 1, seed)
        gradients = None
        encoder.model.train()
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            for step in range(steps):
                torch.manual_seed(seed * 1_000_003 + step)
                for group in optimizer.param_groups:
                    group["lr"] = group["peak"] * min(1, (step + 1) / WARMUP_STEPS) * (1 - step / steps)
                batch = plan.rows(step)[0]
                loss = encoder._loss(rows[batch], target[batch], weight, bias, parts.layers[:-1] if packs else "")
                loss.backward()
                if self.processes.count > 1:
                    gradients = _as_one(optimizer) if gradients is None else gradients
                    self.processes.add_up(gradients)
                optimizer.step()
                optimizer.zero_grad(set_to_none=gradients is None)
                done(1)
        return encoder if adapted is None else replace(encoder, model=adapted.merge_and_unload())

    def copied(self) -> Encoder:
        """A copy that shares the token embeddings, which are frozen in both."""
        parts = find_parts(self.model.eval().to(self.device))  # before the copy, which would stay behind
        shared = [p.requires_grad_(False) for n, p in self.model.named_parameters() if parts.of(n) == "embeddings"]
        return replace(self, model=copy.deepcopy(self.model, {id(p): p for p in shared}))

    def take_from(self, source: int, processes: Processes) -> Encoder:
        """This encoder with the weights that process `source` has in it, written over its own. All that share its work
        are `processes` from now on."""
        parts = find_parts(self.model)
        processes.copy_from(source, (p for n, p in self.model.named_parameters() if parts.of(n) != "embeddings"))
        return replace(self, processes=processes)

    def _loss(self, rows: Encoded, target: Tensor, weight: Tensor, bias: Tensor, layers: str) -> Tensor:
        """This process's summand of the mean cross-entropy () of a batch.

        target: (B,); weight, bias: of the head; layers: where they lie if they can run without padding, else ""
        """
        count = len(rows)
        own = list(self.processes.part(range(count)))
        share = len(own) / count
        own = own or [0]  # more processes than rows: one of weight 0, as every process has gradients to add
        ids, mask = collate(rows, range(count), self.pad_id)
        lengths = mask.sum(-1).tolist()
        ids, mask = ids[own].to(self.device), mask[own].to(self.device)
        with ExitStack() as stack:
            if layers:
                stack.enter_context(packed(self.model, layers, [lengths[row] for row in own], ids.shape[1]))
            if self.processes.count > 1:
                stack.enter_context(WholeBatchDropout(lengths, own))
            logits = self(ids, mask) @ weight.T + bias
        return cross_entropy(logits, target[own].to(self.device)) * share


def _as_one(optimizer: torch.optim.Optimizer) -> Tensor:
    """The gradients of all parameters that have one, as one tensor: each is a view into it from now on."""
    trained = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    every = torch.cat([p.grad.flatten() for p in trained])
    for parameter, gradient in zip(trained, every.split([p.numel() for p in trained]), strict=True):
        parameter.grad = gradient.view_as(parameter)
    return every


def _choose_trained(model: PreTrainedModel, parts: Parts, tuning: TeacherTuning) -> Any:
    """Let what `tuning` names be trained, and no embeddings; returns PEFT's model where adapters were added."""
    if tuning == "bias":
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name.endswith(".bias") and parts.of(name) != "embeddings")
        if not any(p.requires_grad for p in model.parameters()):
            raise InputError(f"--teacher-tuning bias: {type(model).__name__} has no biases; give lora or full")
    if tuning != "lora":
        return None
    from peft import LoraConfig, get_peft_model

    linear = [n for n, m in model.named_modules() if type(m) is nn.Linear and parts.of(n + ".") == "layers"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # what PEFT calls in transformers
        return get_peft_model(model, LoraConfig(r=LORA_RANK, lora_alpha=LORA_ALPHA, target_modules=linear))


def _optimizer(model: PreTrainedModel, head: list[Tensor], peak: float) -> torch.optim.Optimizer:
    """AdamW over an encoder and its head; each group's peak learning rate is in its `peak`."""
    layers = [p for p in model.parameters() if p.requires_grad]
    groups = [{"params": layers, "peak": peak}, {"params": head, "peak": HEAD_LEARNING_RATE}]
    return torch.optim.AdamW(groups, lr=0.0, weight_decay=WEIGHT_DECAY, fused=True)
