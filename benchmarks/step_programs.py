"""The programs that bench_step times: a training step of a cohort, and of a loop over K plain models."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from peft import LoraConfig, TaskType, get_peft_model
from torch import Tensor, nn
from transformers import PreTrainedModel

from nanonet.cohort.build import plain_student
from nanonet.cohort.model import Lora
from nanonet.cohort.stack import build_cohort
from nanonet.config.commands import BenchConfig
from nanonet.config.train import Tuning
from nanonet.losses import DistillLoss
from nanonet.models.load import load_encoder
from nanonet.training.backbone import find_head_input
from nanonet.training.optimizer import clip_per_student, make_optimizer

LORA = Lora(rank=8)
Batch = tuple[Tensor, Tensor, Tensor, Tensor]  # ids, mask (B,L), label (B,), teacher's logits (B,C)


@dataclass(frozen=True)
class Case:
    """What is trained: K students of the first and the last layer of `teacher`, on `batch` rows of `data` a step."""

    data: str = BenchConfig.data
    teacher: str = BenchConfig.teacher
    batch: int = BenchConfig.batch
    device: str = "cpu"
    K: int = 2
    tuning: Tuning = "bias"
    dtype: str = "float32"


def ends(encoder: PreTrainedModel) -> list[int]:
    """The teacher layers that a student has."""
    return [0, encoder.config.num_hidden_layers - 1]


def full_teacher(case: Case, C: int) -> nn.Module:
    encoder = load_encoder(case.teacher)
    model = plain_student(encoder, range(encoder.config.num_hidden_layers), [str(c) for c in range(C)], "full", 0)
    return model.eval().to(case.device)  # type: ignore[arg-type]


def autocast(case: Case) -> torch.autocast:
    return torch.autocast(case.device, getattr(torch, case.dtype), enabled=case.dtype != "float32")


def graphs(cohort: nn.Module) -> Callable[..., Tensor]:
    """The cohort, compiled for each length that it meets; where it would go on without, it ends instead."""
    torch._dynamo.reset()  # what other cohorts were compiled for counts against the limit
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    return torch.compile(cohort, backend="cudagraphs", dynamic=False)


def cohort_step(name: str, case: Case, C: int) -> Callable[[Batch], float]:
    labels = [str(c) for c in range(C)]
    encoder = load_encoder(case.teacher)
    cohort = build_cohort(encoder, [ends(encoder)] * case.K, labels, case.tuning, lora=LORA).to(case.device)
    cohort.checkpointing = name == "cohort-checkpoint"
    if name in ("cohort-padded", "cohort-grouped"):
        cohort.packing = ()
    if name == "cohort-padded":
        cohort.group_rows = 0
    if name == "cohort-packed":
        cohort.packing = (case.device,)
    forward: Any = graphs(cohort) if name == "cohort-graph" else cohort
    teacher = full_teacher(case, C) if name == "cohort-online" else None
    head = find_head_input(cohort) if name == "cohort" else None
    features: dict[int, Tensor] = {}
    criterion, optimizer = DistillLoss(), make_optimizer(cohort, 0.01)
    for group in optimizer.param_groups:
        group["lr"] = 1e-4

    def step(batch: Batch) -> float:
        ids, mask, label, soft = batch
        with autocast(case):
            if teacher is not None:
                with torch.no_grad():
                    soft = teacher(ids, mask).logits.float()
            if head and id(batch) not in features:
                with torch.no_grad():
                    features[id(batch)] = cohort(ids, mask, features=head).features
            logits = forward(ids, mask, head_input=head and {head: features[id(batch)]}).logits
            loss, _ = criterion(logits, soft, label)
        loss.backward()
        clip_per_student(cohort.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return step


def plain_models(case: Case, C: int) -> list[nn.Module]:
    """K models as a program without cohorts has them; PEFT's for LoRA. It has no tuner for biases alone."""
    encoder, tuning, models = load_encoder(case.teacher), case.tuning, []
    for k in range(case.K):
        model: Any = plain_student(encoder, ends(encoder), [str(c) for c in range(C)], tuning, k).train()
        for module in model.modules():  # the cohort has no dropout unless a view asks for it
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        for name, parameter in model.named_parameters():
            head = name.startswith(("classifier", "bert.pooler"))
            layer = "embeddings" not in name and (tuning == "full" or (tuning == "bias" and "bias" in name))
            parameter.requires_grad_(head or layer)
        if tuning == "lora":
            wanted = [n for n, m in model.named_modules() if isinstance(m, nn.Linear) and ".layer." in n]
            model = get_peft_model(
                model, LoraConfig(TaskType.SEQ_CLS, r=LORA.rank, lora_alpha=int(LORA.alpha), target_modules=wanted)
            )
        models.append(model.to(case.device))
    return models


def loop_step(name: str, case: Case, C: int) -> Callable[[Batch], float]:
    models, K = plain_models(case, C), case.K
    teacher = None if name == "eager-loop-cached" else full_teacher(case, C)
    trained = [[p for p in model.parameters() if p.requires_grad] for model in models]
    optimizers = [torch.optim.AdamW(p, lr=1e-4, weight_decay=0.01) for p in trained]

    def step(batch: Batch) -> float:
        ids, mask, label, soft = batch
        with autocast(case):
            if teacher is not None:
                with torch.no_grad():
                    soft = teacher(ids, mask).logits
            logits = [model(input_ids=ids, attention_mask=mask).logits.float() for model in models]
        p, loss = soft.float().softmax(-1), logits[0].new_zeros(())
        for k, own in enumerate(logits):
            log_q = own.log_softmax(-1)
            loss = loss + F.cross_entropy(own, label) + F.kl_div(log_q, p, reduction="batchmean")
            for j, other in enumerate(logits):
                if j != k:
                    peer = other.detach().softmax(-1)
                    loss = loss + 0.1 / (K - 1) * F.kl_div(log_q, peer, reduction="batchmean")
        loss.backward()
        for parameters, optimizer in zip(trained, optimizers, strict=True):
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad()
        return loss.item()

    return step


def make_step(name: str, case: Case, C: int) -> Callable[[Batch], float]:
    return (cohort_step if name.startswith("cohort") else loop_step)(name, case, C)
