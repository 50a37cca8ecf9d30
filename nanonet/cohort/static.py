"""Static students: K weighted means of word vectors with a dense head in one model, trained as CNN students are."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from nanonet.cohort.cnn import factorise, stack_cnns, word_table
from nanonet.cohort.model import Cohort
from nanonet.models.static import StaticConfig, StaticForSequenceClassification

LEARNING_RATE = 5e-3


@torch.no_grad()
def build_static_cohort(
    teacher: PreTrainedModel, labels: Sequence[str], students: int, width: int, seed: int = 0
) -> Cohort:
    """A cohort of `students` static classifiers, each head by its own seed, with the teacher's word vectors cut to
    `width`.

    Raises:
        InputError: the teacher's embeddings are narrower than that.
    """
    words = word_table(teacher, width)
    names = dict(enumerate(labels))
    config = StaticConfig(
        vocab_size=len(words),
        embedding_size=width,
        pad_token_id=teacher.config.pad_token_id,
        id2label=names,
        label2id={label: i for i, label in names.items()},
    )
    table, models = factorise(words, width), []
    for k in range(students):
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed * 1009 + k)
            models.append(StaticForSequenceClassification(config))
        models[-1].embeddings.weight[:, :-1] = table
    return stack_cnns(models)
