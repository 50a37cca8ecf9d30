"""What the processes of a run do together, each as a function of its process, for tests/teacher/test_processes.py."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from nanonet.config.settings import TeacherSettings
from nanonet.data.batches import Encoded
from nanonet.data.prepare import RunData
from nanonet.models.load import load_encoder
from nanonet.processes import Processes
from nanonet.progress import Progress
from nanonet.teacher import encoder as encoder_module
from nanonet.teacher.encoder import Encoder
from nanonet.teacher.make import make_frozen_teacher


def make_rows() -> Encoded:
    """70 texts of 4 to 16 tokens."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(4, 17, (70,), generator=generator)
    ids = torch.randint(2, 40, (int(lengths.sum()),), generator=generator, dtype=torch.int32)
    return Encoded(ids, torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)]))


def make_encoder(folder: Path, processes: Processes, tuning="full") -> Encoder:
    return Encoder(load_encoder(str(folder)), "mean", 0, torch.device("cpu"), tuning, processes=processes)


def exchange(processes: Processes) -> dict:
    part = torch.full((processes.index + 1, 2), float(processes.index))
    shares = processes.gather(part if processes.index != 1 else torch.empty(0))  # one has nothing
    total = torch.full((2,), processes.index + 1.0)
    processes.add_up(total)
    own = torch.full((3,), float(processes.index))
    processes.copy_from(2, [own])
    first = processes.from_first(lambda: f"of {processes.index}")
    return {"shares": shares, "total": total, "own": own, "first": first, "part": list(processes.part(range(5)))}


def embed(processes: Processes, folder: Path) -> dict:
    ticks: list[int] = []
    embedding = make_encoder(folder, processes).embed(make_rows(), ticks.append)
    return {"embedding": embedding.clone(), "ticks": sum(ticks), "batches": len(ticks)}


def tune(processes: Processes, folder: Path, labelled: int, packs: bool, tuning) -> dict[str, Tensor]:
    encoder_module.LEARNING_RATE["full"] = 3e-3
    encoder_module.can_pack = lambda *arguments: packs
    label = torch.arange(labelled) % 3
    encoder = make_encoder(folder, processes, tuning)
    return encoder.tuned(make_rows()[range(labelled)], label, 6, 0).model.state_dict()


def make_teacher(processes: Processes, folder: Path, tuning) -> dict:
    label = torch.where(torch.arange(70) < 24, torch.arange(70) % 3, -100)
    settings = TeacherSettings(False, 4, tuning, "auto", False, 1.0, True, "float32", 0)
    rows, progress = make_rows(), Progress(active=False)
    none = rows[[]]
    data = RunData("", ["a", "b", "c"], rows, label, none, none, [])
    teacher, encoder = make_frozen_teacher(settings, make_encoder(folder, processes, tuning), data, progress)
    made = {} if teacher is None else {n: t for n, t in vars(teacher).items() if isinstance(t, Tensor)}
    choice = {} if teacher is None else vars(teacher.choice)
    return {"made": made, "choice": choice, "encoder": encoder.model.state_dict(), "stages": [*progress.seconds]}
