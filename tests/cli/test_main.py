"""The command line end to end: what train leaves behind, and what the other commands make of it."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
import typing
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from nanonet.cli import main as cli
from nanonet.cli.main import COMMANDS, main
from nanonet.config.commands import PredictConfig
from nanonet.config.describe import describe
from nanonet.config.parse import parse, read_yaml, shown
from nanonet.config.train import TrainConfig
from nanonet.errors import InputError

FLAGS = [(name, field) for name, command in COMMANDS.items() for field in dataclasses.fields(command.config)]


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
    kind = typing.get_type_hints(TrainConfig)[field.name]
    value = other.get(next(k for k in (*typing.get_args(kind), kind) if k is not type(None)), "other")
    if typing.get_origin(kind) is typing.Literal:
        value = next(choice for choice in typing.get_args(kind) if choice != field.default)
    value = {"precision": "bfloat16", "beta": 0.5}.get(field.name, value)
    if typing.get_origin(kind) is tuple:
        value = (other[typing.get_args(kind)[0]],) * 2
    for name in (field.name, field.name.replace("_", "-")):
        given = value if isinstance(value, tuple) else (value,)
        switch = f"--{name}" if value else f"--no-{name}"
        words = [switch] if isinstance(value, bool) else [f"--{name}", *map(str, given)]
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
        (InputError("a\x1b[31mb\x07 \u202ec\ud800 é"), 2, "error: a\\x1b[31mb\\x07 \\u202ec\\ud800 é\n"),
        (OSError(28, "No space left", "/a\x1bb"), 2, "error: /a\\x1bb: No space left; give another path"),
        (MemoryError(), 2, "error: out of memory; give fewer or shorter texts"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: 1 bytes"), 2, "error: out of memory; give fewer"),
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
    assert said in err and err.count("\n") == 1


@pytest.mark.parametrize("bug", [ZeroDivisionError, RuntimeError("shapes differ")])
def test_a_bug_keeps_its_traceback(bug: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(config: TrainConfig) -> None:
        raise bug

    monkeypatch.setitem(COMMANDS, "train", cli.Command(TrainConfig, stop, ""))
    with pytest.raises((ZeroDivisionError, RuntimeError)):
        main(["train"])


# --- train


def test_train_leaves_a_whole_folder(trained_run: Path) -> None:
    assert {path.name for path in trained_run.iterdir()} >= {
        "best",
        "student-0",
        "student-1",
        "config.yaml",
        "report.html",
    }
    assert not [path for path in trained_run.rglob(".*")]
    steps = [json.loads(line)["step"] for line in (trained_run / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(60))


def test_the_report_has_its_numbers(trained_run: Path) -> None:
    report = json.loads((trained_run / "report.json").read_text())
    assert report["data"] == {
        "name": report["data"]["name"],
        "classes": ["animals", "food", "weather"],
        "labelled": 90,
        "unlabelled": 54,
        "validation": 6,
        "test": 60,
        "test_in_train": 0,
        "labels_per_class": 30,
    }
    assert report["teacher"]["accuracy"] > 0.5 and report["linear_probe"]["accuracy"] > 0.5
    assert report["teacher"]["parameters"] > report["students"][0]["parameters"]["total"]
    assert [student["layers"] for student in report["students"]] == [[0, 3], [1, 2]]
    assert max(student["accuracy"] for student in report["students"]) > 0.5, "the task can be learnt"
    assert sum(map(sum, report["confusion"])) == 60
    best = report["students"][report["best"]]
    assert sum(report["confusion"][i][i] for i in range(3)) / 60 == pytest.approx(best["accuracy"], abs=1e-6)
    assert report["ensemble"]["accuracy"] is not None and report["seconds"]
    for part in (report["teacher"], *report["students"]):
        assert part["reliability"]["mean_confidence"] > 1 / 3
    teacher, students = report["speed"]["teacher"], report["speed"]["students"]
    for speed in (teacher, *students):
        assert speed["rows_per_s"] > 0 and speed["texts_per_s"] > 0
    written = (trained_run / "student-0" / "model.safetensors").stat().st_size
    assert 0.8 * written < 1e6 * students[0]["megabytes"] < written and teacher["megabytes"] > students[0]["megabytes"]
    assert report["config"]["labels_per_class"] == 30 and report["versions"]["torch"] == torch.__version__


def test_the_written_config_reproduces_the_run(trained_run: Path, tmp_path: Path) -> None:
    assert main(["train", "--config", str(trained_run / "config.yaml"), "--output", str(tmp_path / "again")]) == 0
    for name in ("student-0", "student-1", "best"):
        ours, theirs = (load_file(folder / name / "model.safetensors") for folder in (trained_run, tmp_path / "again"))
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_the_best_student_loads_without_nanonet(trained_run: Path, tmp_path: Path) -> None:
    best = str(trained_run / "best")
    code = (
        "import sys\n"
        "from transformers import AutoModelForSequenceClassification, AutoTokenizer\n"
        f"model = AutoModelForSequenceClassification.from_pretrained({best!r})\n"
        f"tokens = AutoTokenizer.from_pretrained({best!r})('the cat saw a dog', return_tensors='pt')\n"
        "assert not any(name.startswith('nanonet') for name in sys.modules)\n"
        "print(model.config.id2label[int(model(**tokens).logits.argmax())])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert done.returncode == 0 and done.stdout.strip() in ("animals", "food", "weather")


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


def test_a_termination_that_something_swallows_is_raised_again(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    def swallow(config: object) -> None:
        with contextlib.suppress(BaseException):  # as an import under way may
            os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)

    monkeypatch.setitem(COMMANDS, "info", dataclasses.replace(COMMANDS["info"], run=swallow))
    monkeypatch.setattr("nanonet.cli.main.AGAIN_S", 0.2)
    before = signal.getsignal(signal.SIGTERM)
    assert main(["info"]) == 143 and "terminated" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) is before
