"""Convolutional students: grouped as apart, blind to padding, and the same model wherever they go."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

from nanonet.cli.main import main
from nanonet.cohort.cnn import build_cnn_cohort, factorise, stack_cnns
from nanonet.cohort.extract import save_student, student
from nanonet.cohort.model import Cohort, count_parameters, matrix_names
from nanonet.config.train import TrainConfig
from nanonet.errors import InputError
from nanonet.inference.onnx_graph import NEEDED
from nanonet.models.cnn import CnnConfig, CnnForSequenceClassification
from nanonet.models.load import load_encoder
from nanonet.training.pipeline import train

LABELS = ["animals", "food", "weather"]
NEEDS_ONNX = pytest.mark.skipif(
    any(__import__("importlib.util").util.find_spec(name) is None for name in NEEDED), reason="needs nanonet[onnx]"
)


def small(seed: int, **changes) -> CnnForSequenceClassification:
    torch.manual_seed(seed)
    sizes = {"vocab_size": 50, "embedding_size": 6, "hidden_size": 8, "num_hidden_layers": 3, "dense_size": 10}
    return CnnForSequenceClassification(CnnConfig(**{**sizes, "num_labels": 3, **changes})).eval()


def batch(B: int = 5, L: int = 11) -> tuple[torch.Tensor, torch.Tensor]:
    ids, mask = torch.randint(1, 50, (B, L), generator=torch.Generator().manual_seed(1)), torch.ones(B, L).long()
    mask[0, 3:] = mask[1, L - 1 :] = 0
    return ids, mask


# a width that is the channels' own would hide a swap of the two; 1 student takes a path of its own
@pytest.mark.parametrize("students", [1, 3])
@pytest.mark.parametrize("kernel", [1, 5])
def test_grouped_students_are_separate_students(students: int, kernel: int) -> None:
    models = [small(k, kernel_size=kernel) for k in range(students)]
    cohort, (ids, mask) = stack_cnns(models).eval(), batch()
    wanted = torch.stack([model(ids, mask).logits for model in models])
    for chunk in (1, students):
        torch.testing.assert_close(cohort(ids, mask, chunk=chunk).logits, wanted, atol=2e-6, rtol=1e-6)
    pull = torch.randn(wanted.shape, generator=torch.Generator().manual_seed(2))
    for chunk in (1, students):
        cohort.zero_grad()
        cohort(ids, mask, chunk=chunk).logits.backward(pull)
        for k, model in enumerate(models):
            model.zero_grad()
            model(ids, mask).logits.backward(pull[k])
            for name, parameter in model.named_parameters():
                stacked = cohort.model.get_parameter(name).grad
                assert stacked is not None and parameter.grad is not None
                torch.testing.assert_close(stacked[k], parameter.grad, atol=1e-6, rtol=1e-5)


def test_padding_changes_nothing() -> None:
    model, (ids, _) = small(0), batch()
    alone = model(ids, torch.ones_like(ids)).logits
    padded, mask = torch.full((5, 40), 7), torch.zeros(5, 40).long()
    padded[:, :11], mask[:, :11] = ids, 1
    torch.testing.assert_close(model(padded, mask).logits, alone, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(model(ids).logits, alone)
    # a text shorter than a kernel
    torch.testing.assert_close(
        model(ids[:, :1]).logits, model(padded[:, :9], (mask[:, :9].cumsum(1) < 2).long()).logits
    )


def test_every_layer_reaches_the_logits() -> None:
    model, (ids, mask) = small(0), batch()
    model(ids, mask, labels=torch.tensor([0, 1, 2, 0, 1])).loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
    # blended: without the later layers' channels the first layer's still tell texts apart
    with torch.no_grad():
        model.dense.weight[:, 8:] = 0
    assert model(ids, mask).logits.std(0).min() > 0


def test_a_smaller_table_keeps_dot_products(tiny_encoder: Path) -> None:
    g = torch.Generator().manual_seed(0)
    table = torch.randn(200, 8, generator=g) @ torch.randn(8, 32, generator=g)  # of rank 8
    low = factorise(table, 8)
    wanted, got = table @ table.T, low @ low.T
    torch.testing.assert_close(got * (wanted.norm() / got.norm()), wanted, atol=1e-3, rtol=1e-3)
    assert low.square().mean().item() == pytest.approx(1, abs=1e-4)
    with pytest.raises(InputError, match="--embedding-width 33: .* have 32; give 32 or less"):
        build_cnn_cohort(load_encoder(str(tiny_encoder)), LABELS, 2, 33)


@pytest.fixture
def cohort(tiny_encoder: Path) -> Cohort:
    return build_cnn_cohort(load_encoder(str(tiny_encoder)), LABELS, 2, 12, seed=3)


def test_students_differ_and_share_the_teachers_words(cohort: Cohort) -> None:
    one, two = (dict(student(cohort, k).named_parameters()) for k in range(2))
    assert torch.equal(one["embeddings.weight"], two["embeddings.weight"])
    assert all(
        not torch.equal(one[name], two[name]) for name in one if name.startswith("layers.") and "bias" not in name
    )
    total, trainable = count_parameters(cohort)
    assert total == trainable == sum(p.numel() for p in one.values())
    assert all(p.requires_grad and p.shape[0] == 2 for p in cohort.parameters())
    decayed = matrix_names(cohort)
    assert "model.layers.0.weight" in decayed and not any("bias" in n or "embed" in n for n in decayed)


def test_a_saved_student_is_the_same(cohort: Cohort, tmp_path: Path) -> None:
    ids = torch.randint(1, 30, (4, 9), generator=torch.Generator().manual_seed(0))
    save_student(cohort, 1, tmp_path / "m")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m"]
    model, info = AutoModelForSequenceClassification.from_pretrained(tmp_path / "m", output_loading_info=True)
    assert not any(info.values()) and AutoConfig.from_pretrained(tmp_path / "m").id2label == dict(enumerate(LABELS))
    assert torch.equal(model.eval()(ids).logits, student(cohort, 1)(ids).logits)


def test_nanonet_alone_does_not_load_transformers(tmp_path: Path) -> None:
    code = "import sys, nanonet; sys.exit('transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=tmp_path, timeout=60).returncode == 0


# --- runs from the data to the report


@pytest.fixture(scope="module")
def run(tiny_data: Path, tiny_encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cnn") / "run"
    words = f"train --student cnn --embedding-width 12 --data {tiny_data} --teacher {tiny_encoder} --output {folder}"
    words += " --labels-per-class 30 --max-tokens 32 --targets classifier --views none,shuffle"
    words += " --steps 40 --labelled-batch 24 --unlabelled-batch 8 --learning-rate 5e-3"
    assert main(words.split()) == 0
    return folder


def test_a_run_teaches_and_reports(run: Path) -> None:
    report = json.loads((run / "report.json").read_text())
    assert max(s["accuracy"] for s in report["students"]) > 0.6  # chance: 0.33
    assert [s["layers"] for s in report["students"]] == [[], []]
    assert "student 1 (CNN)" in (page := (run / "report.html").read_text()) and "cut down and trained" in page


def test_evaluate_and_predict(run: Path, tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = json.loads((run / "report.json").read_text())
    assert main(["evaluate", "--model", str(run), "--data", str(tiny_data)]) == 0
    assert json.loads(capsys.readouterr().out)["accuracy"] == report["students"][report["best"]]["accuracy"]
    (tmp_path / "t.txt").write_text("a cat\nbread\n")
    assert main(["predict", str(tmp_path / "t.txt"), "--model", str(run / "student-0")]) == 0
    assert [json.loads(line)["text"] for line in capsys.readouterr().out.splitlines()] == ["a cat", "bread"]


@NEEDS_ONNX
@pytest.mark.parametrize("int8", [False, True])
def test_onnx(run: Path, tmp_path: Path, int8: bool, capsys: pytest.CaptureFixture[str]) -> None:
    import onnxruntime

    path = tmp_path / "m.onnx"
    assert main(["export", "--model", str(run), "--output", str(path)] + ["--int8"] * int8) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["agreement"] > 0.8 if int8 else facts["max_difference"] < 1e-4
    model = AutoModelForSequenceClassification.from_pretrained(run / "best").eval()
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for B, L in ((1, 1), (3, 7), (5, 64)):
        ids = torch.randint(4, 30, (B, L), generator=torch.Generator().manual_seed(B))
        mask = torch.ones_like(ids)
        mask[0, (L + 1) // 2 :] = 0
        got = session.run(["logits"], {"input_ids": ids.numpy(), "attention_mask": mask.numpy()})[0]
        assert (torch.from_numpy(got) - model(ids, mask).logits).abs().max() < (1.0 if int8 else 1e-4)


def test_a_run_repeats(run: Path, tmp_path: Path, tiny_data: Path, tiny_encoder: Path) -> None:
    base = TrainConfig(
        data=str(tiny_data), teacher=str(tiny_encoder), student="cnn", embedding_width=12, labels_per_class=5,
        max_tokens=32, targets="classifier", steps=4, views="dropout,adversarial",
    )  # fmt: skip
    weights = []
    for name, changes in (
        ("a", {}),
        ("b", {}),
        ("c", {"embedding_width": 11}),
        ("d", {"teacher_mode": "online", "targets": "auto"}),
    ):
        train(dataclasses.replace(base, output=str(tmp_path / name), **changes))  # type: ignore[arg-type]
        model = AutoModelForSequenceClassification.from_pretrained(tmp_path / name / "best")
        weights.append(model.get_input_embeddings().weight)
    assert torch.equal(weights[0], weights[1]) and weights[2].shape[1] == 11
    assert not torch.equal(weights[0], weights[3])


@pytest.mark.parametrize(
    ("words", "fragments"),
    [
        ("--tuning bias", ["--tuning bias", "leave it at full"]),
        ("--layer-mapping bottom-top", ["--layer-mapping bottom-top", "leave it out"]),
        ("--embedding-width 0", ["--embedding-width 0", "1 or more"]),
        ("--embedding-width 400", ["--embedding-width 400", "give 32 or less"]),
        ("--student rnn", ["--student rnn", "encoder, cnn"]),
        ("--student encoder --embedding-width 50", ["--embedding-width 50", "leave it out"]),
    ],
)
def test_bad_input(
    words: str,
    fragments: list[str],
    tiny_data: Path,
    tiny_encoder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shared = f"train --student cnn --data {tiny_data} --teacher {tiny_encoder} --max-tokens 32 --output {tmp_path}/out "
    assert main((shared + words).split()) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and all(fragment in err for fragment in fragments), err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "fragment"),
    [
        ({"kernel_size": 4}, "kernel_size 4"),
        ({"embedding_size": 13}, "other shapes than config.json says"),
    ],
)
def test_a_models_config_that_lies(
    run: Path, tmp_path: Path, change: dict, fragment: str, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(run / "best", tmp_path / "m")
    path = tmp_path / "m" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    (tmp_path / "t.txt").write_text("a cat\n")
    assert main(["predict", str(tmp_path / "t.txt"), "--model", str(tmp_path / "m")]) == 2
    err = capsys.readouterr().err
    assert fragment in err and err.count("\n") == 1
