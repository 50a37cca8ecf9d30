"""A pretrained encoder with its tokenizer, as the teacher or as what the students start from."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel

from nanonet.data.pairs import check_one_kind, pair_form
from nanonet.data.prepare import RunData, RunTexts, tokenise
from nanonet.errors import InputError
from nanonet.inference.classifier import check_tokens, most_tokens
from nanonet.models.load import check_vocabulary, load_encoder, load_tokenizer
from nanonet.models.pairs import set_text_pair

TEACHER, STUDENT = "--teacher", "--student-model"


@dataclass(frozen=True, eq=False)
class Pretrained:
    """flag, name: how the user named it; model: an encoder, or a text classifier."""

    flag: str
    name: str
    tokenizer: Any
    model: PreTrainedModel

    def tokenise(self, texts: RunTexts, max_tokens: int) -> RunData:
        """The run's rows in its tokens, which it has embeddings for; from then on the model reads texts of their kind,
        single or in pairs. Raises InputError."""
        check_tokens(max_tokens, most_tokens(self.model))
        if check_one_kind(texts.rows.texts):
            form = pair_form(self.tokenizer)
            set_text_pair(self.model, form.separator, form.types)
        else:
            set_text_pair(self.model, None)
        data = tokenise(texts, self.tokenizer, max_tokens)
        largest = max(int(part.ids.max()) for part in (data.rows, data.validation, data.test) if len(part.ids))
        check_vocabulary(max(largest, self.tokenizer.pad_token_id), self.model, f"{self.flag} {self.name}")
        return data

    @contextmanager
    def named(self) -> Iterator[None]:
        """Within, an error that names the teacher's flag names this model's: the checks do not know whose it is."""
        try:
            yield
        except InputError as error:
            said = str(error)
            if self.flag == TEACHER or not said.startswith(TEACHER + ":"):
                raise
            raise InputError(self.flag + said.removeprefix(TEACHER)) from error


def load_pretrained(name: str, flag: str) -> Pretrained:
    """An encoder and its tokenizer. Raises InputError."""
    return Pretrained(flag, name, load_tokenizer(name, flag), load_encoder(name, flag))
