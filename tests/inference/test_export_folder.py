"""The folder for all clients: what is in it, what its card says, what it replaces, and that nanonet reads it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import nanonet
from nanonet.cli.main import main
from nanonet.errors import InputError
from nanonet.inference import export as module
from nanonet.inference.card import _inline, _name
from nanonet.inference.classifier import load_classifier
from nanonet.inference.export_folder import file_names
from nanonet.inference.onnx_graph import NEEDED, input_names
from nanonet.inference.onnx_model import FLOAT, QUANTIZED
from nanonet.inference.scores import wilson

pytestmark = pytest.mark.skipif(
    any(__import__("importlib.util").util.find_spec(name) is None for name in NEEDED), reason="needs nanonet[onnx]"
)
# the second is longer than the 32 tokens of the run
TEXTS = ["the cat saw a dog", "rain and snow " * 20 + "bread cheese soup", "cake"]


@pytest.fixture(scope="module")
def folder(trained_run: Path, tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The best student of a short run, exported with scores and a licence; not to be written to."""
    output = tmp_path_factory.mktemp("folder") / "topics"
    words = ["export", "--model", trained_run, "--output", output, "--data", tiny_data, "--license", "apache-2.0"]
    assert main(list(map(str, words))) == 0
    assert [path.name for path in output.parent.iterdir()] == ["topics"]
    return output


def test_the_files(folder: Path, trained_run: Path) -> None:
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert found == file_names(folder) and {"model.safetensors", "tokenizer.json", FLOAT, QUANTIZED} < found
    config = json.loads((folder / "config.json").read_text())
    own = json.loads((trained_run / "best" / "config.json").read_text())
    assert config.pop("nanonet_version") == nanonet.__version__ and config == own
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    assert tokenizer["tokenizer_class"] == "PreTrainedTokenizerFast" and tokenizer["model_max_length"] == 32
    special = json.loads((folder / "special_tokens_map.json").read_text())
    assert special["pad_token"] == tokenizer["pad_token"] == "[PAD]"
    assert json.loads((folder / "tokenizer.json").read_text())["truncation"] is None


def test_names_and_sizes_of_the_graphs(folder: Path) -> None:
    import onnx

    for name in (FLOAT, QUANTIZED):
        graph = onnx.load(folder / name)
        assert [i.name for i in graph.graph.input] == ["input_ids", "attention_mask", "token_type_ids"]
        assert [o.name for o in graph.graph.output] == ["logits"]
        assert all(dim.dim_param for i in graph.graph.input for dim in i.type.tensor_type.shape.dim)
        properties = {p.key: json.loads(p.value) for p in graph.metadata_props}
        assert properties == {"labels": ["animals", "food", "weather"], "positions": 64}


def test_embeddings_and_matrices_have_8_bits(folder: Path) -> None:
    import onnx
    from onnx import TensorProto

    arrays = onnx.load(folder / QUANTIZED).graph.initializer
    floats = {array.name: list(array.dims) for array in arrays if array.data_type == TensorProto.FLOAT}
    assert all(len(dims) < 2 or 1 in dims for dims in floats.values()), floats  # biases, norms and scales
    vocabulary = len(AutoTokenizer.from_pretrained(folder))
    small = [list(array.dims) for array in arrays if array.data_type in (TensorProto.INT8, TensorProto.UINT8)]
    assert [vocabulary, 32] in small and [64, 32] in small  # words and positions


def test_transformers_reads_it(folder: Path, trained_run: Path) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    batch = AutoTokenizer.from_pretrained(folder)(TEXTS, padding=True, truncation=True, return_tensors="pt")
    assert batch["input_ids"].shape[1] == 32 and set(batch) == {"input_ids", "attention_mask", "token_type_ids"}
    with torch.no_grad():
        p = model(**batch).logits.softmax(-1).numpy()
    assert abs(p - nanonet.load(trained_run).predict_proba(TEXTS)).max() < 1e-5


