"""The encoder as an embedder, and tuned on labels."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from nanonet.cohort.packing import can_pack
from nanonet.data.batches import Encoded, collate, encode
from nanonet.errors import InputError
from nanonet.models.load import load_encoder, load_tokenizer
from nanonet.models.pooling import pooling_of
from nanonet.teacher.encoder import BATCH, PASSES, Encoder, tuning_steps
from nanonet.teacher.soft_labels import classify


@pytest.fixture
def encoder(tiny_encoder: Path) -> Encoder:
    return Encoder(load_encoder(str(tiny_encoder)), "mean", 0, torch.device("cpu"))


@pytest.fixture
def table(tiny_encoder: Path, tiny_data: Path) -> tuple[Encoded, torch.Tensor]:
    lines = [json.loads(line) for line in (tiny_data / "train.jsonl").read_text().splitlines()]
    topics = sorted({line["label"] for line in lines})
    label = torch.tensor([topics.index(line["label"]) for line in lines])
    return encode(load_tokenizer(str(tiny_encoder)), [line["text"] for line in lines], 32), label


@pytest.mark.parametrize("pooling", ["mean", "cls", "max"])
def test_embeddings_are_pooled_over_the_text_alone(encoder: Encoder, table, pooling: str) -> None:
    rows, _ = table
    found = Encoder(encoder.model, pooling, 0, encoder.device).embed(rows[range(5)])
    for n in range(5):
        ids, _ = collate(rows, [n], 0, multiple_of=1)
        hidden = encoder.model(input_ids=ids).last_hidden_state[0].detach()
        wanted = {"mean": hidden.mean(0), "cls": hidden[0], "max": hidden.amax(0)}[pooling]
        torch.testing.assert_close(found[n], wanted / wanted.norm(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        (None, "mean"),
        ('{"pooling_mode_cls_token": true, "pooling_mode_mean_tokens": false}', "cls"),
        ('{"embedding_dimension": 4, "pooling_mode": "max"}', "max"),
        ('{"pooling_mode": "lasttoken"}', None),
        ('{"pooling_mode_cls_token": true, "pooling_mode_mean_tokens": true}', None),
        ("{", None),
        ("[1]", None),
    ],
)
def test_the_pooling_is_what_sentence_transformers_wrote(settings: str | None, found: str | None, tmp_path: Path):
    (tmp_path / "1_Pooling").mkdir()
    if settings is not None:
        (tmp_path / "1_Pooling" / "config.json").write_text(settings)
    if found:
        assert pooling_of(str(tmp_path), True) == found
    else:
        with pytest.raises(InputError, match="1_Pooling/config.json: (expected one pooling of mean|cannot be read)"):
            pooling_of(str(tmp_path), True)


@pytest.mark.parametrize("tuning", ["full", "bias", "lora"])
def test_tuning_tells_the_labelled_rows_apart(tuning: str, encoder: Encoder, table, monkeypatch) -> None:
    rows, label = table
    # the encoder is small and random
    monkeypatch.setattr("nanonet.teacher.encoder.LEARNING_RATE", {"full": 3e-3, "bias": 3e-2, "lora": 1e-2})
    encoder = replace(encoder, tuning=tuning)  # type: ignore[arg-type]
    known = range(60)
    before = copy.deepcopy(encoder.model.state_dict())
    random = torch.get_rng_state()
    done: list[int] = []
    steps = tuning_steps(1000, 60)
    assert steps == PASSES * 60 // BATCH and tuning_steps(7, 60) == 7
    tuned = encoder.tuned(rows[known], label[:60], steps, 0, done.append)
    assert len(done) == steps

    def accuracy(made: Encoder) -> float:
        x = made.embed(rows).double().numpy()
        head = classify(x[:60], label[:60].numpy(), 10.0)
        return float((head.predict(x[:60]) == label[:60].numpy()).mean())

    assert accuracy(tuned) > accuracy(encoder) + 0.05
    names = dict(encoder.model.named_parameters())
    assert dict(tuned.model.named_parameters()).keys() == names.keys()  # adapters are merged
    moved = {name for name, p in tuned.model.named_parameters() if not torch.equal(p, before[name])}
    biases = {name for name in names if name.endswith(".bias")}
    assert moved and all(name.startswith("encoder.layer.") for name in moved)
    assert (bool(moved & biases), bool(moved - biases)) == (tuning != "lora", tuning != "bias")
    # what it was made from stays as it was, but for the tokens' embeddings, which both hold and none trains
    assert all(torch.equal(before[name], tensor) for name, tensor in encoder.model.state_dict().items())
    words = [made.model.get_input_embeddings().weight for made in (encoder, tuned)]
    assert words[0] is words[1] and not words[0].requires_grad and words[0].grad is None
    assert torch.equal(torch.get_rng_state(), random)


def test_a_seed_decides_the_tuning_and_no_step_changes_nothing(encoder: Encoder, table) -> None:
    rows, label = table
    few, known = rows[range(20)], label[:20]
    a, b, c = (encoder.tuned(few, known, 3, seed).embed(few) for seed in (0, 0, 1))
    assert torch.equal(a, b) and not torch.equal(a, c)
    assert torch.equal(encoder.tuned(few, known, 0, 0).embed(few), encoder.embed(few))


def test_no_layer_sees_padding_and_the_tuning_is_the_same(encoder: Encoder, table, monkeypatch: pytest.MonkeyPatch):
    rows, label = table
    for module in encoder.model.modules():  # whose masks would differ
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    tokens: list[int] = []
    encoder.model.encoder.layer[0].intermediate.dense.register_forward_pre_hook(
        lambda module, given: tokens.append(given[0][..., 0].numel()) if module.training else None
    )
    found, counts = [], []
    for can in (can_pack, lambda *_: False):
        monkeypatch.setattr("nanonet.teacher.encoder.can_pack", can)
        tokens.clear()
        found.append(encoder.tuned(rows[range(20)], label[:20], 4, 0).embed(rows))
        counts.append(sum(tokens))
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)
    assert counts[0] == 2 * sum(rows[range(20)].lengths) < counts[1]  # four steps of ten rows are two passes


def test_classes_need_not_be_counted_from_0(encoder: Encoder, table) -> None:
    rows, label = table
    chosen = (label != 1).nonzero()[:20, 0]
    few = rows[chosen.tolist()]
    named, counted = (encoder.tuned(few, y, 3, 0).embed(few) for y in (label[chosen], label[chosen] // 2))
    assert torch.equal(named, counted)
