"""Static students: K weighted means of word vectors with a dense head in one model, trained as CNN students are."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from transformers import PreTrainedModel

from nanonet.cohort.cnn import build_from_words
from nanonet.cohort.model import Cohort
from nanonet.models.pairs import text_pair
from nanonet.models.static import StaticConfig, StaticForSequenceClassification

LEARNING_RATE = 5e-3
FIRST_PIECES = 9  # a special token and eight more
FIRST_DROPOUT = 0.6


def build_static_cohort(
    teacher: PreTrainedModel, labels: Sequence[str], students: int, width: int, seed: int = 0
) -> Cohort:
    """A cohort of `students` static classifiers: see `build_from_words`."""
    pieces, dropout = (0, 0.0) if text_pair(teacher.config) else (FIRST_PIECES, FIRST_DROPOUT)
    config = partial(StaticConfig, first_pieces=pieces, first_dropout=dropout)
    return build_from_words(StaticForSequenceClassification, config, teacher, labels, students, width, seed)
