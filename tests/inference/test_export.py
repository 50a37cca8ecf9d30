"""A model that leaves says what it said before, or does not leave."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from support.grids import slow
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from nanonet.cli.main import main
from nanonet.inference import export as module
from nanonet.inference import onnx_graph
from nanonet.inference.export import TOLERANCE, _compare

NEEDS_ONNX = pytest.mark.skipif(
    any(__import__("importlib.util").util.find_spec(name) is None for name in onnx_graph.NEEDED),
    reason="needs nanonet[onnx]",
)


@pytest.fixture(scope="module")
def run(tiny_encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder as nanonet train leaves it, with two random students of which the second is the best."""
    folder = tmp_path_factory.mktemp("export") / "run"
    config = AutoConfig.from_pretrained(tiny_encoder)
    config.id2label = {0: "animals", 1: "food", 2: "weather"}
    tokenizer = AutoTokenizer.from_pretrained(tiny_encoder)
    for name, seed in (("student-0", 0), ("student-1", 1), ("best", 1)):
        torch.manual_seed(seed)
        model = AutoModelForSequenceClassification.from_config(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(4) if parameter.dim() == 2 else None
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    (folder / "config.yaml").write_text("max_tokens: 32\n")
    return folder


@NEEDS_ONNX
def test_what_torch_cannot_write_as_onnx(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    def fails(*arguments: object, **options: object) -> None:
        raise RuntimeError("a page\nof graph")

    monkeypatch.setattr(torch.onnx, "export", fails)
    assert main(["export", "--model", str(run), "--output", str(tmp_path / "m.onnx")]) == 2
    assert "cannot write BertForSequenceClassification as ONNX (RuntimeError: a page); give" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def logits(folder: Path, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=mask).logits


@NEEDS_ONNX
@pytest.mark.parametrize("int8", [slow(False), True])
def test_onnx_takes_any_batch_and_length(
    run: Path, tmp_path: Path, int8: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    import onnx
    import onnxruntime

    path = tmp_path / "m.onnx"
    words = ["export", "--model", str(run), "--student", "0", "--output", str(path)] + ["--int8"] * int8
    assert main(words) == 0
    captured = capsys.readouterr()
    facts = json.loads(captured.out)
    assert captured.err == "" and [p.name for p in tmp_path.iterdir()] == ["m.onnx"]
    assert facts["size_mb"] == pytest.approx(path.stat().st_size / 1e6, abs=0.006)
    assert (facts["agreement"] > 0.8) if int8 else (facts["max_difference"] < 1e-4)
    labels = {p.key: p.value for p in onnx.load(path).metadata_props}["labels"]
    assert json.loads(labels) == ["animals", "food", "weather"]
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for B, L in ((1, 1), (3, 7), (5, 64)):
        ids = torch.randint(4, 30, (B, L), generator=torch.Generator().manual_seed(B))
        mask = torch.ones_like(ids)
        mask[0, (L + 1) // 2 :] = 0
        got = session.run(["logits"], {"input_ids": ids.numpy(), "attention_mask": mask.numpy()})[0]
        error = (torch.from_numpy(got) - logits(run / "student-0", ids, mask)).abs().max()
        assert error < (1.0 if int8 else 1e-4)


def test_a_students_folder_is_copied(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ids = torch.arange(12).view(2, 6) + 4
    for student, source in ((0, "student-0"), (1, "student-1"), (-1, "best")):
        output = tmp_path / source
        words = ["export", "--model", str(run), "--format", "huggingface", "--output", str(output)]
        assert main([*words, "--student", str(student)]) == 0
        facts = json.loads(capsys.readouterr().out)
        assert facts["max_difference"] == 0 and facts["size_mb"] > 0
        assert torch.equal(logits(output, ids, torch.ones_like(ids)), logits(run / source, ids, torch.ones_like(ids)))
    assert main([*words, "--overwrite"]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best", "student-0", "student-1"]


def test_other_logits_are_refused() -> None:
    wanted = torch.tensor([[3.0, -20.0]])
    assert _compare(wanted + TOLERANCE, wanted, "it") == pytest.approx(TOLERANCE, rel=1e-2)
    for bad in (torch.full((1, 2), torch.nan), wanted * 1.01):
        with pytest.raises(module.InputError, match="it gives other logits"):
            _compare(bad, wanted, "it")


def test_a_failed_export_leaves_nothing(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TOLERANCE", -1.0)
    words = ["export", "--model", str(run), "--format", "huggingface", "--output", str(tmp_path / "o")]
    assert main(words) == 2 and not list(tmp_path.iterdir())


def test_a_missing_package_is_named(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(onnx_graph, "NEEDED", ("onnx", "no_such_package"))
    assert main(["export", "--model", str(run), "--output", str(tmp_path / "m.onnx")]) == 2
    assert "no_such_package" in (said := capsys.readouterr().err) and "pip install nanonet[onnx]" in said


@NEEDS_ONNX
def test_data_is_scored_before_and_after(
    run: Path, tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["export", "--model", str(run), "--data", str(tiny_data), "--output"]
    assert main([*words, str(tmp_path / "m.onnx")]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["before"]["accuracy"] == facts["after"]["accuracy"]  # float32: the same labels
    assert main(["evaluate", "--model", str(run), "--data", str(tiny_data)]) == 0
    known = json.loads(capsys.readouterr().out)
    assert {name: facts["before"][name] for name in ("accuracy", "macro_f1")} == {
        name: known[name] for name in ("accuracy", "macro_f1")
    }
    assert all(facts[side][name] > 0 for side in ("before", "after") for name in ("rows_per_s", "ms_per_text"))
    assert main([*words, str(tmp_path / "copy"), "--format", "huggingface"]) == 2
    assert "--data goes with ONNX" in capsys.readouterr().err
    assert main(["export", "--model", str(run), "--data", "nowhere.csv", "--output", str(tmp_path / "n.onnx")]) == 2
    assert "nowhere.csv" in capsys.readouterr().err and not (tmp_path / "n.onnx").exists()
