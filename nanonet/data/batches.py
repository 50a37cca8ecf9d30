"""Token ids once, padding as little as possible, and the rows of every step.

Texts differ much in length: ids are stored ragged, and a batch is padded to its own longest row. The rows of a step
are a pure function of seed and step (`BatchPlan`), so a checkpoint stores nothing about the data.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nanonet.data.pairs import PairForm, check_one_kind, pair_form, parts, shares
from nanonet.errors import InputError
from nanonet.tokenizer_faults import tokenizer_faults

_TEXTS_AT_ONCE = 1000  # bounds the Python lists of ids that exist at any one time
_CHARACTERS_AT_ONCE = 2_000_000
_CHARACTERS_A_TOKEN = 64  # more than a token has in any language; a text of fewer tokens is tokenised as a whole


@dataclass(frozen=True, eq=False)
class Encoded:
    """Token ids of N texts, back to back: row n is ids[offsets[n] : offsets[n + 1]].

    ids (tokens,) int32, offsets (N+1,) int64 [tokens].
    """

    ids: Tensor
    offsets: Tensor

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> list[int]:
        """Tokens of every row, (N,)."""
        lengths: list[int] = self.offsets.diff().tolist()
        return lengths

    def __getitem__(self, rows: Sequence[int]) -> Encoded:
        """Return the rows, in that order, as an Encoded of their own."""
        offsets = self.offsets.tolist()
        return _join(self.ids[offsets[row] : offsets[row + 1]] for row in rows)


def encode(tokenizer: Any, texts: Sequence[str], max_tokens: int, where: Callable[[int], str] | None = None) -> Encoded:
    """Return the token ids of `texts`, special tokens included, each cut to `max_tokens` [tokens].

    tokenizer: a transformers tokenizer; where(n): where text n stands, for the message. Of a pair (pairs.py) the longer
    text is cut first, so that something of both stays.
    Raises InputError where max_tokens leaves no room for the text, a text has no token at all (its attention would
    be over nothing), or a text of a pair holds the token that separates them.
    """
    encoded = encode_any(tokenizer, texts, max_tokens, where)
    if 0 in (lengths := encoded.lengths):
        n = lengths.index(0)
        raise InputError(f"{_place(n, texts, where)}: the text {texts[n]!r:.40} has no tokens: delete it")
    return encoded


def encode_any(
    tokenizer: Any, texts: Sequence[str], max_tokens: int, where: Callable[[int], str] | None = None
) -> Encoded:
    """As `encode`; a text without a token is a row of length 0."""
    form = pair_form(tokenizer) if check_one_kind(texts) else None
    special = form.special if form else tokenizer.num_special_tokens_to_add()
    if max_tokens <= special + bool(form):
        raise InputError(f"--max-tokens {max_tokens}: the tokenizer itself takes {special} of them; give more")
    chunks: list[Tensor] = []
    lengths: list[int] = []
    for chunk in _chunks(texts):
        rows = _pair_ids(tokenizer, form, chunk, max_tokens) if form else _single_ids(tokenizer, chunk, max_tokens)
        for n, ids in enumerate(rows if form else ()):
            if form and ids.count(form.separator) != form.separators:
                token = tokenizer.convert_ids_to_tokens(form.separator)
                place = _place(len(lengths) + n, texts, where)
                raise InputError(f"{place}: it holds {token}, which separates the texts of a pair: delete it there")
        lengths += [len(ids) for ids in rows]
        flat = np.fromiter(itertools.chain.from_iterable(rows), np.int32, sum(map(len, rows)))
        chunks.append(torch.from_numpy(flat))
    every = torch.cat(chunks) if chunks else torch.empty(0, dtype=torch.int32)
    return Encoded(every, torch.tensor([0, *lengths], dtype=torch.int64).cumsum(0))


def rows_with_words(tokenizer: Any, encoded: Encoded, pairs: bool) -> list[int]:
    """The rows of which the tokenizer leaves something, of a pair something of both texts."""
    if not pairs:
        special = tokenizer.num_special_tokens_to_add()
        return [row for row, length in enumerate(encoded.lengths) if length > special]
    form = pair_form(tokenizer)
    ends = [ids.tolist().index(form.separator) for ids in encoded.ids.split(encoded.lengths)]
    first = [end - len(form.before) for end in ends]  # tokens of the first texts
    second = [length - form.special - n for length, n in zip(encoded.lengths, first, strict=True)]
    return [row for row, tokens in enumerate(zip(first, second, strict=True)) if min(tokens) > 0]


def _place(n: int, texts: Sequence[str], where: Callable[[int], str] | None) -> str:
    return where(n) if where else f"text {n + 1} of {len(texts)}"


def _single_ids(tokenizer: Any, texts: list[str], max_tokens: int) -> list[list[int]]:
    short = [_shortened(text, max_tokens) for text in texts]
    rows = _ids(tokenizer, [short], max_tokens)
    for n, (text, cut) in enumerate(zip(texts, short, strict=True)):
        if len(cut) < len(text) and len(rows[n]) < max_tokens:  # its words are few and long
            rows[n : n + 1] = _ids(tokenizer, [[text]], max_tokens)
    return rows


def _pair_ids(tokenizer: Any, form: PairForm, texts: list[str], max_tokens: int) -> list[list[int]]:
    first, second = ([*column] for column in zip(*map(parts, texts), strict=True))
    if not tokenizer.is_fast:
        return _ids(tokenizer, [first, second], max_tokens)
    rows = []
    room, from_end = max_tokens - form.special, tokenizer.truncation_side == "left"
    for a, b in zip(_ids(tokenizer, [first]), _ids(tokenizer, [second]), strict=True):
        n, m = shares(len(a), len(b), room)
        a, b = (a[len(a) - n :], b[len(b) - m :]) if from_end else (a[:n], b[:m])
        rows.append([*form.before, *a, *form.between, *b, *form.after])
    return rows


def _ids(tokenizer: Any, columns: list[list[str]], max_tokens: int = 0) -> list[list[int]]:
    """The ids of texts, one column, or of pairs, two columns; without `max_tokens` all, and no special tokens."""
    cut = {"truncation": True, "max_length": max_tokens} if max_tokens else {"add_special_tokens": False}
    with tokenizer_faults(tokenizer.name_or_path or "the model"):
        if len(columns) == 1 and (backend := fast_backend(tokenizer, max_tokens)) is not None:
            found = backend.encode_batch_fast(*columns, add_special_tokens=bool(max_tokens))
            return [encoding.ids for encoding in found]
        # verbose=False: no warning about sequences longer than the model, they are cut
        ids: list[list[int]] = tokenizer(
            *columns, **cut, return_attention_mask=False, return_token_type_ids=False, verbose=False
        )["input_ids"]
    return ids


_setting = threading.Lock()


def fast_backend(tokenizer: Any, max_tokens: int = 0) -> Any:
    """The tokenizer of the tokenizers library within, set to cut texts as `tokenizer` does: it takes less time, for
    it neither keeps where a token stood nor makes masks. None where `tokenizer` has none, or rules of its own."""
    from transformers import PreTrainedTokenizerFast
    from transformers.tokenization_utils_base import TruncationStrategy
    from transformers.utils import PaddingStrategy

    own = getattr(type(tokenizer), "_encode_plus", None) is not PreTrainedTokenizerFast._encode_plus
    if own or type(tokenizer).__call__ is not PreTrainedTokenizerFast.__call__:
        return None
    cut = TruncationStrategy.LONGEST_FIRST if max_tokens else TruncationStrategy.DO_NOT_TRUNCATE
    with _setting:  # of two threads the second finds it set, and does not set it while the first one tokenises
        tokenizer.set_truncation_and_padding(PaddingStrategy.DO_NOT_PAD, cut, max_tokens, 0, None, None)
    return tokenizer.backend_tokenizer


def _chunks(texts: Sequence[str]) -> Iterator[list[str]]:
    """The texts, some at a time: a tokenizer takes hundreds of bytes of memory for a character."""
    chunk: list[str] = []
    size = 0
    for text in texts:
        chunk.append(text)
        size += len(text)
        if len(chunk) == _TEXTS_AT_ONCE or size > _CHARACTERS_AT_ONCE:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _shortened(text: str, max_tokens: int) -> str:
    """A long text up to the last space of what its first `max_tokens` tokens can be made of."""
    most = _CHARACTERS_A_TOKEN * max_tokens
    return text[:most].rpartition(" ")[0] or text if len(text) > most else text


def collate(encoded: Encoded, rows: Sequence[int], pad_id: int, multiple_of: int = 8) -> tuple[Tensor, Tensor]:
    """Return (input_ids, attention_mask), both (B, L) int64, of the B rows.

    L is the longest of the rows, rounded up to `multiple_of`: few different shapes, and full tiles for
    the matrix products. Ids end in `pad_id` where the mask is 0. No rows give (0, 0).
    """
    row = torch.as_tensor(rows, dtype=torch.int64)
    start, length = encoded.offsets[row], encoded.offsets[row + 1] - encoded.offsets[row]
    longest = int(length.max()) if len(row) else 0
    place = torch.arange(-(-longest // multiple_of) * multiple_of)
    mask = place < length[:, None]
    # padding reads the last id of all, and drops it: no place lies past the end
    source = (start[:, None] + place).clamp_(max=max(len(encoded.ids) - 1, 0))
    return torch.where(mask, encoded.ids[source].long(), pad_id), mask.long()


def length_buckets(lengths: Sequence[int], rows_per_batch: int = 64, tokens_per_batch: int = 0) -> list[list[int]]:
    """Cut rows into batches of similar length, for inference; every row is in exactly one batch.

    Longest first, so that a batch that does not fit in memory is the first one. A batch holds at most
    `rows_per_batch` rows and, unless it is 0, at most `tokens_per_batch` tokens, padding to its longest row
    counted; a longer row is a batch of its own.
    """
    batches: list[list[int]] = []
    room = 0
    for row in sorted(range(len(lengths)), key=lambda row: (-lengths[row], row)):
        if room == 0:
            fit = tokens_per_batch // max(lengths[row], 1) if tokens_per_batch else rows_per_batch
            room = max(1, min(rows_per_batch, fit))
            batches.append([])
        batches[-1].append(row)
        room -= 1
    return batches


@dataclass(frozen=True, eq=False)
class BatchPlan:
    """The rows of every step as a pure function of (seed, step) and the data.

    labels: class of every labelled row. lengths: [tokens] of every unlabelled row.
    labelled_batch, unlabelled_batch: most rows of a side in a step. window: batches that are sorted together.

    A side is a sequence of epochs. In each, every row comes exactly once, in batches whose sizes differ by one at
    most; so a batch never holds a row twice, nor more rows than there are. Labelled epochs are ordered so that
    every batch has the class frequencies of all labelled rows. Unlabelled epochs are shuffled, cut into windows of
    `window` batches, sorted by length within a window and cut into batches, which are shuffled again: rows of similar
    length share a batch, and hardly any two epochs hold the same batch.
    """

    labels: Sequence[int]
    lengths: Sequence[int]
    labelled_batch: int
    unlabelled_batch: int
    seed: int
    window: int = 16
    # {side: (epoch, its batches)}: the epoch asked for last
    _cache: dict[int, tuple[int, list[list[int]]]] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        for name in ("labelled_batch", "unlabelled_batch", "window"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}: give 1 or more")

    def rows(self, step: int) -> tuple[list[int], list[int]]:
        """Return the rows of `step`, counted from 0: positions in `labels`, positions in `lengths`."""
        if step < 0:
            raise ValueError(f"step: expected 0 or more, got {step}")
        labelled = self._batch(0, len(self.labels), self.labelled_batch, step, self._labelled_epoch)
        unlabelled = self._batch(1, len(self.lengths), self.unlabelled_batch, step, self._unlabelled_epoch)
        return labelled, unlabelled

    def _batch(
        self,
        side: int,
        n: int,
        size: int,
        step: int,
        order: Callable[[np.random.Generator, list[int]], list[list[int]]],
    ) -> list[int]:
        if n == 0:
            return []
        count = -(-n // size)
        epoch, position = divmod(step, count)
        if self._cache.get(side, (-1, []))[0] != epoch:
            ends = [n * i // count for i in range(count + 1)]
            self._cache[side] = (epoch, order(np.random.default_rng([self.seed, side, epoch]), ends))
        return list(self._cache[side][1][position])

    def _labelled_epoch(self, rng: np.random.Generator, ends: list[int]) -> list[list[int]]:
        label = np.asarray(self.labels, dtype=np.int64)
        place = np.empty(len(label))
        for c in np.unique(label):
            rows = rng.permutation(np.flatnonzero(label == c))
            # the r-th of a class's n rows stands at (r + u) / n of the epoch, u drawn once for the class
            place[rows] = (np.arange(len(rows)) + rng.random()) / len(rows)
        return _cut(np.argsort(place, kind="stable"), ends)

    def _unlabelled_epoch(self, rng: np.random.Generator, ends: list[int]) -> list[list[int]]:
        length = np.asarray(self.lengths, dtype=np.int64)
        order = rng.permutation(len(length))
        for first in range(0, len(ends) - 1, self.window):
            window = slice(ends[first], ends[min(first + self.window, len(ends) - 1)])
            order[window] = order[window][np.argsort(length[order[window]], kind="stable")]
        batches = _cut(order, ends)
        return [batches[i] for i in rng.permutation(len(batches))]


def _cut(order: np.ndarray[Any, Any], ends: list[int]) -> list[list[int]]:
    return [order[start:end].tolist() for start, end in itertools.pairwise(ends)]


def _join(pieces: Iterable[Tensor]) -> Encoded:
    parts = list(pieces)
    ids = torch.cat(parts) if parts else torch.empty(0, dtype=torch.int32)
    return Encoded(ids, torch.tensor([0, *(len(part) for part in parts)], dtype=torch.int64).cumsum(0))
