"""Static students: stacked as apart, blind to padding and order, and the same model wherever they go."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from nanonet.cli.main import main
from nanonet.cohort.cnn import stack_cnns
from nanonet.cohort.extract import save_student, student
from nanonet.cohort.static import build_static_cohort
from nanonet.config.check import check_train
from nanonet.config.train import TrainConfig
from nanonet.errors import InputError
from nanonet.inference.onnx_graph import NEEDED
from nanonet.models.load import load_encoder
from nanonet.models.static import StaticConfig, StaticForSequenceClassification
from nanonet.training.pipeline import train

NEEDS_ONNX = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in NEEDED), reason="needs nanonet[onnx]"
)


def small(seed: int) -> StaticForSequenceClassification:
    torch.manual_seed(seed)
    model = StaticForSequenceClassification(StaticConfig(vocab_size=50, embedding_size=6, dense_size=10, num_labels=3))
    torch.nn.init.normal_(model.embeddings.weight)  # the pieces' weights too
    return model.eval()


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    ids, mask = torch.randint(1, 50, (5, 11), generator=torch.Generator().manual_seed(1)), torch.ones(5, 11).long()
    mask[0, 3:] = mask[1, 10:] = 0
    return ids, mask


@pytest.mark.parametrize("students", [1, 3])
def test_stacked_students_are_separate_students(students: int) -> None:
    models = [small(k) for k in range(students)]
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
