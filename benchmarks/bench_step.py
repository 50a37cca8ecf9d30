"""A whole training step of K students: teacher, forward, loss, backward, clipping, optimizer.

    nanonet bench --step --data DIR

cohort            K students in one model, frozen teacher's logits kept from before the training
cohort-online     the same, and the teacher runs in the step
cohort-padded     on a CPU: as `cohort`, every row padded to the longest of the step
cohort-grouped    on a CPU: as `cohort`, every row padded to the longest of its group of like rows
cohort-packed     on a GPU: as `cohort`, no layer sees padding
cohort-checkpoint as `cohort`, a student's activations made again in the backward
cohort-whole      only the head is trained: as `cohort`, which reads what the frozen layers made once of each text,
                  but these run in every step
eager-loop        K plain models, pairwise losses in eager torch, dynamic padding; the teacher runs in the step
peft-loop         the same with PEFT's LoRA models
eager-loop-kept   the loop with the teacher's logits kept, so that this saving is seen for itself
eager-loop-256    the loop padded to 256 tokens, as the papers' programs do
cohort-graph      on a GPU: `cohort`, its forward and backward replayed as CUDA graphs, one for each padded length, of
                  which there are few: rows are padded to a multiple of 64 tokens

All read the same batches of real lengths. Peak memory is measured in a process of its own, beyond the start-up.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import cycle, product
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from peft import LoraConfig, TaskType, get_peft_model
from torch import Tensor, nn
from transformers import PreTrainedModel

from nanonet.benchmarks.measure import each_ms, peak_mb, record, times_ms
from nanonet.cohort.build import plain_student
from nanonet.cohort.model import Lora
from nanonet.cohort.stack import build_cohort
from nanonet.config.commands import BenchConfig
from nanonet.config.train import Tuning
from nanonet.data.batches import collate, encode
from nanonet.data.read import load_dataset
from nanonet.errors import InputError
from nanonet.losses import DistillLoss
from nanonet.models.load import load_encoder, load_tokenizer
from nanonet.training.backbone import find_head_input
from nanonet.training.optimizer import clip_per_student, make_optimizer

BATCHES, LABELLED = 8, 1 / 3  # batches in turn; the labelled share of a batch
LORA = Lora(rank=8)
FIXED_TOKENS, MEMORY_STEPS = 256, 4
SECONDS = {"cpu": 4.0, "cuda": 1.0}  # of each implementation
GRAPH_VISITS = 3  # of each length: to warm up, to record, to replay
GRAPH_TOKENS = 64  # that a graph's length is a multiple of: each takes seconds to record

Batch = tuple[Tensor, Tensor, Tensor, Tensor]


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


def implementations(case: Case) -> tuple[str, ...]:
    loop = "peft-loop" if case.tuning == "lora" else "eager-loop"
    loops = loop, "eager-loop-kept", "eager-loop-256"
    if case.tuning == "head":
        return "cohort", "cohort-whole", *loops
    every = "cohort", "cohort-online", "cohort-checkpoint", *loops
    own = ("cohort-padded", "cohort-grouped") if case.device == "cpu" else ("cohort-packed", "cohort-graph")
    return *every, *own


def batches(case: Case, tokens: int = 0) -> tuple[list[Batch], int]:
    """Batches of ids, mask (B,L), label (B,), teacher's logits (B,C); and the number of classes.

    The rows are the first of the train texts, as they come; `tokens` pads to a fixed length.
    """
    dataset = load_dataset(case.data)
    tokenizer = load_tokenizer(case.teacher)
    rows, C = case.batch * BATCHES, len(dataset.classes)
    encoded = encode(tokenizer, dataset.train.texts[:rows], tokens or 128)
    labels = torch.tensor((dataset.train.labels or [])[:rows])
    g = torch.Generator().manual_seed(0)
    made = []
    for begin in range(0, rows, case.batch):
        own = list(range(begin, begin + case.batch))
        ids, mask = collate(encoded, own, tokenizer.pad_token_id)
        missing = max(0, tokens - ids.shape[1])
        ids, mask = F.pad(ids, (0, missing), value=tokenizer.pad_token_id), F.pad(mask, (0, missing))
        label = labels[own]
        label[round(LABELLED * case.batch) :] = -100
        made.append(tuple(t.to(case.device) for t in (ids, mask, label, 2 * torch.randn(case.batch, C, generator=g))))
    return made, C


def rounded(some: list[Batch]) -> list[Batch]:
    """The same batches in few lengths: padded to the next multiple of GRAPH_TOKENS."""
    made = []
    for ids, mask, *others in some:
        missing = -ids.shape[1] % GRAPH_TOKENS
        made.append((F.pad(ids, (0, missing)), F.pad(mask, (0, missing)), *others))
    return made


def ends(encoder: PreTrainedModel) -> list[int]:
    """The teacher layers that a student has."""
    return [0, encoder.config.num_hidden_layers - 1]


def whole_teacher(case: Case, C: int) -> nn.Module:
    encoder = load_encoder(case.teacher)
    model = plain_student(encoder, range(encoder.config.num_hidden_layers), [str(c) for c in range(C)], "full", 0)
    return model.to(case.device).eval()


def autocast(case: Case) -> torch.autocast:
    return torch.autocast(case.device, getattr(torch, case.dtype), enabled=case.dtype != "float32")


def graphs(cohort: nn.Module) -> Callable[..., Any]:
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
    forward = graphs(cohort) if name == "cohort-graph" else cohort
    teacher = whole_teacher(case, C) if name == "cohort-online" else None
    head = find_head_input(cohort) if name == "cohort" else None
    kept: dict[int, Tensor] = {}
    criterion, optimizer = DistillLoss(), make_optimizer(cohort, 0.01)
    for group in optimizer.param_groups:
        group["lr"] = 1e-4

    def step(batch: Batch) -> float:
        ids, mask, label, soft = batch
        with autocast(case):
            if teacher is not None:
                with torch.no_grad():
                    soft = teacher(ids, mask).logits.float()
            if head and id(batch) not in kept:
                with torch.no_grad():
                    kept[id(batch)] = cohort(ids, mask, features=head).features
            logits = forward(ids, mask, head_input=head and {head: kept[id(batch)]}).logits
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
            body = "embeddings" not in name and (tuning == "full" or (tuning == "bias" and "bias" in name))
            parameter.requires_grad_(head or body)
        if tuning == "lora":
            wanted = [n for n, m in model.named_modules() if isinstance(m, nn.Linear) and ".layer." in n]
            model = get_peft_model(
                model, LoraConfig(TaskType.SEQ_CLS, r=LORA.rank, lora_alpha=LORA.alpha, target_modules=wanted)
            )
        models.append(model.to(case.device))
    return models


def loop_step(name: str, case: Case, C: int) -> Callable[[Batch], float]:
    models, K = plain_models(case, C), case.K
    teacher = None if name == "eager-loop-kept" else whole_teacher(case, C)
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


def over(step: Callable[[Batch], float], some: list[Batch]) -> Callable[[], float]:
    """One step a call, on the batches in turn."""
    turn = cycle(some)
    return lambda: step(next(turn))


def visited_ms(runs: dict[str, Callable[[], float]], steps: int, seconds: float) -> dict[str, np.ndarray]:
    """Times [ms] after so many steps of each: what is kept of a batch's texts, the tiles and the graph of its length
    are made before the clock runs."""
    for run in runs.values():
        for _ in range(steps):
            run()
    return times_ms(runs, seconds)


def memory_mb(name: str, case: Case) -> float:
    """Peak memory of a step [MB] beyond that of the process before its models, in a process of its own."""
    command = [sys.executable, "-m", "nanonet.benchmarks.bench_step", name, json.dumps(asdict(case))]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise InputError(f"the memory of {name} could not be measured: {done.stderr.strip().splitlines()[-1]}")
    return float(done.stdout)


def records(
    students: tuple[int, ...],
    tunings: tuple[Tuning, ...],
    dtypes: tuple[str, ...],
    case: Case,
    memory: bool = True,
    seconds: float | None = None,
) -> Iterator[dict[str, Any]]:
    """One record for each K, tuning, dtype and implementation of `case`; on a CPU they take their steps in turn."""
    dynamic, C = batches(case)
    fixed, few = batches(case, FIXED_TOKENS)[0], rounded(dynamic)
    for dtype, tuning, K in product(dtypes, tunings, students):
        own = replace(case, K=K, tuning=tuning, dtype=dtype)
        names = implementations(own)
        of = {"eager-loop-256": fixed, "cohort-graph": few}
        runs = {name: over(make_step(name, own, C), of.get(name, dynamic)) for name in names}
        visits = GRAPH_VISITS if case.device != "cpu" else int(tuning == "head")
        clock = partial(visited_ms, steps=visits * len(dynamic), seconds=seconds or SECONDS[case.device])
        times = clock(runs).items() if case.device == "cpu" else each_ms(runs, clock, names[1:])
        for name, values in times:
            yield record(
                "step",
                {"K": K, "N": case.batch, "C": C},
                dtype,
                case.device,
                name,
                values,
                peak_mem_mb=round(memory_mb(name, own), 1) if memory else None,
                K=K,
                tuning=tuning,
                layers=2,
                data=Path(case.data).name,
                rows_per_s=round(case.batch / float(values.mean()) * 1e3, 1),
            )


def main() -> None:
    """Print the peak memory [MB] of one implementation: what `memory_mb` starts."""
    name, case = sys.argv[1], Case(**json.loads(sys.argv[2]))
    some, C = batches(case, FIXED_TOKENS if name.endswith("256") else 0)

    def whole() -> None:
        run = over(make_step(name, case, C), some)
        for _ in range(MEMORY_STEPS):
            run()

    print(peak_mb(whole, case.device, warm=False))


if __name__ == "__main__":
    main()
