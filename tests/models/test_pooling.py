"""The pooling is the one that sentence-transformers wrote, wherever its modules.json says that it lies."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from nanonet.errors import InputError
from nanonet.models.load import find_model, load_encoder, load_tokenizer
from nanonet.models.pooling import pooling_of

OLD, NEW = "sentence_transformers.models.", "sentence_transformers.sentence_transformer.modules.pooling."
CLS = {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}


def write(folder: Path, modules: object, **settings: dict) -> str:
    """A model's folder with this modules.json, and a config.json in each folder named."""
    folder.mkdir(exist_ok=True)
    (folder / "modules.json").write_text(modules if isinstance(modules, str) else json.dumps(modules))
    for name, config in settings.items():
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(json.dumps(config))
    return str(folder)


def module(kind: str, path: str) -> dict[str, str]:
    return {"type": kind, "path": path}


@pytest.mark.parametrize("kind", [OLD + "Pooling", NEW + "Pooling"])
def test_the_pooling_may_lie_in_any_folder(kind: str, tmp_path: Path, capsys) -> None:
    modules = [module(OLD + "Transformer", ""), module(kind, "pool"), module(OLD + "Normalize", "2")]
    source = write(tmp_path / "m", modules, pool=CLS, **{"1_Pooling": {"pooling_mode": "max"}})
    assert pooling_of(source, True) == "cls"
    assert capsys.readouterr().err == ""


def test_what_runs_after_the_pooling_is_left_out_aloud(tmp_path: Path, capsys) -> None:
    source = write(tmp_path / "m", [module(OLD + "Pooling", "p"), module(OLD + "Dense", "d")], p=CLS)
    assert pooling_of(source, True) == "cls"
    assert capsys.readouterr().err.endswith("without the Dense after it\n")


@pytest.mark.parametrize(
    ("modules", "words"),
    [
        ([module("Transformer", "")], "names 0 modules of type Pooling"),
        ([module("Pooling", "p"), module("Pooling", "p")], "names 2 modules of type Pooling"),
        ([module("Pooling", "nowhere")], "names nowhere, which has no config.json"),
        ([module("Pooling", "../p")], "does not lie in the model's folder"),
        ([module("Pooling", "/p")], "does not lie in the model's folder"),
        ({"Pooling": "p"}, "expected a list of modules"),
        ([{"type": "Pooling"}], "expected a list of modules"),
        ("[", "cannot be read as JSON"),
    ],
)
def test_a_damaged_list_is_one_line(modules: object, words: str, tmp_path: Path) -> None:
    source = write(tmp_path / "m", modules, p=CLS)
    with pytest.raises(InputError, match=words) as caught:
        pooling_of(source, True)
    assert "\n" not in str(caught.value) and "modules.json" in str(caught.value)


@pytest.mark.parametrize(
    "settings",
    [
        {"pooling_mode_cls_token": True, "pooling_mode_mean_sqrt_len_tokens": True},
        {"pooling_mode_weightedmean_tokens": True},
        {"pooling_mode": ["cls", "mean"]},
        {},
    ],
)
def test_another_pooling_is_refused(settings: dict, tmp_path: Path) -> None:
    source = write(tmp_path / "m", [module("Pooling", "p")], p=settings)
    with pytest.raises(InputError, match="expected one pooling of mean, cls, max, got"):
        pooling_of(source, True)


def test_an_encoder_below_its_folder_is_found(tiny_encoder: Path, tmp_path: Path, monkeypatch) -> None:
    shutil.copytree(tiny_encoder, tmp_path / "m" / "0_Transformer")
    write(tmp_path / "m", [module(OLD + "Transformer", "0_Transformer"), module(OLD + "Pooling", "p")], p=CLS)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in (str(tmp_path / "m"), "~/m"):
        source, local = find_model(name)
        assert (source, local) == (str(tmp_path / "m" / "0_Transformer"), True)
        assert pooling_of(source, local) == "cls"
        word = load_encoder(name).get_input_embeddings().weight
        assert torch.equal(word, load_encoder(str(tiny_encoder)).get_input_embeddings().weight)
        assert len(load_tokenizer(name)) == len(load_tokenizer(str(tiny_encoder)))
