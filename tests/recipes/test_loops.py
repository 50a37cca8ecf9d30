"""Recipes: a plain PyTorch loop, and K students that are separate models."""

import pytest
import torch
import torch.nn.functional as F
from support.causal import collate, make_model, make_rows

from nanonet import distill_loss


def shifted(batch):
    """Inputs, and the labels that the logits [:, :-1] predict."""
    labels = batch.pop("labels")[:, 1:]
    return batch, labels


def test_a_plain_loop():
    student, teacher = make_model(0), make_model(1)
    batch, labels = shifted(collate(make_rows(6)))
    optimizer, losses = torch.optim.AdamW(student.parameters(), lr=1e-2), []
    counted = labels != -100
    for step in range(20):
        with torch.no_grad():
            p = teacher(**batch).logits[:, :-1]
        q = student(**batch).logits[:, :-1]
        loss, means = distill_loss(
            q,
            p,
            labels,
            weights=(0.5, 0.5, 0.0),
            row_weight=counted,
            temperature=2.0,
        )
        if step == 0:
            soft = [(x.detach()[counted] / 2).log_softmax(-1) for x in (q, p)]
            kl = 4 * F.kl_div(*soft, reduction="batchmean", log_target=True)
            ce = F.cross_entropy(q.flatten(0, 1), labels.flatten())
            assert loss.item() == pytest.approx(((ce + kl) / 2).item(), rel=1e-5)
            assert means[:2, 0].tolist() == pytest.approx([ce.item(), kl.item()], rel=1e-5)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


def pair_by_pair(logits, p, labels):
    """Each student's own loss: labels, teacher, and the mean of the others, all held constant."""
    total, rows = 0.0, labels != -100
    log_q, log_p = [x[rows].log_softmax(-1) for x in logits], p[rows].log_softmax(-1)
    for own in log_q:
        peers = [F.kl_div(own, x.detach(), reduction="batchmean", log_target=True) for x in log_q if x is not own]
        total = total + F.nll_loss(own, labels[rows]) + F.kl_div(own, log_p, reduction="batchmean", log_target=True)
        total = total + 0.5 * sum(peers) / len(peers)
    return total


def test_students_that_are_separate_models():
    students, teacher = [make_model(k, width=16 + 8 * k) for k in range(3)], make_model(3)
    batch, labels = shifted(collate(make_rows(6)))
    p = teacher(**batch).logits[:, :-1].detach()
    q = [student(**batch).logits[:, :-1] for student in students]
    parameters = [parameter for student in students for parameter in student.parameters()]
    loss, means = distill_loss(
        q,  # a list: each gets its own gradient, nothing is stacked
        p,
        labels,
        weights=(1.0, 1.0, 0.5),
        row_weight=labels != -100,
    )
    expected = pair_by_pair(q, p, labels)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5) and means.shape == (3, 3)
    found = torch.autograd.grad(loss, parameters, retain_graph=True)
    torch.testing.assert_close(found, torch.autograd.grad(expected, parameters), rtol=1e-4, atol=1e-5)
