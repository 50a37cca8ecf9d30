"""Pairs of texts. Inside the program a pair is one string: both texts, joined by a noncharacter that no input may hold.

It is taken apart in one place, where texts are tokenised (batches.py). So everything that draws, compares, hashes or
looks up texts does the same for pairs.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from nanonet.errors import InputError
from nanonet.tokenizer_faults import tokenizer_faults

MARK = "\ufdd0"
NAMES = ("text", "text_pair")  # what transformers calls the two texts
_TRIAL = ("A few words, 12 of them!", "And two more.")
CURE = "give a model such as BERT, RoBERTa or ModernBERT"


def is_pair(text: str) -> bool:
    return MARK in text


def parts(text: str) -> list[str]:
    """The texts of a pair, or the one text."""
    return text.split(MARK)


def readable(text: str) -> str:
    """The text as a message shows it."""
    return text.replace(MARK, " | ")


def check_one_kind(texts: Iterable[str], what: str = "texts") -> bool:
    """Whether the texts are pairs.

    Raises:
        InputError: some are, some are not.
    """
    kinds = {is_pair(text) for text in texts}
    if len(kinds) > 1:
        raise InputError(f"{what}: pairs beside single texts; give all tables both columns, or none")
    return True in kinds


@dataclass(frozen=True)
class PairForm:
    """The special tokens of a pair: ids before the first text, between the two, and after the second.

    types: whether the tokens after the first separator are numbered 1, all before them 0
    """

    before: tuple[int, ...]
    between: tuple[int, ...]
    after: tuple[int, ...]
    types: bool

    @property
    def separator(self) -> int:
        """The first token after the first text."""
        return self.between[0]

    @property
    def special(self) -> int:
        """How many they are [tokens]."""
        return len(self.before + self.between + self.after)

    @property
    def separators(self) -> int:
        """How many of them are the separator."""
        return (self.before + self.between + self.after).count(self.separator)


def pair_form(tokenizer: Any) -> PairForm:
    """How this transformers tokenizer writes pairs.

    Raises:
        InputError: no token separates the texts, or another numbering than 0 and 1.
    """
    what = tokenizer.name_or_path or "the model"
    with tokenizer_faults(what):
        found = tokenizer(*_TRIAL, verbose=False)
    ids, types = found["input_ids"], found.get("token_type_ids")
    special = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    ordinary = [column for column, i in enumerate(ids) if i not in special]
    inside = [column for column in range(ordinary[0], ordinary[-1]) if ids[column] in special] if ordinary else []
    if not inside or ids[inside[0]] in (tokenizer.pad_token_id, *ids[: ordinary[0]]):
        raise InputError(f"{what}: its tokenizer puts no token of its own between the texts of a pair; {CURE}")
    numbered = [int(column > inside[0]) for column in range(len(ids))]
    if types is not None and any(types) and types != numbered:
        raise InputError(f"{what}: its tokenizer numbers the texts of a pair otherwise than 0 and 1; {CURE}")
    before, after = ids[: ordinary[0]], ids[ordinary[-1] + 1 :]
    between = [ids[column] for column in inside]
    return PairForm(tuple(before), tuple(between), tuple(after), types == numbered)


def shares(first: int, second: int, room: int) -> tuple[int, int]:
    """How many tokens stay of two texts of so many, where there is `room` for so many: the longer one is cut first.

    As `longest_first` of the `tokenizers` library has it, which also makes every other way to cut them: the product of
    their numbers of pieces.
    """
    if first + second <= room:
        return first, second
    short, long = sorted((first, second))
    if 2 * short > room:
        short, long = room // 2, room - room // 2
    else:
        long = room - short
    return (long, short) if first > second else (short, long)
