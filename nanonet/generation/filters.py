"""Which of a language model's samples are worth a teacher's time: neither too short, nor a loop, nor a copy, nor there
already. Words are runs of letters and digits, whatever their case.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator

GRAM = 4  # words in a row that tell a copy from a common phrase
LOOP = 3  # words in a row that come again where a model goes round in circles

REASONS = ("short", "repetitive", "copy", "duplicate")


def sift(
    samples: Iterable[tuple[int, str]],
    known: Iterable[str],
    dropped: Counter[str],
    *,
    least_words: int,
    most_repeated: float,
    most_copied: float,
) -> Iterator[tuple[int, str]]:
    """Yield the samples (class, text) that are kept; `dropped` counts the others by reason, the first that applies.

    short       fewer than `least_words` words
    repetitive  `repeated` above `most_repeated`
    copy        it shares more than `most_copied` of its runs of GRAM words with one of the texts `known`, counted in
                the text that has fewer of them: 1 where one text holds the other
    duplicate   the words of a sample that was kept
    """
    sources = defaultdict(set)
    sizes = []
    for number, text in enumerate(known):
        own = grams(words(text), GRAM)
        sizes.append(len(own))
        for gram in own:
            sources[gram].add(number)
    kept: set[tuple[str, ...]] = set()
    for which, text in samples:
        said = words(text)
        own = grams(said, GRAM)
        # only the known texts that share something are looked at
        shared = Counter(number for gram in own for number in sources.get(gram, ()))
        if len(said) < least_words:
            dropped["short"] += 1
        elif repeated(said) > most_repeated:
            dropped["repetitive"] += 1
        elif any(count / min(len(own), sizes[number]) > most_copied for number, count in shared.items()):
            dropped["copy"] += 1
        elif said in kept:
            dropped["duplicate"] += 1
        else:
            kept.add(said)
            yield which, text


def words(text: str) -> tuple[str, ...]:
    """The words of a text, case folded."""
    return tuple(re.findall(r"\w+", text.casefold()))


def grams(said: tuple[str, ...], n: int) -> set[tuple[str, ...]]:
    """All runs of n words; of fewer words the one run that they are."""
    return {said[i : i + n] for i in range(max(len(said) - n, 0) + 1)}


def repeated(said: tuple[str, ...]) -> float:
    """The share of a text's runs of LOOP words that stood there before: 0 where nothing comes again."""
    runs = max(len(said) - LOOP, 0) + 1
    return 1 - len(grams(said, LOOP)) / runs
