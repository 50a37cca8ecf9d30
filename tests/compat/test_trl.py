"""TRL's generalised JSD: against its formula, and patched into a trainer and out again."""

import pytest
import torch

from nanonet.compat import trl
from nanonet.compat.trl import generalized_jsd_loss
from nanonet.testing import check_distillation


def jsd(student, teacher, labels, beta, temperature, total):
    """beta KL(p, m) + (1 - beta) KL(q, m) by probabilities, over the rows whose label counts, over a total."""
    p, q = (teacher / temperature).softmax(-1), (student / temperature).softmax(-1)
    if beta in (0, 1):
        rows = (p * (p / q).log()).sum(-1) if beta == 0 else (q * (q / p).log()).sum(-1)
    else:
        m = beta * p + (1 - beta) * q
        rows = beta * (p * (p / m).log()).sum(-1) + (1 - beta) * (q * (q / m).log()).sum(-1)
    return (rows if labels is None else rows[labels != -100]).sum() / total


@pytest.mark.parametrize("beta", [0, 0.25, 0.5, 0.9, 1])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("labelled", [True, False])
def test_is_the_formula(beta, temperature, labelled, draw, same):
    student, teacher, labels = draw(3, 5, 11)
    labels = labels if labelled else None
    count = (labels != -100).sum().item() if labelled else 3  # TRL counts sequences where there are no labels
    rows = count if labelled else 15
    totals = {"batchmean": count, "sum": 1, "mean": rows * 11}
    for reduction, total in totals.items():
        same(
            lambda s, t, by=reduction: generalized_jsd_loss(s, t, labels, beta, temperature, by),
            lambda s, t, total=total: jsd(s, t, labels, beta, temperature, total),
            student,
            teacher,
        )


@pytest.mark.parametrize("items", [7, torch.tensor(7)])
def test_num_items_in_batch_goes_before_the_reduction(items, draw, same):
    student, teacher, labels = draw(2, 6, 9)
    for reduction in ("batchmean", "none"):
        same(
            lambda s, t, by=reduction: generalized_jsd_loss(s, t, labels, reduction=by, num_items_in_batch=items),
            lambda s, t: jsd(s, t, labels, 0.5, 1.0, 7),
            student,
            teacher,
        )


def test_the_call_of_the_trainer_on_shifted_slices(draw, same):
    student, teacher, labels = draw(4, 9, 13)
    same(
        lambda s, t: generalized_jsd_loss(student_logits=s[:, :-1], teacher_logits=t[:, :-1], labels=labels[:, 1:]),
        lambda s, t: jsd(s[:, :-1], t[:, :-1], labels[:, 1:], 0.5, 1.0, (labels[:, 1:] != -100).sum()),
        student,
        teacher,
    )


def test_no_row_counts(draw):
    student, teacher, labels = draw(2, 3, 5)
    for reduction in ("batchmean", "sum", "mean"):
        loss = generalized_jsd_loss(student, teacher, torch.full_like(labels, -100), reduction=reduction)
        assert loss == 0 and not torch.autograd.grad(loss, student)[0].any()


@pytest.mark.parametrize("beta", [0.1, 0.5])
def test_conforms(beta):
    def labels(keep):
        return {"labels": torch.where(keep, 1, -100)}

    report = check_distillation(
        lambda s, t, labels=None, temperature=1.0: generalized_jsd_loss(s, t, labels, beta, temperature, "batchmean"),
        divergence="js",
        beta=beta,
        reduction="mean",
        mask=labels,
        arguments={"temperature": 2.0},
    )
    report.raise_failures()
    assert not report.untried


