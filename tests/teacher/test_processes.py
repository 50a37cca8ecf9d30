"""Several processes that share the teacher's work make what one makes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.process_group import results
from support.teacher_processes import embed, exchange, make_teacher, tune

from nanonet.models.load import load_encoder


def test_each_process_has_what_all_have_made(tmp_path: Path) -> None:
    found = results(3, tmp_path, exchange)
    assert [one.pop("part") for one in found] == [[0, 3], [1, 4], [2]]
    for one in found:
        assert [t.shape[0] for t in one["shares"]] == [1, 0, 3] and one["shares"][2].eq(2).all()
        assert one["total"].tolist() == [6, 6] and one["own"].tolist() == [2] * 3 and one["first"] == "of 0"


# 70 rows are two batches of 64: one for each of two processes, and of three one has none
@pytest.mark.parametrize("count", [2, 3])
def test_they_divide_the_rows_of_an_embedding(count: int, tiny_encoder: Path, tmp_path: Path) -> None:
    (wanted,) = results(1, tmp_path, embed, tiny_encoder)
    for found in results(count, tmp_path, embed, tiny_encoder):
        torch.testing.assert_close(found["embedding"], wanted["embedding"], rtol=0, atol=1e-6)
        assert found["ticks"] == 70 and found["batches"] == 1


# 20 rows of 3 classes: batches of 10. 2 rows: of three processes one has no row of its own
@pytest.mark.parametrize(
    ("count", "labelled", "packs", "tuning"),
    [(2, 20, True, "full"), (2, 20, False, "bias"), (2, 20, True, "lora"), (3, 2, True, "full")],
)
def test_they_tune_as_one_does(
    count: int, labelled: int, packs: bool, tuning, tiny_encoder: Path, tmp_path: Path
) -> None:
    model = load_encoder(str(tiny_encoder))
    assert model.config.hidden_dropout_prob > 0 and model.config.attention_probs_dropout_prob > 0
    wanted, one, *others = (
        found for n in (1, count) for found in results(n, tmp_path, tune, tiny_encoder, labelled, packs, tuning)
    )
    for name, weight in wanted.items():
        moved = (weight - model.state_dict()[name]).abs().max()
        trained = {"full": True, "bias": name.endswith("bias"), "lora": "weight" in name and "Norm" not in name}[tuning]
        assert not (trained and name.startswith("encoder")) or name.endswith("key.bias") or moved > 3e-4
        if not name.endswith("key.bias"):  # its gradient is 0 but for rounding, of which Adam makes whole steps
            torch.testing.assert_close(one[name], wanted[name], rtol=0, atol=5e-5, msg=name)
        assert all(torch.equal(one[name], other[name]) for other in others), name


@pytest.mark.parametrize(("count", "tuning"), [(2, "bias"), (2, "lora"), (5, "full")])
def test_they_make_the_same_teacher(count: int, tuning, tiny_encoder: Path, tmp_path: Path) -> None:
    wanted, one, *others = (
        found for n in (1, count) for found in results(n, tmp_path, make_teacher, tiny_encoder, tuning)
    )
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
