"""What a user can get wrong: one line that names the thing and the cure, exit code 2, and nothing touched.

In a case's arguments {data}, {encoder} and {run} are good ones, {small} is an encoder of too few words, {out} is where
the output would be, {here} the working folder, {shared} what a short training needs besides.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub import HfApi
from transformers import BertModel

from nanonet.cli.main import main


@pytest.fixture(scope="session")
def run(tiny_data: Path, tiny_encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished training."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    words = f"train --data {tiny_data} --teacher {tiny_encoder} --output {folder} --max-tokens 32 --steps 2"
    assert main([*words.split(), "--targets", "classifier"]) == 0
    return folder


@pytest.fixture(scope="session")
def small(tiny_encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The encoder, with fewer words than its tokenizer knows."""
    folder = tmp_path_factory.mktemp("small")
    shutil.copytree(tiny_encoder, folder, dirs_exist_ok=True)
    model = BertModel.from_pretrained(folder)
    model.resize_token_embeddings(20)
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def fill(tiny_data: Path, tiny_encoder: Path, run: Path, small: Path, tmp_path: Path) -> Callable[[str], list[str]]:
    out = tmp_path / "out"
    shared = f"--data {tiny_data} --teacher {tiny_encoder} --output {out} --max-tokens 32 --steps 2"
    places = {"data": tiny_data, "encoder": tiny_encoder, "run": run, "here": tmp_path, "out": out, "shared": shared}
    places["small"] = small
    return lambda words: words.format(**places).split()


@pytest.fixture(scope="session")
def snapshot() -> Callable[[Path], dict[str, bytes]]:
    """Every file of a folder, hidden ones too, and its content; folders count as well."""
    return lambda folder: {str(p): p.read_bytes() if p.is_file() else b"" for p in sorted(folder.rglob("*"))}


@pytest.fixture
def refuses(
    fill: Callable[[str], list[str]],
    snapshot: Callable[[Path], dict[str, bytes]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Callable[[dict[str, str | bytes], str, list[str]], None]:
    """Runs nanonet in a folder of these files with these arguments; the message has to have these fragments."""

    def unreachable(*arguments: object, **options: object) -> None:
        raise ConnectionError("no network")

    def refuses(files: dict[str, str | bytes], words: str, fragments: list[str]) -> None:
        monkeypatch.setattr(HfApi, "model_info", unreachable)
        for name, content in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)
        before = snapshot(tmp_path)
        capsys.readouterr()
        assert main(fill(words)) == 2
        out, err = capsys.readouterr()
        lines = [line for line in err.splitlines() if "Hugging Face hub" not in line or "error" in line]
        assert out == "" and len(lines) == 1 and lines[0].startswith("nanonet: error: ")
        assert not [fragment for fragment in fragments if fragment not in lines[0]], lines[0]
        assert snapshot(tmp_path) == before

    return refuses
