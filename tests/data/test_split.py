"""The published draws, and the promises of the folds."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from nanonet.data.split import choose_test_rows, digest, draw_labels, folds, in_test_fifth
from nanonet.errors import InputError

LABELS = [n % 4 if n % 7 else 3 for n in range(200)]  # uneven on purpose


# 1 and 30: the ends of scarcity that are reported
@pytest.mark.parametrize("labels_per_class", [1, 10, 30])
def test_a_draw_has_the_count_of_every_class_and_leaves_the_rest(labels_per_class: int) -> None:
    scarce = draw_labels(LABELS, labels_per_class, 0, 4)
    assert [LABELS[row] for row in scarce.labelled] == sorted(list(range(4)) * labels_per_class)
    assert scarce.unlabelled == sorted(set(range(200)) - set(scarce.labelled))


def test_the_draw_is_the_published_one() -> None:
    # frozen numbers: a change here changes every result that names a seed
    assert draw_labels([0, 1] * 20, 3, 0, 2).labelled == [8, 38, 12, 23, 33, 9]
    rng = np.random.default_rng(5)
    expected = [int(row) for c in range(4) for row in rng.permutation([n for n in range(200) if LABELS[n] == c])[:6]]
    assert draw_labels(LABELS, 6, 5, 4).labelled == expected


def test_the_seed_changes_the_draw_and_nothing_else_does() -> None:
    draws = [draw_labels(LABELS, 10, seed, 4).labelled for seed in range(5)]
    assert len({tuple(draw) for draw in draws}) == 5
    assert draw_labels(np.array(LABELS), 10, 3, 4).labelled == draws[3]  # type: ignore[arg-type]
    assert all(isinstance(row, int) for row in draws[0])


def test_zero_labels_everything_in_order() -> None:
    scarce = draw_labels(LABELS, 0, 0, 4)
    assert scarce.labelled == list(range(200)) and scarce.unlabelled == []


def test_a_class_with_too_few_rows_is_named() -> None:
    with pytest.raises(InputError, match="class 'rare' has 2 rows in the train split, fewer than labels_per_class 3"):
        draw_labels([0, 0, 0, 1, 1], 3, 0, 2, ["common", "rare"])
    with pytest.raises(InputError, match="class '1' has 2 rows"):
        draw_labels([0, 0, 0, 1, 1], 3, 0, 2)
    for labels_per_class in (0, 1):
        with pytest.raises(InputError, match=r"class '2' has 0 rows .*: add rows of that class"):
            draw_labels([0, 0, 0, 1, 1], labels_per_class, 0, 3)
    with pytest.raises(InputError, match="labels_per_class is -1"):
        draw_labels([0, 1], -1, 0, 2)


# 2: the least; 5: the usual; 7: does not divide; 40: more folds than rows of a class
@pytest.mark.parametrize("count", [2, 5, 7, 40])
def test_folds_cover_every_row_once_and_are_stratified(count: int) -> None:
    parts = folds(LABELS, count, 0)
    assert len(parts) == count
    assert sorted(row for _, held in parts for row in held) == list(range(200))
    sizes = [len(held) for _, held in parts]
    assert max(sizes) - min(sizes) <= 1
    for train, held in parts:
        assert sorted(train + held) == list(range(200))
        assert {LABELS[row] for row in train} == set(LABELS)
    for c in range(4):
        counts = [Counter(LABELS[row] for row in held)[c] for _, held in parts]
        assert max(counts) - min(counts) <= 1


def test_the_only_row_of_a_class_is_never_held_out() -> None:
    parts = folds([0, 0, 0, 1], 2, 0)
    assert all(3 in train for train, _ in parts)
    assert sorted(row for _, held in parts for row in held) == [0, 1, 2]
    assert folds([0, 1, 2], 5, 0) == []
    assert len(folds([0, 0], 5, 0)) == 2


def test_the_seed_changes_the_folds() -> None:
    assert folds(LABELS, 5, 0) == folds(LABELS, 5, 0) != folds(LABELS, 5, 1)
    with pytest.raises(ValueError, match="count"):
        folds(LABELS, 1, 0)


def test_held_out_is_a_fixed_fifth() -> None:
    assert digest("abc") == 0xBA7816BF8F01CFEA  # sha256 of "abc", FIPS 180-2
    assert 1900 < sum(in_test_fifth(f"text {n}") for n in range(10_000)) < 2100


# a fraction; the counts per class that it takes of 100, 50 and 4 rows
@pytest.mark.parametrize(
    ("fraction", "counts"), [(0.2, [20, 10, 1]), (0.1, [10, 5, 0]), (0.5, [50, 25, 2]), (0.99, [99, 49, 3])]
)
def test_the_rows_for_testing_are_a_part_of_every_class(fraction: float, counts: list[int]) -> None:
    labels = [0] * 100 + [1] * 50 + [2] * 4
    texts = [f"text {n}" for n in range(154)]
    chosen = choose_test_rows(texts, labels, fraction)
    assert chosen == sorted(set(chosen))
    got = Counter(labels[row] for row in chosen)
    assert [got[c] for c in range(3)] == [min(wanted, n - 1) for wanted, n in zip(counts, (100, 50, 4), strict=True)]
    # by the text, not by the place
    order = list(reversed(range(154)))
    again = choose_test_rows([texts[i] for i in order], [labels[i] for i in order], fraction)
    assert {texts[order[row]] for row in again} == {texts[row] for row in chosen}


def test_equal_texts_are_on_one_side_and_a_class_keeps_one() -> None:
    texts = [f"text {n % 20}" for n in range(200)]
    labels = [n % 3 for n in range(200)]  # a text has several labels
    chosen = set(choose_test_rows(texts, labels, 0.3))
    assert {texts[row] for row in chosen}.isdisjoint({texts[row] for row in range(200) if row not in chosen})
    assert 30 <= len(chosen) <= 90 and {labels[row] for row in range(200) if row not in chosen} == {0, 1, 2}
    assert choose_test_rows(["a", "a", "b"], [0, 0, 1], 0.9) == []
