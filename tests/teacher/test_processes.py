"""Several processes that share the teacher's work make what one makes. They are forked: nothing is imported again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, distributed

from nanonet.config.settings import TeacherSettings
from nanonet.data.batches import Encoded
from nanonet.data.prepare import RunData
from nanonet.models.load import load_encoder
from nanonet.processes import Processes
from nanonet.progress import Progress
from nanonet.teacher import encoder as encoder_module
from nanonet.teacher.encoder import Encoder
from nanonet.teacher.make import make_frozen_teacher


def _one_of(index: int, count: int, work: Callable[[Processes], object], folder: Path) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=index, world_size=count)
    torch.save(work(Processes(index, count)), folder / f"{index}.pt")
    distributed.destroy_process_group()


def results(count: int, work: Callable[[Processes], object], folder: Path) -> list:
    """What `work` returns in each of so many processes."""
    torch.multiprocessing.start_processes(_one_of, (count, work, folder), nprocs=count, start_method="fork")
    return [torch.load(folder / f"{index}.pt", weights_only=True) for index in range(count)]


@pytest.fixture
def rows() -> Encoded:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(4, 17, (70,), generator=generator)
    ids = torch.randint(2, 40, (int(lengths.sum()),), generator=generator, dtype=torch.int32)
    return Encoded(ids, torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)]))


def test_each_process_has_what_all_have_made(tmp_path: Path) -> None:
    def work(processes: Processes) -> dict:
        part = torch.full((processes.index + 1, 2), float(processes.index))
        shares = processes.gather(part if processes.index != 1 else torch.empty(0))  # one has nothing
        total = torch.full((2,), processes.index + 1.0)
        processes.add_up(total)
        own = torch.full((3,), float(processes.index))
        processes.copy_from(2, [own])
        first = processes.from_first(lambda: f"of {processes.index}")
        return {"shares": shares, "total": total, "own": own, "first": first, "part": list(processes.part(range(5)))}

    found = results(3, work, tmp_path)
    assert [one.pop("part") for one in found] == [[0, 3], [1, 4], [2]]
    for one in found:
        assert [t.shape[0] for t in one["shares"]] == [1, 0, 3] and one["shares"][2].eq(2).all()
        assert one["total"].tolist() == [6, 6] and one["own"].tolist() == [2] * 3 and one["first"] == "of 0"


# 70 rows are two batches of 64: one for each of two processes, and of three one has none
@pytest.mark.parametrize("count", [2, 3])
def test_they_divide_the_rows_of_an_embedding(count: int, tiny_encoder: Path, rows: Encoded, tmp_path: Path) -> None:
    alone = Encoder(load_encoder(str(tiny_encoder)), "mean", 0, torch.device("cpu"))

    def work(processes: Processes) -> dict:
        ticks: list[int] = []
        embedding = replace(alone, processes=processes).embed(rows, ticks.append)
        return {"embedding": embedding.clone(), "ticks": sum(ticks), "batches": len(ticks)}

    wanted = alone.embed(rows)
    for found in results(count, work, tmp_path):
        torch.testing.assert_close(found["embedding"], wanted, rtol=0, atol=1e-6)
        assert found["ticks"] == 70 and found["batches"] == 1


# 20 rows of 3 classes: batches of 10. 2 rows: of three processes one has no row of its own
@pytest.mark.parametrize(
    ("count", "labelled", "packs", "tuning"),
    [(2, 20, True, "full"), (2, 20, False, "bias"), (2, 20, True, "lora"), (3, 2, True, "full")],
)
def test_they_tune_as_one_does(
    count: int, labelled: int, packs: bool, tuning, tiny_encoder: Path, rows: Encoded, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setitem(encoder_module.LEARNING_RATE, "full", 3e-3)
    monkeypatch.setattr(encoder_module, "can_pack", lambda *arguments: packs)
    model = load_encoder(str(tiny_encoder))
    assert model.config.hidden_dropout_prob > 0 and model.config.attention_probs_dropout_prob > 0
    alone = Encoder(model, "mean", 0, torch.device("cpu"), tuning)
    some, label = rows[range(labelled)], torch.arange(labelled) % 3

    def work(processes: Processes) -> dict[str, Tensor]:
        return replace(alone, processes=processes).tuned(some, label, 6, 0).model.state_dict()

    wanted, one, *others = work(Processes()), *results(count, work, tmp_path)
    for name, weight in wanted.items():
        moved = (weight - model.state_dict()[name]).abs().max()
        trained = {"full": True, "bias": name.endswith("bias"), "lora": "weight" in name and "Norm" not in name}[tuning]
        assert not (trained and name.startswith("encoder")) or name.endswith("key.bias") or moved > 3e-4
        if not name.endswith("key.bias"):  # its gradient is 0 but for rounding, of which Adam makes whole steps
            torch.testing.assert_close(one[name], wanted[name], rtol=0, atol=5e-5, msg=name)
        assert all(torch.equal(one[name], other[name]) for other in others), name


@pytest.mark.parametrize(("count", "tuning"), [(2, "bias"), (2, "lora"), (5, "full")])
def test_they_make_the_same_teacher(count: int, tuning, tiny_encoder: Path, rows: Encoded, tmp_path: Path) -> None:
    alone = Encoder(load_encoder(str(tiny_encoder)), "mean", 0, torch.device("cpu"), tuning)
    label = torch.where(torch.arange(70) < 24, torch.arange(70) % 3, -100)
    settings = TeacherSettings(False, 4, tuning, "auto", False, 1.0, True, "float32", 0)
    none = rows[[]]
    data = RunData("", ["a", "b", "c"], rows, label, none, none, [])

    def work(processes: Processes) -> dict:
        progress = Progress(active=False)
        teacher, encoder = make_frozen_teacher(settings, replace(alone, processes=processes), data, progress)
        made = {} if teacher is None else {n: t for n, t in vars(teacher).items() if isinstance(t, Tensor)}
        choice = {} if teacher is None else vars(teacher.choice)
        return {"made": made, "choice": choice, "encoder": encoder.model.state_dict(), "stages": [*progress.seconds]}

    wanted, one, *others = work(Processes()), *results(count, work, tmp_path)
    assert one["choice"] == wanted["choice"] and wanted["choice"]["tested"] == 24
    for name, tensor in wanted["made"].items():
        torch.testing.assert_close(one["made"][name].float(), tensor.float(), rtol=1e-3, atol=1e-3, msg=name)
    for other in others:
        assert not other["made"] and not other["choice"]
        assert all(torch.equal(other["encoder"][name], tensor) for name, tensor in one["encoder"].items())
    # whole tunings, one of the labels and three of folds, go round the processes
    assert "tuning on the labels" in one["stages"]
    folds = ["tuning for a fold" in found["stages"] for found in (one, *others)]
    assert folds == ([True, True] if count == 2 else [False, True, True, True, False])
