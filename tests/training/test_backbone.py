"""Cached backbone features: the same logits and gradients as with every layer run again."""

from __future__ import annotations

import itertools

import pytest
import torch
from support.grids import sample
from torch import nn

from nanonet.cohort.stack import stack
from nanonet.data.batches import Encoded, collate
from nanonet.training.backbone import compute_backbone_features, find_head_input

PAD = 1
FIRST = {  # what a head begins with, in each architecture
    "bert": "bert.pooler.dense",
    "roberta": "classifier.dense",
    "modernbert": "head.dense",
    "distilbert": "pre_classifier",
    "electra": "classifier.dense",
    "mpnet": "classifier.dense",
}


@pytest.fixture
def texts(batch) -> Encoded:
    ids, mask = batch
    lengths = mask.sum(1)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    return Encoded(ids[mask == 1].int(), offsets)


@pytest.mark.parametrize(
    "kind,checkpointing,chunk", sample(itertools.product(FIRST, [False, True], [1, 2, 3]), one_in=5)
)
def test_no_logits_and_no_gradients_change(
    kind, checkpointing, chunk, make_teacher, texts, models_of, gradients_of
) -> None:
    cohort = stack(models_of(make_teacher(kind), "head"), "head").train()
    cohort.checkpointing, cohort.group_rows, cohort.group_above = checkpointing, 2, 0
    rows = [4, 0, 5]
    ids, mask = collate(texts, rows, PAD)
    plain = cohort(ids, mask, chunk).logits
    wanted = gradients_of(cohort, plain)
    backbone = compute_backbone_features(cohort, texts, PAD, torch.device("cpu"))
    assert backbone is not None and backbone.head.endswith(FIRST[kind]) and backbone.features.shape == (3, 6, 32)
    tokens = []
    cohort.embeddings().register_forward_hook(lambda module, given, output: tokens.append(output.shape[1]))
    logits = cohort.train()(ids, mask, chunk, head_input=backbone[rows]).logits
    torch.testing.assert_close(logits, plain, rtol=2e-6, atol=2e-6)
    gradients = gradients_of(cohort, logits)
    assert gradients.keys() == wanted.keys() and set(tokens) == {1}
    for name, gradient in gradients.items():
        scale = max(1.0, float(wanted[name].abs().max()))
        torch.testing.assert_close(gradient, wanted[name], rtol=0, atol=2e-6 * scale, msg=name)


def test_features_after_a_cached_backbone_are_those_of_the_full_model(make_teacher, texts, models_of) -> None:
    cohort = stack(models_of(make_teacher("bert"), "head"), "head").eval()
    backbone = compute_backbone_features(cohort, texts, PAD, torch.device("cpu"))
    rows = list(range(6))
    ids, mask = collate(texts, rows, PAD)
    full = cohort(ids, mask, features=cohort.classifier)
    cached = cohort(ids, mask, features=cohort.classifier, head_input=backbone[rows])
    for value, expected in zip(cached, full, strict=True):
        torch.testing.assert_close(value, expected, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("tuning", ["bias", "lora", "full"])
def test_a_head_input_that_still_changes_is_not_cached(tuning, make_teacher, models_of) -> None:
    assert find_head_input(stack(models_of(make_teacher("bert"), tuning), tuning)) is None


class Every(nn.Module):
    """A pooler whose layer reads every token."""

    def __init__(self, dense: nn.Module) -> None:
        super().__init__()
        self.dense = dense

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.dense(hidden).tanh().mean(1)


class Twice(Every):
    """A pooler that reads the backbone beside its layer, too."""

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.dense(hidden[:, 0]).tanh() + hidden.mean(1)


@pytest.mark.parametrize("pooler", [Every, Twice])
def test_a_head_that_reads_more_than_one_vector_is_not_cached(pooler, make_teacher, models_of) -> None:
    cohort = stack(models_of(make_teacher("bert"), "head"), "head")
    assert find_head_input(cohort) == "bert.pooler.dense" and cohort.training
    cohort.model.bert.pooler = pooler(cohort.model.bert.pooler.dense)
    assert find_head_input(cohort) is None and cohort.training
