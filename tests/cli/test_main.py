"""The command line end to end: what train leaves behind, and what the other commands make of it."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from nanonet.cli import main as cli
from nanonet.cli.main import COMMANDS, main
from nanonet.config.commands import EvaluateConfig, PredictConfig
from nanonet.config.describe import describe
from nanonet.config.parse import parse, read_yaml, shown
from nanonet.config.train import TrainConfig
from nanonet.errors import InputError
from nanonet.inference.predict import ROWS_AT_ONCE

FLAGS = [(name, field) for name, command in COMMANDS.items() for field in dataclasses.fields(command.config)]


@pytest.fixture(scope="module")
def run(tiny_data: Path, tiny_encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a short run whose students have learnt something."""
    folder = tmp_path_factory.mktemp("cli") / "run"
    words = f"train --data {tiny_data} --teacher {tiny_encoder} --output {folder} --labels_per_class=30 --max-tokens 32"
    words += (
        " --targets classifier --steps 60 --labelled-batch 24 --unlabelled-batch 8 --learning-rate 5e-3 --threads 1"
    )
    assert main(words.split()) == 0
    return folder


# --- flags


@pytest.mark.parametrize(("command", "field"), FLAGS, ids=lambda value: getattr(value, "name", value))
def test_every_field_is_a_flag_with_its_text_and_default(
    command: str, field: dataclasses.Field, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert main([command, "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    flag = field.name.upper() if field.name == COMMANDS[command].positional else "--" + field.name.replace("_", "-")
    described = " ".join(describe(COMMANDS[command].config)[field.name].split())
    assert f" {flag}" in text and described
    assert f"{described} (default: {shown(field.default)})" in text


@pytest.mark.parametrize("field", dataclasses.fields(TrainConfig), ids=lambda field: field.name)
def test_every_flag_sets_its_field(field: dataclasses.Field, tmp_path: Path) -> None:
    other: dict = {bool: not field.default, int: 7, float: 0.5, str: "other"}
    value = other.get(type(field.default), "other")
    for choices in (
        ("bias", "lora"),
        ("kl", "js"),
        ("frozen", "online"),
        ("auto", "diffusion"),
        ("linear", "cosine"),
        ("encoder", "cnn"),
    ):
        value = choices[1] if field.default in choices or (field.name == "tuning") and "lora" in choices else value
    value = "bfloat16" if field.name == "precision" else value
    for name in (field.name, field.name.replace("_", "-")):
        words = [f"--{name}"] if isinstance(value, bool) else [f"--{name}", str(value)]
        assert getattr(parse(TrainConfig, words, "nanonet train", ""), field.name) == value
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({field.name: value}))
    from_file = parse(TrainConfig, ["--config", str(tmp_path / "c.yaml")], "nanonet train", "")
    assert from_file == dataclasses.replace(TrainConfig(), **{field.name: value})


def test_flags_win_over_the_file(tmp_path: Path) -> None:
    # a string that YAML 1.1 reads as a boolean, a number that it reads as a string, a switch that is turned off again
    (tmp_path / "c.yaml").write_text("label-column: yes\nlearning_rate: 1e-3\nconfidence: on\nsteps: 5\nunlabelled:\n")
    words = ["--config", str(tmp_path / "c.yaml"), "--steps=6", "--no-confidence"]
    config = parse(TrainConfig, words, "nanonet train", "")
    assert config.label_column == "yes" and config.learning_rate == 1e-3 and config.unlabelled is None
    assert config.steps == 6 and config.confidence is False


def test_an_empty_file_sets_nothing(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("# nothing yet\n")
    assert read_yaml(TrainConfig, str(tmp_path / "c.yaml")) == {}


def test_a_positional_is_also_a_value() -> None:
    config = parse(PredictConfig, ["a.txt", "--model", "m"], "nanonet predict", "", "file")
    assert config == PredictConfig(file="a.txt", model="m")


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0 and main(["--help"]) == 0 and main(["--version"]) == 0
    captured = capsys.readouterr()
    assert all(f"  {name} " in captured.out for name in COMMANDS) and captured.err == ""


def test_help_loads_no_transformers() -> None:
    code = (
        "import sys; from nanonet.cli.main import main; main(['train', '--help']);"
        " sys.exit('transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60).returncode == 0


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (InputError("two\nlines"), 2, "error: two lines\n"),
        (KeyboardInterrupt(), 130, "--resume and without --overwrite\n"),
    ],
)
def test_an_end_before_the_end(
    error: BaseException, code: int, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(config: TrainConfig) -> None:
        raise error

    monkeypatch.setitem(COMMANDS, "train", cli.Command(TrainConfig, stop, ""))
    assert main(["train", "--save-every", "5"]) == code
    err = capsys.readouterr().err
    assert err.endswith(said) and err.count("\n") == 1


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(config: TrainConfig) -> None:
        raise ZeroDivisionError

    monkeypatch.setitem(COMMANDS, "train", cli.Command(TrainConfig, stop, ""))
    with pytest.raises(ZeroDivisionError):
        main(["train"])


# --- train


def test_train_leaves_a_whole_folder(run: Path) -> None:
    assert {path.name for path in run.iterdir()} >= {"best", "student-0", "student-1", "config.yaml", "report.html"}
    assert not [path for path in run.rglob(".*")]
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(60))


def test_the_report_has_its_numbers(run: Path) -> None:
    report = json.loads((run / "report.json").read_text())
    assert report["data"] == {
        "name": report["data"]["name"],
        "classes": ["animals", "food", "weather"],
        "labelled": 90,
        "unlabelled": 54,
        "validation": 6,
        "test": 60,
    }
    assert report["teacher"]["accuracy"] > 0.5 and report["linear_probe"]["accuracy"] > 0.5
    assert report["teacher"]["parameters"] > report["students"][0]["parameters"]["total"]
    assert [student["layers"] for student in report["students"]] == [[0, 3], [1, 2]]
    assert max(student["accuracy"] for student in report["students"]) > 0.5, "the task can be learnt"
    assert sum(map(sum, report["confusion"])) == 60
    best = report["students"][report["best"]]
    assert sum(report["confusion"][i][i] for i in range(3)) / 60 == pytest.approx(best["accuracy"], abs=1e-6)
    assert report["ensemble"]["accuracy"] is not None and report["seconds"]
    assert report["config"]["labels_per_class"] == 30 and report["versions"]["torch"] == torch.__version__


def test_the_written_config_reproduces_the_run(run: Path, tmp_path: Path) -> None:
    assert main(["train", "--config", str(run / "config.yaml"), "--output", str(tmp_path / "again")]) == 0
    for name in ("student-0", "student-1", "best"):
        ours, theirs = (load_file(folder / name / "model.safetensors") for folder in (run, tmp_path / "again"))
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_the_best_student_loads_without_nanonet(run: Path, tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from transformers import AutoModelForSequenceClassification, AutoTokenizer\n"
        f"model = AutoModelForSequenceClassification.from_pretrained({str(run / 'best')!r})\n"
        f"tokens = AutoTokenizer.from_pretrained({str(run / 'best')!r})('the cat saw a dog', return_tensors='pt')\n"
        "assert not any(name.startswith('nanonet') for name in sys.modules)\n"
        "print(model.config.id2label[int(model(**tokens).logits.argmax())])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert done.returncode == 0 and done.stdout.strip() in ("animals", "food", "weather")


# --- evaluate


def evaluate(capsys: pytest.CaptureFixture[str], *words: str) -> dict:
    capsys.readouterr()
    assert main(["evaluate", *words]) == 0
    return json.loads(capsys.readouterr().out)


def test_evaluate_agrees_with_the_report(run: Path, tiny_data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = json.loads((run / "report.json").read_text())
    for model, k in (
        (run, report["best"]),
        (run / "best", report["best"]),
        (run / "student-0", 0),
        (run / "student-1", 1),
    ):
        found = evaluate(capsys, "--model", str(model), "--data", str(tiny_data))
        assert {found[key] for key in ("accuracy",)} == {report["students"][k]["accuracy"]}
        assert found["macro_f1"] == report["students"][k]["macro_f1"] and found["rows"] == 60
        assert found["rows_per_s"] > 0 and found["device"] == "cpu" or torch.cuda.is_available()


def test_labels_by_name_by_number_and_by_another_order(
    run: Path, tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [json.loads(line) for line in (tiny_data / "test.jsonl").read_text().splitlines()]
    wanted = evaluate(capsys, "--model", str(run), "--data", str(tiny_data / "test.jsonl"))["accuracy"]
    for name, order in (("numbers", None), ("other", ["weather", "animals", "food"])):
        (tmp_path / name).mkdir()
        index = {label: i for i, label in enumerate(order or ["animals", "food", "weather"])}
        lines = [json.dumps({"body": row["text"], "topic": index[row["label"]]}) for row in rows]
        (tmp_path / name / "test.jsonl").write_text("\n".join(lines))
        if order:
            (tmp_path / name / "labels.json").write_text(json.dumps(order))
        columns = ["--text-column", "body", "--label-column", "topic"]
        for data in (tmp_path / name, tmp_path / name / "test.jsonl"):
            assert evaluate(capsys, "--model", str(run), "--data", str(data), *columns)["accuracy"] == wanted


def test_the_length_is_the_runs_own(run: Path) -> None:
    from nanonet.inference.classifier import load_classifier

    classifier = load_classifier(run / "best")
    long = ["cat " * 60]
    assert classifier.encode(long, 0).lengths == [32]  # the run's --max-tokens
    assert classifier.encode(long, 48).lengths == [48]
    assert EvaluateConfig().max_tokens == 0


# --- predict

TEXTS = ["the cat was near a dog", "bread and soup, again", "snow ☃ today", "a horse", "Rain"]


def test_predict_from_standard_input(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("nanonet.inference.predict.ROWS_AT_ONCE", 2)
    text = "\ufeff" + "\r\n".join(TEXTS)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    capsys.readouterr()
    assert main(["predict", "--model", str(run)]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["text"] for row in rows] == TEXTS
    for row in rows:
        assert list(row["probabilities"]) == ["animals", "food", "weather"]
        assert sum(row["probabilities"].values()) == pytest.approx(1, abs=1e-4)
        assert row["probabilities"][row["label"]] == row["probability"] == max(row["probabilities"].values())


@pytest.mark.parametrize("name", ["t.txt", "t.jsonl", "t.csv"])
def test_predict_from_and_to_a_file(run: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    body = {
        "t.txt": "\n".join(TEXTS) + "\n",
        "t.jsonl": "".join(json.dumps({"body": text}) + "\n" for text in TEXTS),
        "t.csv": "n,body\n" + "".join(f'{n},"{text}"\n' for n, text in enumerate(TEXTS)),
    }[name]
    (tmp_path / name).write_text(body, encoding="utf-8")
    words = [str(tmp_path / name), "--text-column", "body", "--output", str(tmp_path / "o.jsonl"), "--no-text"]
    capsys.readouterr()
    assert main(["predict", "--model", str(run / "best"), *words, "--batch-rows", "2"]) == 0
    captured = capsys.readouterr()
    assert captured.out == "" and "5 predictions" in captured.err
    rows = [json.loads(line) for line in (tmp_path / "o.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(rows) == 5 and all(list(row) == ["label", "probability", "probabilities"] for row in rows)
    # alone each text says the same: the order is that of the input
    one = ["predict", "--model", str(run), "--text-column", "body"]
    (tmp_path / "one.txt").write_text(TEXTS[2], encoding="utf-8")
    assert main([*one, str(tmp_path / "one.txt")]) == 0
    assert json.loads(capsys.readouterr().out)["probability"] == pytest.approx(rows[2]["probability"], abs=1e-4)


def test_a_device_stays_a_device(run: Path, tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("a cat\n")
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    assert main(["predict", str(tmp_path / "t.txt"), "--model", str(run), "--output", str(tmp_path / "pipe")]) == 0
    assert json.loads(os.read(reader, 10_000))["text"] == "a cat" and (tmp_path / "pipe").is_fifo()
    os.close(reader)


def test_a_failure_leaves_no_predictions(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nanonet.inference.predict.ROWS_AT_ONCE", 2)
    (tmp_path / "t.txt").write_text("a\nb\nc\nd\n\n")
    assert main(["predict", str(tmp_path / "t.txt"), "--model", str(run), "--output", str(tmp_path / "o")]) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["t.txt"]


def test_terminated_it_leaves_no_predictions(run: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "nanonet", "predict", "--model", str(run), "--output", str(tmp_path / "o")]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        process.stdin.write(b"a cat\n" * (ROWS_AT_ONCE + 1))
        process.stdin.flush()
        while not list(tmp_path.iterdir()):  # the first rows are there, and it waits for more
            assert process.poll() is None
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 143
    assert not list(tmp_path.iterdir())


# --- info


def test_info(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["versions"]["torch"] and found["devices"][0] == "cpu" and found["cpu"]["threads"] >= 1
    assert set(found["ops"]) >= {"distill_loss", "cohort_linear"}
    for by in found["ops"].values():
        assert all(served == "kernel" or served.startswith("reference: ") for served in by.values())
    assert main(["info"]) == 0
    text = capsys.readouterr().out
    assert "who serves what" in text and ("NANONET_CPU_ISA" in text or "none: " in text)


def test_the_reader_may_leave(run: Path, tiny_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as pipe:
        monkeypatch.setattr(sys, "stdout", pipe)
        assert main(["predict", str(tiny_data / "train.jsonl"), "--model", str(run)]) == 1
