"""Filters of a language model's samples: too short, repetitive, copied from a labelled text, or a duplicate.

A word is a run of letters and digits, case folded.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator

GRAM = 4  # words of an n-gram: shared n-grams of this length mark a copy
LOOP = 3  # words of an n-gram that repeats where a model loops

REASONS = ("short", "repetitive", "copy", "duplicate")


def filter_samples(
    samples: Iterable[tuple[int, str]],
    known: Iterable[str],
    dropped: Counter[str],
    *,
    least_words: int,
    most_repeated: float,
    most_copied: float,
) -> Iterator[tuple[int, str]]:
    """Yield the samples (class, text) that pass every filter; `dropped` counts the others by the first reason.

    short       fewer than `least_words` words
    repetitive  `repeated` above `most_repeated`
    copy        it shares more than `most_copied` of its n-grams (GRAM words) with one of the texts `known`, as a share
                of the text that has fewer of them: 1 where one text contains the other
    duplicate   the words of a sample that was yielded before
    """
    sources = defaultdict(set)
    sizes = []
    for number, text in enumerate(known):
        ngrams = grams(words(text), GRAM)
        sizes.append(len(ngrams))
        for gram in ngrams:
            sources[gram].add(number)
    yielded: set[tuple[str, ...]] = set()
    for which, text in samples:
        tokens = words(text)
        ngrams = grams(tokens, GRAM)
        # only known texts that share an n-gram are compared
        shared = Counter(number for gram in ngrams for number in sources.get(gram, ()))
        if len(tokens) < least_words:
            dropped["short"] += 1
        elif repeated(tokens) > most_repeated:
            dropped["repetitive"] += 1
        elif any(count / min(len(ngrams), sizes[number]) > most_copied for number, count in shared.items()):
            dropped["copy"] += 1
        elif tokens in yielded:
            dropped["duplicate"] += 1
        else:
            yielded.add(tokens)
            yield which, text


def words(text: str) -> tuple[str, ...]:
    """The words of a text, case folded."""
    return tuple(re.findall(r"\w+", text.casefold()))


def grams(tokens: tuple[str, ...], n: int) -> set[tuple[str, ...]]:
    """All n-grams of the words; fewer than n words are one n-gram."""
    return {tokens[i : i + n] for i in range(max(len(tokens) - n, 0) + 1)}


def repeated(tokens: tuple[str, ...]) -> float:
    """The share of a text's n-grams (LOOP words) that occurred earlier in it: 0 without repetition."""
    count = max(len(tokens) - LOOP, 0) + 1
    return 1 - len(grams(tokens, LOOP)) / count