def test_what_is_not_offered_raises(draw):
    student, teacher, _ = draw(2, 3, 5)
    with pytest.raises(ValueError, match="reduction: expected batchmean, sum or mean, got 'none'"):
        generalized_jsd_loss(student, teacher, reduction="none")
    with pytest.raises(ValueError, match="teacher"):
        generalized_jsd_loss(student, student)
    with pytest.raises(NotImplementedError, match="logits_are_probs"):
        generalized_jsd_loss(student, teacher, logits_are_probs=True)
    with pytest.raises(ValueError, match="beta: expected a number from 0 to 1"):
        generalized_jsd_loss(student, teacher, beta=1.5)


class Trainer:
    @staticmethod
    def generalized_jsd_loss(student_logits, teacher_logits):
        return "theirs"

    def compute_loss(self, student, teacher):
        return self.generalized_jsd_loss(student_logits=student, teacher_logits=teacher)


class Derived(Trainer):
    pass


def test_patched_within_a_block_even_if_that_raises(draw):
    student, teacher, _ = draw(2, 3, 5)
    with pytest.raises(KeyError), trl.patched(Trainer):
        assert Trainer().compute_loss(student, teacher) == generalized_jsd_loss(student, teacher)
        raise KeyError
    assert Trainer().compute_loss(student, teacher) == "theirs"
    assert Trainer.generalized_jsd_loss(1, 2) == "theirs"


def test_patch_stays_until_it_is_put_back(draw):
    student, teacher, _ = draw(2, 3, 5)
    before = trl.patch(Derived)
    assert Derived().compute_loss(student, teacher) == generalized_jsd_loss(student, teacher)
    assert Trainer().compute_loss(student, teacher) == "theirs"
    Derived.generalized_jsd_loss = before
    assert Derived().compute_loss(student, teacher) == "theirs"


@pytest.mark.parametrize("add_tail", [True, False])
def test_the_loss_of_the_server_is_the_formula(add_tail, draw, same):
    student, teacher, labels = draw(2, 6, 11)
    top = teacher.double().log_softmax(-1).topk(3)
    values, ids = top.values.clone(), top.indices.clone()
    values[0, 1, 2:], ids[0, 1, 2:] = -torch.inf, 0  # two only
    values[labels == -100], ids[labels == -100] = -torch.inf, 0  # what the server does not return

    counted = labels != -100

    def formula(s, t):
        known = values[counted]
        log_q = s[counted].log_softmax(-1).gather(-1, ids[counted])
        p, q = known.exp(), torch.where(known > -torch.inf, log_q.exp(), 0)
        if add_tail:
            p, q = (torch.cat([x, 1 - x.sum(-1, keepdim=True)], -1) for x in (p, q))
        else:
            p, q = (x / x.sum(-1, keepdim=True) for x in (p, q))
        some = p > 0
        return (p[some] * (p[some] / q[some]).log()).sum() / counted.sum()

    result = {"topk_logprobs": values.float(), "topk_token_ids": ids}
    same(
        lambda s, t: trl.server_forward_kl_loss(result, s.log_softmax(-1), labels, add_tail), formula, student, teacher
    )


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_the_chunked_divergence_is_the_formula(beta):
    g = torch.Generator().manual_seed(0)
    hidden, weight, bias, t, tw = (
        torch.randn(*shape, generator=g, dtype=torch.float64) for shape in ((7, 5), (13, 5), (13,), (7, 4), (13, 4))
    )
    mask = torch.arange(7) % 3 > 0
    given = [x.clone().requires_grad_() for x in (hidden, weight, bias)]
    options = (beta, 2.0, 0.5, 3.0, 2.0, None)
    loss, entropy = trl.chunked_divergence(*given, t, tw, None, *options, row_weight=mask)
    wide = [x.clone().requires_grad_() for x in (hidden, weight, bias)]
    student = 3 * torch.tanh((wide[0] @ wide[1].T + wide[2]) * 0.5 / 3)
    labels = torch.where(mask, 0, -100)
    expected = jsd(student, 2 * (t @ tw.T), labels, beta, 2.0, 1)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(torch.autograd.grad(loss, given), torch.autograd.grad(expected, wide))
    q = (student / 2).softmax(-1)
    torch.testing.assert_close(entropy, -(q * q.log()).sum(-1)[mask].mean())


