"""Convolutional students: K blend CNNs in one model, their word embeddings cut down from the teacher's.

They form the same `Cohort` as students cut from a teacher's layers, so training, views, export and report are the
same. Every parameter is trained, the embeddings included. V words, D width of the teacher's embeddings.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from nanonet.cohort.layers import CohortConv2d, CohortDropout, CohortEmbedding, CohortLinear, Span
from nanonet.cohort.model import Cohort, Lora
from nanonet.errors import InputError
from nanonet.models.cnn import CnnConfig, CnnForSequenceClassification
from nanonet.models.pairs import without_types
from nanonet.models.parts import Parts

LEARNING_RATE = 2e-3
PARTS = Parts(base="", embeddings="embeddings.", layers="layers.")


@torch.no_grad()
def factorise(table: Tensor, width: int) -> Tensor:
    """The table (V,width) whose dot products are nearest to those of `table` (V,D), up to one factor.

        table = U S V^T;  U S of the `width` largest singular values, scaled to a mean square of 1

    No table of that width approximates table @ table.T better (Eckart and Young). The initialisation of the
    convolutions expects this scale.
    """
    x = table.double()
    # the right singular vectors as eigenvectors of a D x D matrix: V is eighty times D
    _, vectors = torch.linalg.eigh(x.T @ x)
    small = x @ vectors[:, -width:].flip(1)
    return (small / small.square().mean().sqrt()).float()


def _word_table(teacher: PreTrainedModel, width: int) -> Tensor:
    """The teacher's word embeddings (V,D).

    Raises:
        InputError: they are narrower than `width`.
    """
    table: Any = teacher.get_input_embeddings()
    D = table.weight.shape[1]
    if width > D:
        raise InputError(f"--embedding-width {width}: the teacher's word embeddings have {D}; give {D} or less")
    words: Tensor = table.weight
    return words


def build_cnn_cohort(
    teacher: PreTrainedModel, labels: Sequence[str], students: int, width: int, seed: int = 0
) -> Cohort:
    """A cohort of `students` CNNs: see `build_from_words`."""
    return build_from_words(CnnForSequenceClassification, CnnConfig, teacher, labels, students, width, seed)


def build_from_words(
    student: type[PreTrainedModel],
    config_class: Callable[..., PreTrainedConfig],
    teacher: PreTrainedModel,
    labels: Sequence[str],
    students: int,
    width: int,
    seed: int,
) -> Cohort:
    """A cohort of `students` models of one class, each initialised by its own seed, with the teacher's word vectors cut
    to `width` as the first columns of their embeddings.

    Raises:
        InputError: the teacher's embeddings are narrower than that.
    """
    words = _word_table(teacher, width)
    names = dict(enumerate(labels))
    config = config_class(
        vocab_size=len(words),
        embedding_size=width,
        pad_token_id=teacher.config.pad_token_id,
        text_pair=without_types(teacher.config),
        id2label=names,
        label2id={label: i for i, label in names.items()},
    )
    table, models = factorise(words, width), []
    for k in range(students):
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed * 1009 + k)
            models.append(student(config))
        own: Any = models[-1].get_input_embeddings()
        own.weight.data[:, :width] = table
    return stack_cnns(models)


def stack_cnns(models: Sequence[PreTrainedModel]) -> Cohort:
    """K plain CNNs, or static students, of one shape as one cohort in training mode; `models` are not changed."""
    span, skeleton = Span(0, len(models)), copy.deepcopy(models[0])
    for name, module in list(skeleton.named_modules()):
        states = [model.get_submodule(name).state_dict() for model in models]
        stacked = {key: torch.stack([state[key] for state in states]) for key in states[0]}
        if isinstance(module, nn.Conv2d):
            padding: Any = module.padding
            skeleton.set_submodule(name, CohortConv2d(span, stacked["weight"], stacked["bias"], padding))
        elif isinstance(module, nn.Linear):
            skeleton.set_submodule(name, CohortLinear(span, stacked["weight"], stacked["bias"]))
        elif isinstance(module, nn.Embedding):
            skeleton.set_submodule(name, CohortEmbedding(span, stacked["weight"]))
        elif isinstance(module, nn.Dropout):
            skeleton.set_submodule(name, CohortDropout(span, module.p if name == "first_dropout" else 0.0))
    return Cohort(skeleton, span, PARTS, "full", Lora(), "classifier").train()
