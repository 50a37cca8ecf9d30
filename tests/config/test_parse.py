"""Optional numbers, as a flag and in YAML."""

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