def test_nanonet_reads_it(folder: Path, trained_run: Path, tiny_data: Path, tmp_path: Path, capsys) -> None:
    model, copy, small = (nanonet.load(place) for place in (trained_run, folder, folder / QUANTIZED))
    wanted = model.predict_proba(TEXTS)
    assert type(copy.model).__name__ == type(small.model).__name__ == "OnnxModel" and copy.classes == model.classes
    assert abs(copy.predict_proba(TEXTS) - wanted).max() < 1e-4
    assert 0 < abs(small.predict_proba(TEXTS) - wanted).max() < 2e-2
    assert copy.max_tokens == load_classifier(folder).max_tokens == 32
    with pytest.raises(InputError, match="positions for 64 tokens"):
        copy.probabilities(TEXTS, max_tokens=65)
    assert copy.predict(["", *TEXTS]) == [None, *model.predict(TEXTS)]
    (tmp_path / "t.txt").write_text("\n".join(TEXTS))
    found, accuracy = {}, None
    for place in (trained_run, folder, folder / FLOAT, folder / QUANTIZED):
        assert main(["predict", str(tmp_path / "t.txt"), "--model", str(place)]) == 0
        rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert main(["evaluate", "--data", str(tiny_data), "--model", str(place)]) == 0
        scores = json.loads(capsys.readouterr().out)
        found[place] = [row["label"] for row in rows]
        assert scores["device"] == "cpu" or place == trained_run
        accuracy = accuracy or scores["accuracy"]  # of the first, the model itself
        assert scores["accuracy"] == pytest.approx(accuracy, abs=0.05 if place.name == Path(QUANTIZED).name else 0)
    assert all(labels == model.predict(TEXTS) for labels in found.values())


def test_the_card(folder: Path, trained_run: Path) -> None:
    card, report = ModelCard.load(folder / "README.md"), json.loads((trained_run / "report.json").read_text())
    data = card.data.to_dict()
    assert (data["pipeline_tag"], data["library_name"]) == ("text-classification", "transformers")
    assert data["license"] == "apache-2.0" and {"onnx", "transformers.js"} < set(data["tags"])
    student, rows = report["students"][report["best"]], report["data"]["test"]
    low, high = wilson(student["accuracy"], rows)
    line = f"| this model | {rows} | {student['accuracy']:.4f} | {low:.4f} to {high:.4f} | {student['macro_f1']:.4f} |"
    assert line in card.text and f"| its teacher | {rows} | {report['teacher']['accuracy']:.4f}" in card.text
    assert f"| this model, `{QUANTIZED}` | 60 |" in card.text and "`animals`, `food`, `weather`" in card.text
    assert f"{report['data']['labelled']} labelled and {report['data']['unlabelled']} unlabelled" in card.text
    # somebody's folders stay their own
    assert str(trained_run.parent.parent) not in card.text
    for heading in ("transformers", "onnxruntime", "Optimum", "transformers.js"):
        assert f"### {heading}\n" in card.text


