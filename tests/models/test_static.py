"""Static students: stacked as apart, blind to padding and order, and the same model wherever they go."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForSequenceClassification

from nanonet.cli.main import main
from nanonet.cohort.cnn import stack_cnns
from nanonet.cohort.extract import save_student, student
from nanonet.cohort.static import FIRST_DROPOUT, FIRST_PIECES, build_static_cohort
from nanonet.cohort.views import set_views
from nanonet.config.check import check_train
from nanonet.config.train import TrainConfig
from nanonet.errors import InputError
from nanonet.inference.onnx_graph import NEEDED, write_graph
from nanonet.inference.onnx_model import onnx_session
from nanonet.models.load import load_encoder
from nanonet.models.static import StaticConfig, StaticForSequenceClassification
from nanonet.training.pipeline import train

NEEDS_ONNX = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in NEEDED), reason="needs nanonet[onnx]"
)


def small(seed: int, first_pieces: int = 0) -> StaticForSequenceClassification:
    torch.manual_seed(seed)
    config = StaticConfig(vocab_size=50, embedding_size=6, dense_size=10, num_labels=3, first_pieces=first_pieces)
    model = StaticForSequenceClassification(config)
    torch.nn.init.normal_(model.embeddings.weight)  # the pieces' weights too
    return model.eval()


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    ids, mask = torch.randint(1, 50, (5, 11), generator=torch.Generator().manual_seed(1)), torch.ones(5, 11).long()
    mask[0, 3:] = mask[1, 10:] = 0
    return ids, mask


@pytest.mark.parametrize("students", [1, 3])
def test_stacked_students_are_separate_students(students: int) -> None:
    models = [small(k, first_pieces=4) for k in range(students)]
    cohort, (ids, mask) = stack_cnns(models).eval(), batch()
    wanted = torch.stack([model(ids, mask).logits for model in models])
    pull = torch.randn(wanted.shape, generator=torch.Generator().manual_seed(2))
    for k, model in enumerate(models):
        model(ids, mask).logits.backward(pull[k])
    for chunk in (1, students):
        cohort.zero_grad()
        got = cohort(ids, mask, chunk=chunk).logits
        torch.testing.assert_close(got, wanted, atol=2e-6, rtol=1e-6)
        got.backward(pull)
        for k, model in enumerate(models):
            for name, parameter in model.named_parameters():
                torch.testing.assert_close(
                    cohort.model.get_parameter(name).grad[k], parameter.grad, atol=1e-6, rtol=1e-5
                )


def test_a_text_is_the_weighted_mean_of_its_pieces() -> None:
    model, (ids, mask) = small(0), batch()
    table = model.embeddings.weight
    row = table[ids[0, :3]]
    weight = row[:, -1].exp() / row[:, -1].exp().sum()
    mean = (weight[:, None] * row[:, :-1]).sum(0)
    wanted = model.classifier(model.dense(mean).relu())
    torch.testing.assert_close(model(ids, mask).logits[0], wanted)
    torch.testing.assert_close(model(ids.flip(1), mask.flip(1)).logits, model(ids, mask).logits)
    assert model(ids, torch.zeros_like(mask)).logits.isfinite().all()


def test_the_first_pieces_are_read_in_order_the_others_are_not() -> None:
    model, (ids, mask) = small(0, first_pieces=4), batch()
    wanted, table = model(ids, mask).logits, model.embeddings.weight
    row = table[ids[0, :3]]
    mean = (row[:, -1].softmax(0)[:, None] * row[:, :-1]).sum(0)
    features = torch.cat([mean, row[:, :-1].flatten(), torch.zeros(6)])  # a text of three pieces has no fourth
    torch.testing.assert_close(wanted[0], model.classifier(model.dense(features).relu()))
    torch.testing.assert_close(model(ids[:, [0, 1, 2, 3, *range(10, 3, -1)]][2:]).logits, wanted[2:])
    assert (model(ids[:, [1, 0, *range(2, 11)]][2:]).logits - wanted[2:]).abs().min(-1).values.min() > 1e-4


@pytest.mark.parametrize("padding", [0, 1, 9])
def test_padding_and_the_other_rows_change_nothing(padding: int) -> None:
    model, (ids, mask) = small(0, first_pieces=4), batch()
    wanted = model(ids, mask).logits
    for row, length in ((0, 3), (1, 10), (2, 11)):
        # padding of any id
        alone = F.pad(ids[row : row + 1, :length], (0, padding), value=7)
        got = model(alone, F.pad(mask[row : row + 1, :length], (0, padding))).logits
        torch.testing.assert_close(got[0], wanted[row], atol=1e-6, rtol=1e-5)
    one = model(ids[:1, :1], mask[:1, :1]).logits
    torch.testing.assert_close(model(F.pad(ids[:1, :1], (0, 6)), F.pad(mask[:1, :1], (0, 6))).logits, one)


def test_a_folder_of_before_the_first_pieces_loads(tmp_path: Path) -> None:
    small(0).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["first_pieces"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    loaded, info = AutoModelForSequenceClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()) and torch.equal(loaded(*batch()).logits, small(0)(*batch()).logits)


def test_training_drops_parts_of_the_first_pieces_whatever_the_view(tiny_encoder: Path) -> None:
    cohort, (ids, mask) = build_static_cohort(load_encoder(str(tiny_encoder)), ["a", "b"], 2, 8), batch()
    seen: list[torch.Tensor] = []
    cohort.model.dense.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    set_views(cohort, ["none", "dropout"])
    for training in (False, True):
        cohort.train(training)(ids % 30, mask)
    plain, dropped = torch.cat(seen).chunk(2)
    assert torch.equal(plain[:, :8], dropped[:, :8])  # the mean
    shown = plain[:, 8:] != 0
    assert abs((dropped[:, 8:][shown] == 0).float().mean() - FIRST_DROPOUT) < 0.05
    kept = dropped[:, 8:] != 0
    torch.testing.assert_close(dropped[:, 8:][kept] * (1 - FIRST_DROPOUT), plain[:, 8:][kept])


def test_pairs_have_no_first_pieces(tiny_encoder: Path) -> None:
    teacher = load_encoder(str(tiny_encoder))
    assert build_static_cohort(teacher, ["a", "b"], 1, 8).model.config.first_pieces == FIRST_PIECES
    teacher.config.text_pair = pair = {"separator": 3, "types": False}
    assert build_static_cohort(teacher, ["a", "b"], 1, 8).model.config.first_pieces == 0
    with pytest.raises(ValueError, match="first_pieces 2: expected 0"):
        StaticForSequenceClassification(StaticConfig(vocab_size=50, first_pieces=2, text_pair=pair))


def test_students_start_with_the_teachers_words(tiny_encoder: Path, tmp_path: Path) -> None:
    teacher = load_encoder(str(tiny_encoder))
    cohort = build_static_cohort(teacher, ["a", "b", "c"], 2, 32, seed=3)
    one, two = (student(cohort, k) for k in range(2))
    assert torch.equal(one.embeddings.weight, two.embeddings.weight)
    assert not torch.equal(one.dense.weight, two.dense.weight) and not one.embeddings.weight[:, -1].any()
    words = teacher.get_input_embeddings().weight
    wanted, got = words @ words.T, one.embeddings.weight[:, :-1] @ one.embeddings.weight[:, :-1].T
    torch.testing.assert_close(got * (wanted.norm() / got.norm()), wanted, atol=1e-4, rtol=1e-3)
    with pytest.raises(InputError, match="--embedding-width 33: .* have 32"):
        build_static_cohort(teacher, ["a"], 1, 33)
    save_student(cohort, 1, tmp_path / "m")
    loaded, info = AutoModelForSequenceClassification.from_pretrained(tmp_path / "m", output_loading_info=True)
    assert not any(info.values()) and torch.equal(loaded.eval()(batch()[0] % 30).logits, two(batch()[0] % 30).logits)


@pytest.fixture(scope="module")
def run(tiny_data: Path, tiny_encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("static") / "run"
    words = f"train --student static --embedding-width 12 --data {tiny_data} --teacher {tiny_encoder} --output {folder}"
    words += " --labels-per-class 30 --max-tokens 32 --targets classifier --views none,shuffle --teacher-steps 2"
    words += " --steps 60 --labelled-batch 24 --unlabelled-batch 8"
    assert main(words.split()) == 0
    return folder


def test_a_run_teaches_and_reports(run: Path, tiny_data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = json.loads((run / "report.json").read_text())
    assert max(s["accuracy"] for s in report["students"]) > 0.6  # chance: 0.33
    assert "student 1 (static)" in (run / "report.html").read_text()
    assert main(["evaluate", "--model", str(run), "--data", str(tiny_data)]) == 0
    assert json.loads(capsys.readouterr().out)["accuracy"] == report["students"][report["best"]]["accuracy"]


@NEEDS_ONNX
def test_onnx_of_any_length(tmp_path: Path) -> None:
    model = small(0, first_pieces=4)
    write_graph(model, tmp_path / "m.onnx")
    forward = onnx_session(tmp_path / "m.onnx", model.config)
    for length in (1, 2, 3, 4, 5, 11):  # fewer pieces than the first ones, as many, more
        ids, mask = (t[:, :length] for t in batch())
        torch.testing.assert_close(forward(ids, mask), model(ids, mask).logits, atol=1e-5, rtol=1e-5)


@NEEDS_ONNX
@pytest.mark.parametrize("int8", [False, True])
def test_onnx(run: Path, tmp_path: Path, int8: bool, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "--model", str(run), "--output", str(tmp_path / "m.onnx")] + ["--int8"] * int8) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["agreement"] > 0.8 if int8 else facts["max_difference"] < 1e-4


def test_a_run_repeats(tiny_data: Path, tiny_encoder: Path, tmp_path: Path) -> None:
    base = TrainConfig(
        data=str(tiny_data), teacher=str(tiny_encoder), student="static", embedding_width=12, labels_per_class=5,
        max_tokens=32, targets="classifier", steps=4, teacher_steps=0, views="dropout,adversarial",
    )  # fmt: skip
    weights = []
    for name in "ab":
        train(dataclasses.replace(base, output=str(tmp_path / name)))
        model = AutoModelForSequenceClassification.from_pretrained(tmp_path / name / "best")
        weights.append(model.get_input_embeddings().weight)
    assert torch.equal(*weights) and weights[0][:, -1].any(), "the pieces' weights are not trained"


@pytest.mark.parametrize(("name", "value"), [("tuning", "bias"), ("student_layers", 3)])
def test_what_means_nothing_is_refused(name: str, value: object) -> None:
    with pytest.raises(InputError, match=f"--{name.replace('_', '-')} {value}: .*static"):
        check_train(TrainConfig(output="x", student="static", **{name: value}))
