"""Teachers and classifiers that will not do."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, FNetConfig, FNetForSequenceClassification

from nanonet.cli.main import main

# files in the working folder, arguments (see conftest.py), fragments of the message
Case = tuple[dict[str, str | bytes], str, list[str]]

MODEL: dict[str, Case] = {
    "no such teacher": (
        {},
        "train --teacher {here}/nope --data {data} --output {out}",
        ["nope", "no such folder", "give"],
    ),
    "teacher without config": (
        {"m/readme": ""},
        "train --teacher {here}/m --data {data} --output {out}",
        ["no config.json", "save_pretrained"],
    ),
    "pickled teacher": (
        {"m/config.json": '{"model_type": "bert"}', "m/pytorch_model.bin": "x", "m/tokenizer.json": "{}"},
        "train --teacher {here}/m --data {data} --output {out}",
        ["m", "give a complete model folder with model.safetensors"],
    ),
    "a module of Python's": ({}, "train --teacher os --data {data} --output {out}", ["os", "did not answer"]),
    "no hub": (
        {},
        "train --teacher some/encoder --data {data} --output {out}",
        ["some/encoder", "did not answer", "give"],
    ),
    "no model": ({}, "evaluate --data {data}", ["--model is missing", "give a folder"]),
    "no such model": ({}, "evaluate --model {here}/nope --data {data}", ["nope", "does not exist", "give a folder"]),
    "model is a file": ({"m": "x"}, "predict --model {here}/m", ["is a file", "give a folder"]),
    "unfinished run": ({"r/config.yaml": "steps: 3\n"}, "predict --model {here}/r", ["not finished", "--resume"]),
    "adapter": ({"m/adapter_config.json": "{}"}, "predict --model {here}/m", ["an adapter", "merge_and_unload"]),
    "pickled model": (
        {"m/config.json": '{"model_type": "bert"}', "m/pytorch_model.bin": "x"},
        "predict --model {here}/m",
        ["pytorch_model.bin", "run code", "model.safetensors"],
    ),
    "model without a head": ({}, "predict --model {encoder}", ["not a trained text classifier", "classifier"]),
    "damaged weights": (
        {"m/config.json": '{"model_type": "bert"}', "m/model.safetensors": "x"},
        "predict --model {here}/m",
        ["cannot load it", "give a folder"],
    ),
}


@pytest.mark.parametrize("case", MODEL.values(), ids=MODEL)
def test_bad_model(case: Case, refuses: Callable[..., None]) -> None:
    refuses(*case)


@pytest.mark.parametrize(
    ("change", "fragment"),
    [
        ({"id2label": {"0": "a", "1": "a", "2": "b"}}, "two classes have one name"),
        ({"id2label": {"0": "a", "2": "b", "3": "c"}}, "not a classifier into one of"),
        ({"problem_type": "multi_label_classification"}, "not a classifier into one of"),
        ({"hidden_size": 64}, "other shapes than config.json says"),
        ({"num_hidden_layers": 9}, "weights are missing"),
        ({"num_hidden_layers": 1}, "fewer layers than it has weights"),
        ({"model_type": "nope"}, "cannot load it"),
        ({"hidden_size": "x"}, "cannot load it"),
        ({"id2label": ["a"]}, "cannot load it"),
    ],
)
def test_a_models_config_that_lies(
    run: Path, tmp_path: Path, change: dict, fragment: str, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(run / "best", tmp_path / "m")
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    (tmp_path / "m" / "config.json").write_text(json.dumps(config | change))
    (tmp_path / "t.txt").write_text("a cat\n")
    assert main(["predict", str(tmp_path / "t.txt"), "--model", str(tmp_path / "m")]) == 2
    err = capsys.readouterr().err
    assert fragment in err and err.count("\n") == 1


def test_weights_that_are_no_numbers(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(run / "best", tmp_path / "m")
    weights = load_file(tmp_path / "m" / "model.safetensors")
    weights["classifier.bias"][0] = float("nan")
    save_file(weights, tmp_path / "m" / "model.safetensors", {"format": "pt"})
    (tmp_path / "t.txt").write_text("a cat\n")
    assert main(["predict", str(tmp_path / "t.txt"), "--model", str(tmp_path / "m")]) == 2
    assert "logits that are not finite numbers" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["predict {here}/t.txt --model {here}/m", "train {shared} --teacher {here}/m"])
def test_a_padding_token_that_the_model_does_not_know(
    command: str, run: Path, tmp_path: Path, refuses: Callable[..., None]
) -> None:
    shutil.copytree(run / "best", tmp_path / "m")
    settings = json.loads((tmp_path / "m" / "tokenizer_config.json").read_text())
    (tmp_path / "m" / "tokenizer_config.json").write_text(json.dumps(settings | {"pad_token": "zzz"}))
    refuses({"t.txt": "a cat\n"}, command, ["its tokenizer knows more tokens than the model"])


def test_what_a_teachers_config_says_of_its_own_head_is_not_the_students(
    tiny_encoder: Path, tmp_path: Path, fill: Callable[[str], list[str]]
) -> None:
    shutil.copytree(tiny_encoder, tmp_path / "m")
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    own = {"problem_type": "multi_label_classification", "output_attentions": True, "output_hidden_states": True}
    (tmp_path / "m" / "config.json").write_text(json.dumps(config | own))
    assert main(fill("train {shared} --teacher {here}/m --teacher-steps 0")) == 0
    assert main(fill("evaluate --model {out} --data {data}")) == 0


def test_a_model_that_sees_the_padding(tiny_encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_encoder)
    tokenizer.save_pretrained(tmp_path / "m")
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 32, "max_position_embeddings": 64}
    FNetForSequenceClassification(FNetConfig(vocab_size=len(tokenizer), **sizes)).save_pretrained(tmp_path / "m")
    (tmp_path / "t.txt").write_text("a cat\n")
    assert main(["predict", str(tmp_path / "t.txt"), "--model", str(tmp_path / "m")]) == 2
    assert "depend on a text's padding" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words", ["train --teacher no/such --data {data} --output {out}", "train --data no/such --output {out}"]
)
def test_a_hub_that_is_not_there_is_given_up_soon(
    fill: Callable[[str], list[str]], words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # a real request, to an address where nobody listens
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    began = time.perf_counter()
    assert main(fill(words)) == 2
    # huggingface_hub's own retries go on for half a minute
    assert time.perf_counter() - began < 12
    first, last = capsys.readouterr().err.splitlines()
    assert "no/such" in first and "Hugging Face hub" in first and last.startswith("nanonet: error: ")
