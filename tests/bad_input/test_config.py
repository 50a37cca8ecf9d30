"""Flags and YAML files that will not do."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest

from nanonet.cli.main import main

# files in the working folder, arguments (see conftest.py), fragments of the message
Case = tuple[dict[str, str | bytes], str, list[str]]

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
    "a value like a flag": ({}, "evidence --flags --class-names", ["--flags=VALUE", "--help"]),
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
    "beta of a divergence without one": (
        {},
        "train --beta 0.5 --output {out}",
        ["--beta 0.5", "js, symmetric_kl, skew_kl, skew_reverse_kl", "leave it out"],
    ),
    "beta of a divergence without one, in YAML": (
        {"r.yaml": "divergence: tv\nbeta: 0.5\noutput: x\n"},
        "train --config {here}/r.yaml",
        ["--beta 0.5", "leave it out"],
    ),
    "beta out of range": (
        {},
        "train --divergence js --beta 1 --output {out}",
        ["--beta 1.0", "above 0 and below 1"],
    ),
    "beta that is no number": ({}, "train --divergence js --beta half --output {out}", ["--beta half", "a number"]),
    "unknown divergence": (
        {},
        "train --divergence wasserstein --output {out}",
        ["--divergence wasserstein", "kl, reverse_kl, js, mse, symmetric_kl", "tv, cross_entropy"],
    ),
    "trained head of a teacher that trains": (
        {},
        "train --targets head --teacher-mode online --output {out}",
        ["--targets head", "--teacher-mode frozen"],
    ),
    "start from layers that nothing tunes": (
        {},
        "train --teacher-steps 0 --student-init tuned --output {out}",
        ["--student-init tuned", "leave it out"],
    ),
    "start of students from scratch": (
        {},
        "train --student cnn --student-init tuned --output {out}",
        ["--student-init tuned", "--student cnn"],
    ),
    "rank of an adapter that is not there": ({}, "train --lora-rank 4 {shared}", ["--lora-rank 4", "--tuning full"]),
    "peers of one": ({}, "train --students 1 --peers-weight 5 {shared}", ["--peers-weight 5.0", "--students 2"]),
    "column of a corpus without files": ({}, "train --text-column a --output {out}", ["--text-column a", "pydocs"]),
    "unknown view": ({}, "train --views blur {shared}", ["blur", "cutoff"]),
    "deeper than the teacher": ({}, "train --student-layers 9 {shared}", ["--student-layers 9", "1 to 4"]),
    "layers that are not there": ({}, "train --layer-mapping 0,9;1,2 {shared}", ["no layer 9", "0 to 3"]),
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


@pytest.mark.parametrize("case", CONFIG.values(), ids=CONFIG)
def test_bad_config(case: Case, refuses: Callable[..., None]) -> None:
    refuses(*case)


def test_a_training_that_diverges_says_so(fill: Callable[[str], list[str]], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*fill("train --targets classifier --learning-rate 1e30 {shared}"), "--steps", "9"]) == 2
    assert "diverged: lower --learning-rate" in capsys.readouterr().err.splitlines()[-1]


def test_in_a_process_of_its_own(fill: Callable[[str], list[str]]) -> None:
    words = fill("train --tuning none --output {out}")
    done = subprocess.run([sys.executable, "-m", "nanonet", *words], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == "nanonet: error: --tuning none: give one of bias, lora, full, head\n"