def mixed(p, q, beta):
    """The generalised JSD of rows of probabilities, 0 log 0 = 0."""
    m = beta * p + (1 - beta) * q
    of = lambda a, b: torch.where(a > 0, a * (a.clamp_min(1e-30) / b.clamp_min(1e-30)).log(), 0 * a).sum(-1)  # noqa: E731
    return of(p, q) if beta == 0 else of(q, p) if beta == 1 else beta * of(p, m) + (1 - beta) * of(q, m)


def over(x, tail):
    return torch.cat([x, 1 - x.sum(-1, keepdim=True)], -1) if tail else x / x.sum(-1, keepdim=True)


@pytest.mark.parametrize("add_tail", [True, False])
@pytest.mark.parametrize("beta", [0.3, 1.0])
def test_the_top_1_loss_of_the_server_is_the_formula(beta, add_tail, draw, same):
    student, teacher, labels = draw(2, 6, 11)
    log_p = teacher.double().log_softmax(-1)
    tokens = torch.randint(0, 11, (2, 6), generator=torch.Generator().manual_seed(2))
    top = log_p.topk(1)
    tokens[0, 1] = top.indices[0, 1, 0]
    counted = labels != -100
    actual = log_p.gather(-1, tokens[..., None])[..., 0]
    result = {"topk_logprobs": top.values.float(), "topk_token_ids": top.indices}
    result["actual_logprobs"] = torch.where(counted, actual, -torch.inf).float()

    def formula(s, t):
        ids = tokens[..., None] if beta == 1 else torch.cat([top.indices, tokens[..., None]], -1)
        once = torch.ones_like(ids, dtype=torch.bool)
        once[..., 1:] = ids[..., 1:] != ids[..., :1]
        p, q = (over(x.softmax(-1).gather(-1, ids) * once, add_tail) for x in (t, s))
        return mixed(p, q, beta)[counted].mean()

    same(
        lambda s, t: trl.server_top_1_loss(result, s.log_softmax(-1), tokens, labels, beta, add_tail),
        formula,
        student,
        teacher,
    )
    result["actual_logprobs"][counted] = -torch.inf
    with pytest.raises(ValueError, match=f"missing at {int(counted.sum()) - int(beta < 1 and counted[0, 1])} counted"):
        trl.server_top_1_loss(result, student, tokens, labels, beta, add_tail)


@pytest.mark.parametrize("add_tail", [True, False])
@pytest.mark.parametrize("beta", [0.0, 0.4, 1.0])
def test_the_chunked_sparse_divergence_is_the_formula(beta, add_tail):
    g = torch.Generator().manual_seed(0)
    hidden, weight, bias, t = (torch.randn(*n, generator=g).double() for n in ((7, 5), (13, 5), (13,), (7, 13)))
    top = t.log_softmax(-1).topk(4)
    mask = torch.ones(7, 4, dtype=torch.bool)
    mask[2, 2:] = False
    given, wide = ([x.clone().requires_grad_() for x in (hidden, weight, bias)] for _ in range(2))
    loss, entropy = trl.chunked_sparse_divergence(
        *given, top.indices, top.values, mask, beta, 2.0, 0.5, 3.0, add_tail_bucket=add_tail
    )
    probabilities = (3 * torch.tanh((wide[0] @ wide[1].T + wide[2]) * 0.5 / 3) / 2).softmax(-1)
    q = over(probabilities.gather(-1, top.indices) * mask, add_tail)
    expected = mixed(over(top.values.exp() * mask, add_tail), q, beta).sum()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(torch.autograd.grad(loss, given), torch.autograd.grad(expected, wide))
    torch.testing.assert_close(entropy, -(probabilities * probabilities.log()).sum(-1).mean())
