"""Each filter drops the texts that it is for."""

from __future__ import annotations

from collections import Counter

import pytest

from nanonet.generation.filters import filter_samples, repeated

LIMITS = {"least_words": 3, "most_repeated": 0.5, "most_copied": 0.5}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "short"),
        ("two words", "short"),
        ("one two one two one two one two one two", "repetitive"),
        ("the cat sat on the mat by the door", "copy"),  # a labelled text
        ("The CAT sat, on the mat; by the door!", "copy"),  # in other letters
        ("cat sat on the mat by", "copy"),  # a part of one
        ("yesterday the cat sat on the mat by the door and slept on until noon", "copy"),  # more than one
        ("Rain fell  on the old roof", "duplicate"),
        ("the cat sat on a chair and slept", ""),
        ("the cat sat on the mat until somebody opened a window upstairs", ""),
    ],
)
def test_what_is_dropped(text: str, reason: str) -> None:
    known = ["the cat sat on the mat by the door", "another text of no use here"]
    first, dropped = "rain fell on the old roof", Counter()  # type: ignore[var-annotated]
    kept = list(filter_samples([(0, first), (1, text)], known, dropped, **LIMITS))
    assert kept == [(0, first)] + ([] if reason else [(1, text)])
    assert dropped == (Counter({reason: 1}) if reason else Counter())


@pytest.mark.parametrize(
    ("limit", "text"),
    [("least_words", "one two"), ("most_repeated", "a b a b a b a b a b"), ("most_copied", "the cat sat on the mat")],
)
def test_each_limit_is_obeyed(limit: str, text: str) -> None:
    loose = LIMITS | {limit: 0 if limit == "least_words" else 1}
    for limits, count in ((LIMITS, 0), (loose, 1)):
        kept = filter_samples([(0, text)], ["the cat sat on the mat"], Counter(), **limits)  # type: ignore[arg-type]
        assert len(list(kept)) == count


def test_repetition_is_a_share() -> None:
    assert repeated(()) == 0 and repeated(("a", "b")) == 0 and repeated(tuple("abcdef")) == 0
    assert repeated(tuple("aaaaa")) == pytest.approx(2 / 3)
