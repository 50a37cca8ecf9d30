"""Hostile or damaged model folders end in one line, before a file outside them is read and without a word from Rust."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertModel, GPT2Config, GPT2Model

from nanonet.errors import InputError
from nanonet.models.checks import LARGEST, check_encoder
from nanonet.models.dummy_inputs import dummy_inputs
from nanonet.models.load import load_encoder, load_tokenizer
from nanonet.tokenizer_faults import tokenizer_faults


@pytest.fixture
def folder(tiny_encoder: Path, tmp_path: Path) -> Path:
    """A copy of the tiny encoder."""
    return Path(shutil.copytree(tiny_encoder, tmp_path / "m"))


def change(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def refused(load: Callable[[str], object], folder: Path, words: str) -> None:
    with pytest.raises(InputError) as caught:
        load(str(folder))
    message = str(caught.value)
    assert message.startswith(f"--teacher {folder}: ") and words in message, message
    assert "\n" not in message and len(message) < 500


def shard(folder: Path, name: str) -> None:
    """Sharded weights, the only shard under this name."""
    weights = load_file(folder / "model.safetensors")
    index = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(weights, name)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "model.safetensors").rename(folder.parent / "elsewhere.safetensors")


def test_shards_of_the_folder_are_loaded(folder: Path, tiny_encoder: Path) -> None:
    shard(folder, "part-1.safetensors")
    (folder.parent / "elsewhere.safetensors").rename(folder / "part-1.safetensors")
    found, wanted = load_encoder(str(folder)), load_encoder(str(tiny_encoder))
    assert torch.equal(found.get_input_embeddings().weight, wanted.get_input_embeddings().weight)


@pytest.mark.parametrize("name", ["tokenizer_config.json", "config.json", "notes"])
def test_a_pipe_in_the_folder_is_refused(name: str, folder: Path) -> None:
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    load = load_tokenizer if name != "config.json" else load_encoder
    words = "the folder has no config.json" if name == "config.json" else f"{name} in it is a pipe"
    refused(load, folder, words)


@pytest.mark.parametrize(
    "name", ["../elsewhere.safetensors", "weights.bin", "sub/part.safetensors", "/etc/passwd", "..", "", 7, None, ["a"]]
)
def test_shards_that_are_no_files_of_the_folder_are_refused(name: object, folder: Path) -> None:
    shard(folder, "x")
    index = folder / "model.safetensors.index.json"
    change(index, weight_map=dict.fromkeys(json.loads(index.read_text())["weight_map"], name))
    torch.save({}, folder / "weights.bin")
    refused(load_encoder, folder, "which is no *.safetensors file of the folder")


@pytest.mark.parametrize("text", ["{", "[]", "[" * 100_000, "7", "\x00"])
@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json"])
def test_damaged_json_is_refused(name: str, text: str, folder: Path) -> None:
    (folder / name).write_text(text)
    refused(load_encoder, folder, f"{name} is no JSON object")


@pytest.mark.parametrize(
    "names", [["a", "b"], "ab", 7, {"0": None}, {"0": ["x"]}, {"0": {"a": 1}}, {"a": "b"}, {"0": True}]
)
def test_class_names_of_other_types_are_refused(names: object, folder: Path) -> None:
    change(folder / "config.json", id2label=names)
    refused(load_encoder, folder, "id2label in config.json is no table of names")


@pytest.mark.parametrize("name", LARGEST)
@pytest.mark.parametrize("value", [10**9, 1e300, float("nan")])
@pytest.mark.parametrize("load", [load_encoder, load_tokenizer])
def test_absurd_sizes_are_refused_before_memory_is_taken(load: Callable, name: str, value: float, folder: Path) -> None:
    change(folder / "config.json", **{name: value})
    refused(load, folder, f"its config.json has {name}")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
# the last word of the table: no dummy input reads it
@pytest.mark.parametrize("name", ["embeddings.word_embeddings.weight", "encoder.layer.2.output.LayerNorm.bias"])
def test_one_weight_that_is_no_number_is_refused(name: str, value: float, folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights[name].view(-1)[-1] = value
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    refused(load_encoder, folder, f"{name} has values that are no finite numbers")


# what each does: panics while it is read, panics on any text, raises on any text, raises on unknown characters
HOSTILE = {
    "a panic when read": {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA////"}},
    "a panic in a normaliser": {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "BAAAAP////8="}},
    "a panic on every text": {"pre_tokenizer": {"type": "FixedLength", "length": 0}},
    "a template of a second text": {
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"Sequence": {"id": "B", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {},
        }
    },
    "no unknown token": {"model": {"type": "Unigram", "unk_id": None, "vocab": [["a", -1.0], ["few", -2.0]]}},
    "no model": {"model": None},
    "vocabulary of another type": {"model": {"type": "WordLevel", "vocab": ["a"], "unk_token": "a"}},
}


@pytest.mark.parametrize("damage", HOSTILE.values(), ids=HOSTILE)
def test_a_tokenizer_that_raises_or_panics_is_one_line(damage: dict, folder: Path, capfd) -> None:
    change(folder / "tokenizer.json", **damage)
    refused(load_tokenizer, folder, "its tokenizer fails (")
    assert capfd.readouterr().err == ""


def test_what_is_no_fault_of_the_tokenizer_passes() -> None:
    for error in (KeyboardInterrupt, SystemExit):
        with pytest.raises(error), tokenizer_faults("--teacher x"):
            raise error
    with pytest.raises(InputError, match="^as it is$"), tokenizer_faults("--teacher x"):
        raise InputError("as it is")


def test_stderr_works_after_a_fault(capfd) -> None:
    with pytest.raises(InputError), tokenizer_faults("--teacher x"):
        os.write(2, b"hidden")
        raise ValueError("first\nsecond")
    os.write(2, b"seen")
    assert capfd.readouterr().err == "seen"


def test_stderr_works_after_blocks_that_overlap(capfd) -> None:
    first, second = tokenizer_faults("a"), tokenizer_faults("b")  # as in two threads
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    os.write(2, b"hidden")
    second.__exit__(None, None, None)
    os.write(2, b"seen")
    assert capfd.readouterr().err == "seen"


def test_an_encoder_is_accepted_and_a_broken_one_named(tiny_encoder: Path, monkeypatch) -> None:
    encoder = load_encoder(str(tiny_encoder))
    check_encoder(encoder, layers=True)
    monkeypatch.setattr(type(encoder), "main_input_name", "pixel_values")
    with pytest.raises(InputError, match="BertModel reads more than text"):
        check_encoder(encoder, layers=False)


# 7 and 56 divide the last dummy id, 8 gives it the id that takes the padding's place; by 7919 the ids were all one
@pytest.mark.parametrize("vocabulary", [3, 7, 8, 56, 7919, 15838])
@pytest.mark.parametrize("padding", [0, 1, None])
def test_a_vocabulary_of_any_size_is_an_encoders(vocabulary: int, padding: int | None) -> None:
    torch.manual_seed(0)
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 16}
    settings = BertConfig(vocab_size=vocabulary, hidden_size=16, intermediate_size=16, pad_token_id=padding, **sizes)
    check_encoder(BertModel(settings).eval(), layers=True)
    assert len(dummy_inputs(settings)[0].unique()) > 1
    decoder = GPT2Model(
        GPT2Config(vocab_size=vocabulary, n_positions=16, n_embd=16, n_layer=2, n_head=2, pad_token_id=padding)
    )
    with pytest.raises(InputError, match="GPT2Model is a decoder"):
        check_encoder(decoder.eval(), layers=True)
