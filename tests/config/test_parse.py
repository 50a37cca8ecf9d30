"""Optional numbers and lists, as flags and in YAML."""

from __future__ import annotations

from pathlib import Path

import pytest

from nanonet.config.parse import parse, read_yaml
from nanonet.config.train import TrainConfig
from nanonet.errors import InputError


def parsed(*argv: str) -> TrainConfig:
    return parse(TrainConfig, argv, "nanonet train", "")


@pytest.mark.parametrize(("value", "beta"), [("0.25", 0.25), ("1e-3", 1e-3), ("none", None), ("NULL", None)])
def test_an_optional_number_as_a_flag(value: str, beta: float | None) -> None:
    assert parsed("--beta", value).beta == beta == parsed(f"--beta={value}").beta


@pytest.mark.parametrize(
    ("value", "beta"), [("0.25", 0.25), ("1e-3", 1e-3), ("", None), ("null", None), ("none", None), ("~", None)]
)
def test_an_optional_number_in_yaml(value: str, beta: float | None, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(f"divergence: js\nbeta: {value}\n")
    assert read_yaml(TrainConfig, str(tmp_path / "r.yaml")) == {"divergence": "js", "beta": beta}
    assert parsed("--config", str(tmp_path / "r.yaml"), "--beta", "none").beta is None


def test_a_text_may_be_none() -> None:
    assert parsed("--unlabelled", "none").unlabelled == "none" and parsed().unlabelled is None and parsed().beta is None


def test_what_an_optional_number_is_not() -> None:
    with pytest.raises(InputError, match="--beta half: give a number$"):
        parsed("--beta", "half")


@pytest.mark.parametrize("written", ["[a.csv, b.csv]", "\n- a.csv\n- b.csv"])
def test_several_values_as_a_flag_and_in_yaml(written: str, tmp_path: Path) -> None:
    flags = "--soft-labels a.csv b.csv --soft-label-weights 2 0.5 --seed 3".split()
    assert parsed(*flags).soft_labels == ("a.csv", "b.csv") and parsed(*flags).soft_label_weights == (2.0, 0.5)
    assert parsed().soft_labels == () and parsed(*flags).seed == 3
    (tmp_path / "r.yaml").write_text(f"soft_labels: {written}\nsoft_label_weights: 2\n")
    found = read_yaml(TrainConfig, str(tmp_path / "r.yaml"))
    assert found == {"soft_labels": ("a.csv", "b.csv"), "soft_label_weights": (2.0,)}
    (tmp_path / "r.yaml").write_text("soft_labels: []\nclass_map: ''\n")
    assert read_yaml(TrainConfig, str(tmp_path / "r.yaml")) == {"soft_labels": (), "class_map": ""}


def test_what_several_values_are_not(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--soft-label-weights half: give a number$"):
        parsed("--soft-label-weights", "1", "half")
    (tmp_path / "r.yaml").write_text("soft_label_weights: [1, [2]]\n")
    with pytest.raises(InputError, match=r"line 1: soft_label_weights is a list or mapping; give a number"):
        read_yaml(TrainConfig, str(tmp_path / "r.yaml"))
