"""Static students: K weighted means of word vectors with a dense head in one model, trained as CNN students are."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedModel

from nanonet.cohort.cnn import build_from_words
from nanonet.cohort.model import Cohort
from nanonet.models.static import StaticConfig, StaticForSequenceClassification

LEARNING_RATE = 5e-3


def build_static_cohort(
    teacher: PreTrainedModel, labels: Sequence[str], students: int, width: int, seed: int = 0
) -> Cohort:
    """A cohort of `students` static classifiers: see `build_from_words`."""
    return build_from_words(StaticForSequenceClassification, StaticConfig, teacher, labels, students, width, seed)
