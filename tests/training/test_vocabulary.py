"""`--vocabulary` in a run: students with fewer word pieces, the same ones as before, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import AutoConfig, AutoTokenizer, BertConfig, BertModel, PreTrainedTokenizerFast

from nanonet.config.check import check_train
from nanonet.config.train import TrainConfig
from nanonet.errors import InputError
from nanonet.training.pipeline import train

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]


def letters() -> Iterator[str]:
    for letter in "abcdefghijklmnopqrstuvwxyz":
        yield from (letter, f"##{letter}")


@pytest.fixture(scope="module")
def pieces_encoder(tmp_path_factory: pytest.TempPathFactory, tiny_encoder: Path) -> Path:
    """A random BERT with a WordPiece tokenizer: letters, the words of the tiny data, and 200 that no text has."""
    folder = tmp_path_factory.mktemp("pieces")
    known = AutoTokenizer.from_pretrained(tiny_encoder).get_vocab()
    pieces = [*SPECIAL, *(f"[unused{i}]" for i in range(200)), *letters(), *(w for w in known if w not in SPECIAL)]
    vocab = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token"), SPECIAL, strict=True))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=64, **names).save_pretrained(folder)
    sizes = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 48}
    BertModel(BertConfig(vocab_size=len(vocab), max_position_embeddings=64, **sizes)).save_pretrained(folder)
    return folder


@pytest.fixture
def config(pieces_encoder: Path, tiny_data: Path, tmp_path: Path) -> TrainConfig:
    return TrainConfig(
        output=str(tmp_path / "auto"),
        data=str(tiny_data),
        teacher=str(pieces_encoder),
        labels_per_class=5,
        teacher_steps=2,
        steps=4,
        max_tokens=32,
    )


def test_auto_trains_the_same_students_with_fewer_pieces(config: TrainConfig, tmp_path: Path) -> None:
    report = train(config)
    whole = train(replace(config, output=str(tmp_path / "all"), vocabulary="all"))
    before, after = report["vocabulary"]["before"], report["vocabulary"]["after"]
    assert after <= before - 200 and whole["vocabulary"] == {"before": before, "after": before, "why": ""}
    folder = tmp_path / "auto" / "best"
    words = load_file(folder / "model.safetensors")["bert.embeddings.word_embeddings.weight"]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert len(words) == len(tokenizer) == AutoConfig.from_pretrained(folder).vocab_size == after
    assert "##q" in tokenizer.get_vocab() and "[unused7]" not in tokenizer.get_vocab()
    divergence = [[s["validation_divergence"] for s in r["students"]] for r in (report, whole)]
    assert divergence[0] == divergence[1]
    assert f"know {after} word pieces of {before}" in (tmp_path / "auto" / "report.html").read_text()
    assert json.loads((tmp_path / "auto" / "report.json").read_text())["vocabulary"]["after"] == after


@pytest.mark.parametrize(
    "changes", [{"student": "cnn", "embedding_width": 8, "vocabulary": "auto"}, {"teacher_mode": "online"}]
)
def test_other_students_are_cut_too(config: TrainConfig, changes: dict, tmp_path: Path) -> None:
    vocabulary = train(replace(config, **changes))["vocabulary"]
    assert vocabulary["after"] <= vocabulary["before"] - 200
    assert len(AutoTokenizer.from_pretrained(tmp_path / "auto" / "best")) == vocabulary["after"]


def test_students_from_scratch_keep_every_piece_by_default(config: TrainConfig) -> None:
    vocabulary = train(replace(config, student="static", embedding_width=8))["vocabulary"]
    assert vocabulary["after"] == vocabulary["before"]


def test_a_number_keeps_fewer(config: TrainConfig) -> None:
    few = train(replace(config, vocabulary="5"))["vocabulary"]
    more = train(replace(config, overwrite=True))["vocabulary"]
    assert few["after"] < more["after"]


def test_a_resumed_run_of_another_vocabulary_is_refused(config: TrainConfig) -> None:
    train(config)
    with pytest.raises(InputError, match="vocabulary .* -> 'all'"):
        train(replace(config, vocabulary="all", resume=True))


def test_another_tokenizer_stays_whole_and_a_number_is_refused(config: TrainConfig, tiny_encoder: Path) -> None:
    config = replace(config, teacher=str(tiny_encoder))
    with pytest.raises(InputError, match="--vocabulary 9: --teacher .*WordLevel"):
        train(replace(config, vocabulary="9"))
    vocabulary = train(config)["vocabulary"]
    assert vocabulary["before"] == vocabulary["after"] and "WordLevel" in vocabulary["why"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocabulary": "some"}, "--vocabulary some: give auto, all or a number"),
        ({"vocabulary": "0"}, "--vocabulary 0: give auto, all or a number"),
        ({"vocabulary": "9", "teacher_mode": "online"}, "--vocabulary 9: an online teacher"),
    ],
)
def test_what_makes_no_sense_is_refused(changes: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_train(TrainConfig(output="x", **changes))
