"""Relations: the features they compare are what the head sees, and training on them brings students nearer."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.functional import cosine_similarity

from nanonet.cohort.build import plain_student
from nanonet.cohort.cnn import stack_cnns
from nanonet.cohort.stack import stack
from nanonet.losses import relation_loss
from nanonet.models.cnn import CnnConfig, CnnForSequenceClassification


def test_the_loss_is_the_mean_over_pairs():
    torch.manual_seed(0)
    features, embedding = torch.randn(3, 7, 5), torch.randn(7, 11)
    wanted = []
    for student in features.double():
        pairs = [(i, j) for i in range(7) for j in range(7) if i != j]
        left, right = map(list, zip(*pairs, strict=True))
        own = cosine_similarity(student[left], student[right])
        teacher = cosine_similarity(embedding.double()[left], embedding.double()[right])
        wanted.append((own - teacher).square().mean())
    torch.testing.assert_close(relation_loss(features, embedding).double(), torch.stack(wanted), rtol=1e-5, atol=0)
    # a student as another basis, another length or another width of the teacher has lost nothing
    turned = 3 * embedding @ torch.linalg.qr(torch.randn(11, 11))[0]
    wider = torch.cat([embedding, torch.zeros(7, 4)], -1)
    assert relation_loss(turned[None], embedding) < 1e-10 and relation_loss(wider[None], embedding) < 1e-10
    assert relation_loss(features[:, :1], embedding[:1]).max() < 1e-10  # one row: nothing to compare


def test_descent_on_the_loss_finds_the_teachers_relations():
    torch.manual_seed(0)
    embedding, features = torch.randn(12, 6), torch.randn(2, 12, 9, requires_grad=True)
    optimizer, first = torch.optim.Adam([features], 0.05), relation_loss(features, embedding)
    for _ in range(300):
        optimizer.zero_grad()
        relation_loss(features, embedding).sum().backward()
        optimizer.step()
    assert (relation_loss(features, embedding) < first / 100).all()


def seen_by_head(model: nn.Module, head: nn.Module, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    seen: list[torch.Tensor] = []
    hook = head.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    model(input_ids=ids, attention_mask=mask)
    hook.remove()
    return seen[0]


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("kind", ["bert", "roberta", "modernbert", "cnn"])
def test_features_are_what_the_plain_models_head_sees(kind, checkpointing, make_teacher, batch):
    ids, mask = batch
    if kind == "cnn":
        models = [CnnForSequenceClassification(CnnConfig(vocab_size=int(ids.max()) + 1)) for _ in range(2)]
        cohort = stack_cnns(models)
    else:
        models = [plain_student(make_teacher(kind), layers, ["a", "b", "c"], "full", 1) for layers in ([0, 5], [0, 4])]
        cohort = stack(models, "full")
    cohort.train()
    cohort.checkpointing, cohort.group_rows, cohort.group_above = checkpointing, 4, 0
    for model in models:
        model.eval()
    cohort.set_dropout([0.0, 0.0])
    logits, features = cohort(ids, mask, features=cohort.classifier)
    plain = cohort(ids, mask)
    assert plain.features is None
    torch.testing.assert_close(logits, plain.logits, rtol=1e-6, atol=1e-6)
    for k, model in enumerate(models):
        head = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
        torch.testing.assert_close(features[k], seen_by_head(model, head, ids, mask), rtol=1e-5, atol=1e-5)
    features.square().sum().backward()  # the gradient reaches the layers
    assert all(p.grad is not None for name, p in cohort.named_parameters() if p.requires_grad and "layers" in name)
