"""`--vocabulary`: the students of a run get the word pieces that its texts use, proved on these texts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from nanonet.cohort.model import Cohort
from nanonet.cohort.vocabulary import cut_words, pieces_for, smaller_encoder, smaller_tokenizer, why_whole
from nanonet.data.batches import Encoded, collate
from nanonet.data.prepare import RunData, RunTexts
from nanonet.errors import InputError
from nanonet.models.pairs import model_inputs
from nanonet.training.pretrained import Pretrained

PROVED_ROWS = 8  # rows whose hidden states are compared


@dataclass(frozen=True)
class Vocabulary:
    """Word pieces of the students. before: how many their encoder has; kept: ids that stay, None for all; why: what
    kept them all where `auto` cut nothing"""

    before: int
    kept: list[int] | None = None
    why: str = ""

    def facts(self) -> dict[str, Any]:
        """What the report says."""
        after = self.before if self.kept is None else len(self.kept)
        return {"before": self.before, "after": after, "why": self.why}

    def cut(self, cohort: Cohort) -> None:
        """Cut the embeddings of a cohort, in place."""
        if self.kept is not None:
            cut_words(cohort.model, self.kept)


def fit_vocabulary(
    students: Pretrained, texts: RunTexts, data: RunData, wanted: str, max_tokens: int
) -> tuple[Any, RunData, Vocabulary]:
    """The students' tokenizer cut to `wanted` (`auto`, `all` or a number), all rows in its tokens, and what it keeps.

    The texts that count are those to train on and the validation rows, never the test rows. With `auto` these have the
    pieces and the encoder's hidden states that they had, or nothing is cut.

    Raises:
        InputError: a number, and a tokenizer that cannot be cut.
    """
    before = len(students.model.get_input_embeddings().weight)  # type: ignore[arg-type]
    if wanted == "all":
        return students.tokenizer, data, Vocabulary(before)
    why = why_whole(students.model, students.tokenizer)
    if not why:
        most = 0 if wanted == "auto" else int(wanted)
        kept = pieces_for(students.model, students.tokenizer, _counts(data), most)
        tokenizer, model = smaller_tokenizer(students.tokenizer, kept), smaller_encoder(students.model, kept)
        smaller = replace(students, tokenizer=tokenizer, model=model)
        cut = smaller.tokenise(texts, max_tokens)
        if wanted != "auto" or _is_same(students, data, smaller, cut, {old: i for i, old in enumerate(kept)}):
            return tokenizer, cut, Vocabulary(before, kept)
        why = "without the unused ones the texts would have other pieces or other hidden states"
    if wanted != "auto":
        raise InputError(f"--vocabulary {wanted}: {students.flag} {students.name}: {why}; leave it out")
    return students.tokenizer, data, Vocabulary(before, why=why)


def _counts(data: RunData) -> Mapping[int, int]:
    """How often each id occurs in the training and validation rows."""
    ids, counts = torch.cat([data.rows.ids, data.validation.ids]).unique(return_counts=True)
    return dict(zip(ids.tolist(), counts.tolist(), strict=True))


@torch.no_grad()
def _is_same(old: Pretrained, data: RunData, new: Pretrained, cut: RunData, number: Mapping[int, int]) -> bool:
    """Whether all rows have the same pieces, under their new numbers, and the first ones the same hidden states."""
    renumbered = torch.full((max(number) + 1,), -1, dtype=torch.int32)
    renumbered[list(number)] = torch.tensor(list(number.values()), dtype=torch.int32)
    for before, after in ((data.rows, cut.rows), (data.validation, cut.validation)):
        same_lengths = torch.equal(before.offsets, after.offsets)
        if not same_lengths or not torch.equal(renumbered[before.ids.long()], after.ids):
            return False
    return torch.equal(_hidden(old, data.rows), _hidden(new, cut.rows))


def _hidden(pretrained: Pretrained, rows: Encoded) -> Tensor:
    some = range(min(PROVED_ROWS, len(rows)))
    ids, mask = collate(rows, some, pretrained.tokenizer.pad_token_id)
    model = pretrained.model.eval()
    hidden: Tensor = model(**model_inputs(model.config, ids, mask)).last_hidden_state
    return hidden
