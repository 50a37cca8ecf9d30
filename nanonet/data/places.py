"""Where the rows of a table stand, such as `line 7`: millions of them in a few bytes each."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import overload


class Places(Sequence[str]):
    """A list of places. Of one that ends in a number, as nearly all do, the number is kept, and what stands before it
    once for all rows."""

    def __init__(self) -> None:
        self._words: list[str] = []
        self._known: dict[str, int] = {}
        self._word = array("i")
        self._number = array("q")  # -1: the word is the whole place

    def append(self, place: str) -> None:
        word, space, end = place.rpartition(" ")
        numbered = bool(space) and end.isascii() and end.isdigit() and len(end) < 19 and (end == "0" or end[0] != "0")
        word = word if numbered else place
        if word not in self._known:
            self._known[word] = len(self._words)
            self._words.append(word)
        self._number.append(int(end) if numbered else -1)
        self._word.append(self._known[word])

    def __len__(self) -> int:
        return len(self._number)

    @overload
    def __getitem__(self, row: int) -> str: ...
    @overload
    def __getitem__(self, row: slice) -> Sequence[str]: ...
    def __getitem__(self, row: int | slice) -> str | Sequence[str]:
        if isinstance(row, slice):
            return [self[i] for i in range(len(self))[row]]
        word, number = self._words[self._word[row]], self._number[row]
        return word if number < 0 else f"{word} {number}"
