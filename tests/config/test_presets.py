"""Presets: what they set, what wins over them, and that nothing is left of them in a run."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import yaml

from nanonet.api import OF_FILES
from nanonet.cli.main import main
from nanonet.config.check import check_train, check_types
from nanonet.config.commands import GenerateConfig, PredictConfig
from nanonet.config.parse import parse
from nanonet.config.presets import PRESETS, SHARED, expand, flags_of
from nanonet.config.settings import changes, general_settings
from nanonet.config.train import TrainConfig
from nanonet.errors import InputError


def parsed(*argv: str) -> TrainConfig:
    return parse(TrainConfig, argv, "nanonet train", "")


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_the_flags_that_the_help_lists(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    texts = ["--unlabelled", "generated.jsonl", "--output", "run"]
    config, plain = parsed("--preset", name, *texts), parsed(*flags_of(name).split(), *texts)
    assert config == plain != parsed(*texts)
    assert general_settings(config).digest == general_settings(plain).digest
    check_train(check_types(config))
    assert not OF_FILES & PRESETS[name].settings.keys()
    assert main(["train", "--help"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert f"{name} ({PRESETS[name].paper}): {flags_of(name)}" in said


def test_the_systems() -> None:
    nanonet = parsed("--preset", "nanonet")
    assert (nanonet.teacher_mode, nanonet.tuning, nanonet.students) == ("online", "bias", 2)
    assert nanonet.peers_weight > 0 and len(set(nanonet.views.split(","))) == 2
    cnn = parsed("--preset=transformer-to-cnn")
    assert (cnn.teacher_mode, cnn.student, cnn.students, cnn.peers_weight) == ("frozen", "cnn", 1, 0)
    generated = parsed("--preset=generation-distillation", "--unlabelled=g.jsonl")
    assert (generated.student, generated.max_unlabelled, generated.unlabelled) == ("cnn", 0, "g.jsonl")
    assert generated.embedding_width < cnn.embedding_width


def test_what_is_given_wins_wherever_it_stands(tmp_path: Path) -> None:
    for argv in (["--preset", "nanonet", "--tuning", "lora"], ["--tuning", "lora", "--preset", "nanonet"]):
        assert parsed(*argv) == dataclasses.replace(parsed("--preset", "nanonet"), tuning="lora")
    # also where it is the default
    assert parsed("--preset", "nanonet", "--tuning", "full", "--views=none").tuning == "full"
    file = tmp_path / "c.yaml"
    file.write_text("tuning: lora\npeers-weight: 0.5\n")
    config = parsed("--preset", "nanonet", "--config", str(file), "--peers-weight", "0.7")
    assert (config.tuning, config.peers_weight, config.teacher_mode) == ("lora", 0.7, "online")
    file.write_text("preset: nanonet\ntuning: head\n")
    assert parsed("--config", str(file)) == dataclasses.replace(parsed("--preset", "nanonet"), tuning="head")
    assert parsed("--config", str(file), "--preset", "transformer-to-cnn").student == "cnn"


def test_what_means_nothing_beside_the_given_is_left_out() -> None:
    config = parsed("--preset=generation-distillation", "--unlabelled=g", "--student=encoder", "--output=run")
    assert config.embedding_width == TrainConfig.embedding_width and config.steps == 800
    check_train(config)
    config = parsed("--preset=nanonet", "--soft-labels", "a.csv", "--output=run")
    assert config.teacher_mode == "frozen" and config.tuning == "bias"
    check_train(config)
    # what the user gave stays, to be refused
    config = parsed("--preset=nanonet", "--student=encoder", "--embedding-width=22", "--output=run")
    with pytest.raises(InputError, match="--embedding-width 22: it means nothing"):
        check_train(config)


def test_an_unknown_preset(tmp_path: Path) -> None:
    names = ", ".join(PRESETS)
    for call in (lambda: parsed("--preset", "nano"), lambda: expand("nano", {})):
        with pytest.raises(InputError, match=f"^--preset nano: give one of {names}$"):
            call()
    (tmp_path / "c.yaml").write_text("steps: 2\npreset: nano\n")
    with pytest.raises(InputError, match=f"c.yaml, line 2: preset nano: give one of {names}$"):
        parsed("--config", str(tmp_path / "c.yaml"))
    with pytest.raises(InputError, match="--preset: no such flag"):
        parse(PredictConfig, ["--preset", "nanonet"], "nanonet predict", "")


def test_generated_texts_are_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    flags = "--preset generation-distillation --labels-per-class 10 --test-fraction 0.2 --output run"
    assert main(["train", *flags.split(), "--data", "my data"]) == 2
    said = capsys.readouterr().err
    command = "nanonet generate --model gpt2 --labelled 'my data' --labels-per-class 10 --test-fraction 0.2"
    assert "--unlabelled is missing" in said and said.count("\n") == 1 and command in said
    assert {field.name for field in dataclasses.fields(GenerateConfig)} >= set(SHARED)


def test_a_run_stores_plain_values(tiny_encoder: Path, tiny_data: Path, tmp_path: Path) -> None:
    small = f"--data {tiny_data} --teacher {tiny_encoder} --output {tmp_path}/run --labels-per-class 5 --max-tokens 16"
    small += " --max-unlabelled 40 --steps 3 --threads 1 --max-test 20"
    assert main(["train", "--preset", "nanonet", *small.split()]) == 0
    stored = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert "preset" not in stored and stored | PRESETS["nanonet"].settings == stored
    assert changes(stored, parsed(*flags_of("nanonet").split(), *small.split())) == ""
    assert parsed("--config", f"{tmp_path}/run/config.yaml") == TrainConfig(**stored | {
        "soft_labels": (), "soft_label_weights": (),
    })  # fmt: skip
