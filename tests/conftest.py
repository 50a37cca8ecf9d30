"""A tiny random encoder, a tiny data set that it can learn, and a run on them that takes seconds."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from nanonet.cli.main import main
from nanonet.device import threads

pytest_plugins = ["support.encoders"]

TOPICS = {
    "animals": "cat dog horse cow sheep bird fish frog".split(),
    "food": "bread cheese apple soup rice cake salt tea".split(),
    "weather": "rain snow wind storm cloud sun fog frost".split(),
}
FILLER = "the a some we saw had was near today again very little".split()
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Models this small wait for a second thread far longer than they compute."""
    with threads(1):
        yield


@pytest.fixture(autouse=True)
def blank_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """A third of a short run's time goes into figures: tests/report draws them, so do runs of a whole session."""
    monkeypatch.setattr("nanonet.report.figures._svg", lambda figure, name: "<svg></svg>")


@pytest.fixture(scope="session")
def tiny_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random BERT of 4 layers, width 32, and a word-level tokenizer."""
    folder = tmp_path_factory.mktemp("encoder")
    words = SPECIAL + FILLER + [word for topic in TOPICS.values() for word in topic]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token"), SPECIAL, strict=True))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=64, **names).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=64,
    )
    BertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with train.jsonl (150 rows) and test.jsonl (60 rows): three topics, told apart by their words."""
    folder, rng = tmp_path_factory.mktemp("data"), random.Random(0)
    for name, rows in (("train", 150), ("test", 60)):
        with (folder / f"{name}.jsonl").open("w") as file:
            for i in range(rows):
                topic = list(TOPICS)[i % 3]
                words = rng.choices(TOPICS[topic], k=2) + rng.choices(FILLER, k=rng.randint(2, 9))
                rng.shuffle(words)
                file.write(json.dumps({"text": " ".join(words), "label": topic}) + "\n")
    return folder


@pytest.fixture(scope="session")
def pair_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random BERT of 4 layers, all of whose parameters matter, and a tokenizer of word pieces that
    writes pairs as BERT's does."""
    folder = tmp_path_factory.mktemp("pair-encoder")
    words = ["[PAD]", *(f"[unused{i}]" for i in range(9)), *SPECIAL[1:], *FILLER]
    words += [word for topic in TOPICS.values() for word in topic]
    words += [mark + letter for letter in "abcdefghijklmnopqrstuvwxyz" for mark in ("", "##") if mark + letter != "a"]
    tokenizer = Tokenizer(models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, words.index(token)) for token in SPECIAL[2:]],
    )
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token"), SPECIAL, strict=True))
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    known = PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=64, model_input_names=inputs, **names)
    known.save_pretrained(folder)
    sizes = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 48}
    torch.manual_seed(0)
    model = BertModel(BertConfig(vocab_size=len(words), max_position_embeddings=64, **sizes))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def pair_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with train.csv (240 rows, 60 of them without a label) and test.csv (60 rows) of pairs: the label is the
    topic of the first text, whatever the second one's is."""
    folder, rng = tmp_path_factory.mktemp("pairs"), random.Random(0)

    def text(topic: str) -> str:
        words = rng.choices(TOPICS[topic], k=2) + rng.choices(FILLER, k=rng.randint(1, 5))
        rng.shuffle(words)
        return " ".join(words)

    for name, rows in (("train", 240), ("test", 60)):
        lines = ["premise,hypothesis,label"]
        for i in range(rows):
            first, second = list(TOPICS)[i % 3], rng.choice(list(TOPICS))
            lines.append(f"{text(first)},{text(second)},{first if name == 'test' or i % 4 else ''}")
        (folder / f"{name}.csv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="session")
def trained_run(tiny_data: Path, tiny_encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a short run whose students have learnt something."""
    folder = tmp_path_factory.mktemp("cli") / "run"
    words = f"train --data {tiny_data} --teacher {tiny_encoder} --output {folder} --labels_per_class=30 --max-tokens 32"
    words += (
        " --targets classifier --steps 60 --labelled-batch 24 --unlabelled-batch 8 --learning-rate 5e-3 --threads 1"
    )
    assert main(words.split()) == 0
    return folder


@pytest.fixture
def clusters():
    """Makes L2-normalised rows (N,16) around `classes` directions, two labels a class, and the truth of every row."""

    def make(rows: int = 120, classes: int = 3, noise: float = 0.35, seed: int = 0):
        rng = np.random.default_rng(seed)
        centres = np.linalg.qr(rng.normal(size=(16, 16)))[0][:classes]
        truth = np.arange(rows) % classes
        x = centres[truth] + noise * rng.normal(size=(rows, 16))
        x /= np.linalg.norm(x, axis=1, keepdims=True)
        label = np.where(np.arange(rows) < 2 * classes, truth, -100)
        return x, label, truth

    return make
