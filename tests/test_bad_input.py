"""What a user can get wrong: one line that names the thing and the cure, exit code 2, and nothing touched."""

from __future__ import annotations

import gzip
import io
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub import HfApi

from nanonet.cli import main

ROWS = "".join(json.dumps({"text": f"cat bread rain {n}", "label": ["a", "b"][n % 2]}) + "\n" for n in range(40))
GZIP = gzip.compress((ROWS * 50).encode())
SHARED = "--data {data} --teacher {encoder} --output {out} --max-tokens 32 --steps 2"

# (files in the working folder, arguments, fragments of the message). {data} {encoder} {run} are good ones, {out} is
# where the output would be, {here} the working folder.
Case = tuple[dict[str, str | bytes], str, list[str]]

DATA: dict[str, Case] = {
    "no such file": ({}, "train --data {here}/nope.csv --output {out}", ["nope.csv", "does not exist", "give a file"]),
    "no such column": (
        {"a.csv": "text,class\na,0\n"},
        "train --data {here}/a.csv --output {out}",
        ["line 1", "'class'"],
    ),
    "one class": ({"a.csv": "text,label\na,x\nb,x\n"}, "train --data {here}/a.csv --output {out}", ["two classes"]),
    "too few rows of a class": (
        {"a.jsonl": ROWS},
        "train --data {here}/a.jsonl --labels-per-class 30 --teacher {encoder} --max-tokens 32 --output {out}",
        ["class 'a'", "30", "lower it"],
    ),
    "unknown label": (
        {"d/train.jsonl": ROWS, "d/labels.json": '["a", "c"]'},
        "train --data {here}/d --output {out}",
        ["line 2", "'b'", "'a', 'c'"],
    ),
    "empty text": ({"a.csv": "text,label\n,x\nb,y\n"}, "train --data {here}/a.csv --output {out}", ["line 2", "empty"]),
    "latin-1": ({"a.csv": b"text,label\ncaf\xe9,x\n"}, "train --data {here}/a.csv --output {out}", ["line 2", "utf-8"]),
    "broken gzip": (
        {"a.jsonl.gz": GZIP[: len(GZIP) // 2]},
        "train --data {here}/a.jsonl.gz --output {out}",
        ["a.jsonl.gz", "ends too early", "again"],
    ),
    "broken JSON": (
        {"a.jsonl": ROWS + '{"text" "a"}\n'},
        "train --data {here}/a.jsonl --output {out}",
        ["line 41", "invalid JSON"],
    ),
    "empty unlabelled file": (
        {"u.csv": ""},
        "train --unlabelled {here}/u.csv " + SHARED,
        ["u.csv", "is empty", "give a file"],
    ),
}

CONFIG: dict[str, Case] = {
    "no output": ({}, "train --data {data}", ["--output is missing", "name the folder"]),
    "unknown choice": ({}, "train --tuning biases --output {out}", ["--tuning biases", "bias, lora, full, head"]),
    "prior without propagation": (
        {},
        "train --uniform-prior --output {out}",
        ["--uniform-prior", "--targets propagation"],
    ),
    "no number": ({}, "train --steps many --output {out}", ["--steps many", "whole number"]),
    "fraction for a count": ({}, "train --steps 1.5 --output {out}", ["--steps 1.5", "whole number"]),
    "more threads than cores": ({}, "train --threads 100000 --output {out}", ["--threads 100000", "or less"]),
    "seed of too many bits": (
        {},
        "train --seed 99999999999 --output {out}",
        ["--seed 99999999999", "4294967295 or less"],
    ),
    "negative": ({}, "train --students -1 --output {out}", ["--students -1", "1 or more"]),
    "not a number": ({}, "train --ce-weight nan --output {out}", ["--ce-weight nan", "0 or more"]),
    "no value": ({}, "train --output {out} --steps", ["--steps", "needs a value", "--help"]),
    "value for a switch": ({}, "train --resume=yes --output {out}", ["--resume", "takes no value"]),
    "unknown flag": ({}, "train --lables-per-class 3 --output {out}", ["--lables-per-class", "--labels-per-class?"]),
    "stray word": ({}, "train {data} --output {out}", ["not a flag", "--help"]),
    "unknown command": ({}, "trian --output {out}", ["trian", "did you mean train?", "evaluate, predict"]),
    "resume and overwrite": ({}, "train --resume --overwrite --output {out}", ["--resume and --overwrite", "one"]),
    "mse and temperature": (
        {},
        "train --divergence mse --temperature 2 --output {out}",
        ["--temperature 2.0", "mse", "leave it at 1"],
    ),
    "relations to a teacher that trains": (
        {},
        "train --relation-weight 1 --teacher-mode online --output {out}",
        ["--relation-weight 1.0", "--teacher-mode frozen"],
    ),
    "rank of an adapter that is not there": ({}, "train --lora-rank 4 " + SHARED, ["--lora-rank 4", "--tuning full"]),
    "tuning of a teacher that trains": (
        {},
        "train --teacher-mode online --teacher-steps 7 " + SHARED,
        ["--teacher-steps 7", "--teacher-mode online"],
    ),
    "column of a corpus without files": ({}, "train --text-column a --output {out}", ["--text-column a", "pydocs"]),
    "unknown view": ({}, "train --views blur " + SHARED, ["blur", "cutoff"]),
    "deeper than the teacher": ({}, "train --student-layers 9 " + SHARED, ["--student-layers 9", "1 to 4"]),
    "layers that are not there": ({}, "train --layer-mapping 0,9;1,2 " + SHARED, ["no layer 9", "0 to 3"]),
    "longer than the teacher": (
        {},
        "train --data {data} --teacher {encoder} --output {out} --max-tokens 500",
        ["--max-tokens 500", "64"],
    ),
    "no YAML file": ({}, "train --config {here}/run.yaml", ["run.yaml", "no such file", "YAML"]),
    "YAML folder": ({}, "train --config {here}", ["is a folder", "config.yaml"]),
    "broken YAML": (
        {"r.yaml": "steps: 3\ntuning: [bias\n"},
        "train --config {here}/r.yaml",
        ["r.yaml: line 3", "`steps: 200`"],
    ),
    "YAML of another kind": (
        {"r.yaml": "- steps\n"},
        "train --config {here}/r.yaml",
        ["r.yaml, line 1", "no settings"],
    ),
    "unknown YAML key": ({"r.yaml": "a: 1\nsteps: 3\n"}, "train --config {here}/r.yaml", ["line 1", "no such key 'a'"]),
    "misspelt YAML key": ({"r.yaml": "\nstep: 3\n"}, "train --config {here}/r.yaml", ["line 2", "did you mean steps?"]),
    "YAML key twice": (
        {"r.yaml": "steps: 3\nsteps: 4\n"},
        "train --config {here}/r.yaml",
        ["line 2", "twice", "keep one"],
    ),
    "YAML value of another type": (
        {"r.yaml": "steps: soon\n"},
        "train --config {here}/r.yaml",
        ["steps soon", "whole number"],
    ),
    "YAML list": (
        {"r.yaml": "views: [none, cutoff]\n"},
        "train --config {here}/r.yaml",
        ["line 1: views", "in quotes"],
    ),
    "YAML null": ({"r.yaml": "steps:\n"}, "train --config {here}/r.yaml", ["line 1: steps", "whole number"]),
    "YAML in latin-1": ({"r.yaml": b"data: caf\xe9\n"}, "train --config {here}/r.yaml", ["byte 10", "utf-8"]),
}

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

OUTPUT: dict[str, Case] = {
    "not empty": ({"out/a": "x"}, "train " + SHARED, ["not empty", "--resume", "--overwrite"]),
    "a file in the way": ({"out": "x"}, "train " + SHARED, ["a file is in the way", "give a folder"]),
    "a file for a parent": ({"f": "x"}, "train --output {here}/f/g", ["a file is in the way"]),
    "somebody else's": (
        {"out/a": "x"},
        "train --overwrite " + SHARED,
        ["was not made by nanonet", "empty it yourself"],
    ),
    "nothing to resume": ({}, "train --resume " + SHARED, ["no run to go on with", "leave --resume out"]),
    "predictions into a folder": (
        {"t.txt": "a\n"},
        "predict {here}/t.txt --model {run} --output {here}",
        ["is a folder"],
    ),
    "predictions over others": (
        {"t.txt": "a\n", "p": "x"},
        "predict {here}/t.txt --model {run} --output {here}/p",
        ["there already", "--overwrite"],
    ),
    "cache that is a file": (
        {"c": "x", "out/config.yaml": "steps: 2\n"},
        "train --overwrite --teacher-cache {here}/c " + SHARED,
        ["--teacher-cache", "give a folder"],
    ),
    "no class with two labels": (
        {"d/train.jsonl": ROWS.partition("\n")[0] + "\n" + ROWS.split("\n")[1], "out/config.yaml": "steps: 2\n"},
        "train --data {here}/d --teacher {encoder} --overwrite --output {out} --labels-per-class 0 --max-tokens 32",
        ["no class has two", "add labelled rows"],
    ),
    "figure into nowhere": ({}, "bench --plot {here}/n/x.png", ["--plot", "there is no folder"]),
    "predictions into nowhere": (
        {"t.txt": "a\n"},
        "predict {here}/t.txt --model {run} --output {here}/n/p",
        ["cannot be"],
    ),
    "predictions over the texts": (
        {"t.txt": "a\n"},
        "predict {here}/t.txt --model {run} --output {here}/t.txt",
        ["is the input itself", "another file"],
    ),
    "export over a file": (
        {"m.onnx": "x"},
        "export --model {run} --output {here}/m.onnx",
        ["there already", "--overwrite"],
    ),
    "export to nowhere": ({}, "export --model {run}", ["--output is missing", "model.onnx"]),
    "export to a missing folder": ({}, "export --model {run} --output {here}/n/m.onnx", ["there is no folder"]),
    "export over somebody's": (
        {"d/a": "x"},
        "export --model {run} --format huggingface --overwrite --output {here}/d",
        ["no model's folder", "empty it yourself"],
    ),
    "export into the model": (
        {},
        "export --model {run}/best --format huggingface --output {run}/best/copy",
        ["lies in the model's own folder", "another place"],
    ),
    "export over a device": ({}, "export --model {run} --overwrite --output /dev/null", ["/dev/null is no file"]),
    "output that cannot be made": (
        {},
        "train --output /proc/nanonet --data {data} --teacher {encoder} --max-tokens 32 --targets classifier",
        ["--output /proc/nanonet", "give another folder"],
    ),
    "8 bits of a folder": ({}, "export --model {run} --format huggingface --int8 --output {out}", ["--int8", "onnx"]),
    "no such student": ({}, "export --model {run} --student 7 --output {here}/m.onnx", ["no student-7", "student-0"]),
    "student of no run": (
        {},
        "export --model {encoder} --student 0 --output {here}/m.onnx",
        ["--student 0", "nanonet train"],
    ),
}

READ: dict[str, Case] = {
    "no data": ({}, "evaluate --model {run}", ["--data is missing", "test.*"]),
    "label unknown to the model": (
        {"t.jsonl": '{"text": "a", "label": "animals"}\n{"text": "b", "label": "planets"}\n'},
        "evaluate --model {run} --data {here}/t.jsonl",
        ["line 2", "'planets'", "'animals', 'food', 'weather'"],
    ),
    "number unknown to the model": (
        {"t.jsonl": '{"text": "a", "label": 3}\n'},
        "evaluate --model {run} --data {here}/t.jsonl",
        ["label 3", "3 classes"],
    ),
    "labels.json of another task": (
        {"t.jsonl": '{"text": "a", "label": 1}\n', "labels.json": '["animals", "planets"]'},
        "evaluate --model {run} --data {here}/t.jsonl",
        ["'planets'", "the model's classes"],
    ),
    "several tests": ({"d/test.csv": "x", "d/test.tsv": "x"}, "evaluate --model {run} --data {here}/d", ["give one"]),
    "no rows at a time": ({}, "evaluate --model {run} --data {data} --batch-rows 0", ["--batch-rows 0", "1 or more"]),
    "longer than the model": ({}, "evaluate --model {run} --data {data} --max-tokens 65", ["--max-tokens 65", "64"]),
    "negative length": (
        {},
        "predict {data}/test.jsonl --model {run} --max-tokens -1",
        ["--max-tokens -1", "1 or more"],
    ),
    "no texts": ({"t.txt": ""}, "predict {here}/t.txt --model {run}", ["t.txt", "no texts"]),
    "empty line": ({"t.txt": "a\n \nb\n"}, "predict {here}/t.txt --model {run} --output {out}", ["line 2", "empty"]),
    "texts in latin-1": ({"t.txt": b"caf\xe9\n"}, "predict {here}/t.txt --model {run}", ["line 1", "utf-8", "convert"]),
    "no such texts": ({}, "predict {here}/t.txt --model {run}", ["t.txt", "cannot be read", "give a file"]),
    "texts of another kind": ({"t.doc": "a"}, "predict {here}/t.doc --model {run}", ["t.doc", ".txt", ".jsonl"]),
    "no text column": ({"t.csv": "a,b\nc,d\n"}, "predict {here}/t.csv --model {run}", ["'text'", "'a', 'b'"]),
}
CASES = [pytest.param(case, id=name) for table in (DATA, CONFIG, MODEL, OUTPUT, READ) for name, case in table.items()]


@pytest.fixture(scope="module")
def run(tiny_data: Path, tiny_encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "run"
    words = f"train --data {tiny_data} --teacher {tiny_encoder} --output {folder} --max-tokens 32 --steps 2"
    assert main([*words.split(), "--targets", "classifier"]) == 0
    return folder


@pytest.fixture
def fill(tiny_data: Path, tiny_encoder: Path, run: Path, tmp_path: Path) -> Callable[[str], list[str]]:
    places = {"data": tiny_data, "encoder": tiny_encoder, "run": run, "here": tmp_path, "out": tmp_path / "out"}
    return lambda words: words.format(**places).split()


@pytest.mark.parametrize("case", CASES)
def test_bad_input(
    case: Case,
    fill: Callable[[str], list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def unreachable(*arguments: object, **options: object) -> None:
        raise ConnectionError("no network")

    files, words, fragments = case
    monkeypatch.setattr(HfApi, "model_info", unreachable)
    put(tmp_path, files)
    before = snapshot(tmp_path)
    capsys.readouterr()
    assert main(fill(words)) == 2
    out, err = capsys.readouterr()
    lines = [line for line in err.splitlines() if "Hugging Face hub" not in line or "error" in line]
    assert out == "" and len(lines) == 1 and lines[0].startswith("nanonet: error: ")
    assert not [fragment for fragment in fragments if fragment not in lines[0]], lines[0]
    assert snapshot(tmp_path) == before


def put(folder: Path, files: dict[str, str | bytes]) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every file, hidden ones too, and its content; folders count as well."""
    return {str(path): path.read_bytes() if path.is_file() else b"" for path in sorted(folder.rglob("*"))}


def test_a_bad_stdin_names_its_line(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a cat\n\nrain\n")))
    assert main(["predict", "--model", str(run)]) == 2
    assert "standard input, line 2: the line is empty" in capsys.readouterr().err


def test_a_training_that_diverges_says_so(fill: Callable[[str], list[str]], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*fill("train --targets classifier --learning-rate 1e30 " + SHARED), "--steps", "9"]) == 2
    assert "diverged: lower --learning-rate" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("change", "fragment"),
    [
        ({"id2label": {"0": "a", "1": "a", "2": "b"}}, "two classes have one name"),
        ({"id2label": {"0": "a", "2": "b", "3": "c"}}, "not a classifier into one of"),
        ({"problem_type": "multi_label_classification"}, "not a classifier into one of"),
        ({"hidden_size": 64}, "other shapes than config.json says"),
        ({"num_hidden_layers": 9}, "weights are missing"),
        ({"model_type": "nope"}, "cannot load it"),
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


def test_resuming_under_other_settings(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    before = snapshot(copy)
    words = ["train", "--config", str(run / "config.yaml"), "--output", str(copy), "--resume", "--seed", "5"]
    assert main(words) == 2
    assert "seed 0 -> 5" in capsys.readouterr().err
    assert main([*words[:-1], "0"]) == 2
    assert "is finished; give --overwrite" in capsys.readouterr().err
    assert snapshot(copy) == before


def test_in_a_process_of_its_own(fill: Callable[[str], list[str]]) -> None:
    words = fill("train --tuning none --output {out}")
    done = subprocess.run([sys.executable, "-m", "nanonet", *words], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == "nanonet: error: --tuning none: give one of bias, lora, full, head\n"


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