@pytest.mark.parametrize("report", ["", "[]", '{"best": 0}', '{"best": 0, "students": [], "teacher": {}, "data": {}}'])
def test_a_card_without_a_run(report: str, trained_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model whose run is not known, or whose report is another program's: the card tells what is known."""
    shutil.copytree(trained_run / "best", tmp_path / "best")
    (tmp_path / "report.json").write_text(report)
    model = nanonet.load(tmp_path / "best")
    (tmp_path / "o" / "onnx").mkdir(parents=True)
    for name in (FLOAT, QUANTIZED):
        (tmp_path / "o" / name).write_text("")
    module.write_card(model, tmp_path / "o", "o", {"agreement_int8": 1.0}, 0, "")
    card = ModelCard.load(tmp_path / "o" / "README.md")
    assert "license" not in card.data.to_dict() and "## Accuracy" not in card.text and "taught by" not in card.text


def test_names_are_no_markup() -> None:
    assert _inline("a|b`c<script>\n\x1b[1m") == "a'b'c'script' \\x1b[1m"
    assert _name("/home/somebody/news") == "news" and _name("intfloat/e5-small") == "intfloat/e5-small"


def test_overwrite_replaces_what_is_ours_alone(folder: Path, trained_run: Path, tmp_path: Path, capsys, monkeypatch):
    output = tmp_path / "o"
    shutil.copytree(folder, output)
    # what it writes is not looked at here
    monkeypatch.setattr(module, "_write_folder", lambda classifier, written, *rest: written.mkdir() or {})
    monkeypatch.setattr(module, "write_card", lambda classifier, written, *rest: (written / "new").write_text(""))
    words = ["export", "--model", str(trained_run), "--output", str(output)]
    assert main(words) == 2 and "give --overwrite" in capsys.readouterr().err
    (output / "onnx" / "notes.txt").write_text("mine")
    assert main([*words, "--overwrite"]) == 2 and "holds onnx/notes.txt" in capsys.readouterr().err
    (output / "onnx" / "notes.txt").unlink()
    assert main([*words, "--overwrite"]) == 0
    assert [path.name for path in output.iterdir()] == ["new"] and [path.name for path in tmp_path.iterdir()] == ["o"]
    # a README.md in a model's folder that nanonet export did not write is somebody's own
    shutil.rmtree(output)
    shutil.copytree(trained_run / "best", output)
    (output / "README.md").write_text("mine")
    assert main([*words, "--overwrite"]) == 2 and "holds README.md" in capsys.readouterr().err
    assert (output / "README.md").read_text() == "mine"


def test_a_failed_folder_leaves_nothing(trained_run: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    def other_tokens(classifier, written: Path) -> None:
        shutil.copytree(classifier.folder, written)
        file = written / "tokenizer.json"
        file.write_text(file.read_text().replace('"the"', '"zzz"'))

    monkeypatch.setattr(module, "write_files", other_tokens)
    assert main(["export", "--model", str(trained_run), "--output", str(tmp_path / "o")]) == 2
    assert "gives other tokens" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_inputs_are_what_tokenizer_and_model_share(trained_run: Path) -> None:
    class Tokens:
        def __init__(self, **made: list[int]) -> None:
            self.made = made

        def __call__(self, text: str, **options: object) -> dict[str, list[int]]:
            return self.made

    model = nanonet.load(trained_run).model
    assert input_names(model, Tokens(token_type_ids=[0, 0])) == ("input_ids", "attention_mask", "token_type_ids")
    # XLNet's last token is of type 2, which a model that is given none does not assume
    for tokenizer in (Tokens(token_type_ids=[0, 2]), Tokens()):
        assert input_names(model, tokenizer) == ("input_ids", "attention_mask")
    model.config.type_vocab_size = 1  # RoBERTa has none to tell apart
    assert input_names(model, Tokens(token_type_ids=[0, 0])) == ("input_ids", "attention_mask")


@pytest.mark.parametrize("damage", ["cut", "classes", "alone"])
def test_damaged_onnx_is_refused(damage: str, folder: Path, tmp_path: Path, capsys) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    name = copy
    if damage == "cut":
        (copy / FLOAT).write_bytes((copy / FLOAT).read_bytes()[:5000])
    elif damage == "classes":
        config = json.loads((copy / "config.json").read_text())
        config["id2label"] = {"0": "a", "1": "b"}
        (copy / "config.json").write_text(json.dumps(config))
    else:
        name = tmp_path / "alone.onnx"
        (copy / FLOAT).rename(name)
    (tmp_path / "t.txt").write_text("the cat\n")
    assert main(["predict", str(tmp_path / "t.txt"), "--model", str(name)]) == 2
    said = capsys.readouterr()
    wanted = {"cut": "onnxruntime cannot read model.onnx", "classes": "has 3 classes, config.json 2"}
    assert wanted.get(damage, "no config.json and tokenizer beside") in said.err and not said.out


def test_onnx_without_onnxruntime(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else find(name))
    with pytest.raises(InputError, match="pip install onnxruntime"):
        nanonet.load(folder)


@pytest.mark.slow
def test_a_calibrated_student(tiny_data: Path, tiny_encoder: Path, tmp_path: Path) -> None:
    """The factor of --calibrate is in the head, and so in the ONNX files."""
    words = f"train --data {tiny_data} --teacher {tiny_encoder} --labels-per-class 10 --max-tokens 32 --threads 1"
    words += " --targets classifier --steps 20 --learning-rate 5e-3 --output "
    found = {}
    for run, flags in (("plain", " --no-calibrate"), ("calibrated", "")):
        assert main((words + str(tmp_path / run) + flags).split()) == 0
        found[run] = nanonet.load(tmp_path / run).predict_proba(TEXTS)
    assert abs(found["plain"] - found["calibrated"]).max() > 0.01
    assert main(["export", "--model", str(tmp_path / "calibrated"), "--output", str(tmp_path / "o")]) == 0
    assert abs(nanonet.load(tmp_path / "o").predict_proba(TEXTS) - found["calibrated"]).max() < 1e-4
    assert np.allclose(found["calibrated"].sum(1), 1, atol=1e-5)
