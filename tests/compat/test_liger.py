"""Liger-Kernel's losses of probabilities: values, gradients of what the probabilities were taken of, and refusals."""

import pytest
import torch

from nanonet.compat.liger import (
    LigerFusedLinearCosineSimilarityLoss,
    LigerFusedLinearJSD,
    LigerFusedLinearJSDLoss,
    LigerFusedLinearKLDivLoss,
    LigerJSD,
    LigerKLDIVLoss,
    LigerTVDLoss,
)

REDUCTIONS = {
    "batchmean": lambda rows, V: rows.mean(),
    "sum": lambda rows, V: rows.sum(),
    "mean": lambda rows, V: rows.mean() / V,
}


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("log_target", [True, False])
def test_kl_is_the_formula(reduction, log_target, draw, same):
    student, teacher, _ = draw(6, 11)
    loss = LigerKLDIVLoss(reduction=reduction, log_target=log_target)

    def formula(s, t):
        p, q = t.softmax(-1), s.softmax(-1)
        return REDUCTIONS[reduction]((p * (p / q).log()).sum(-1), 11)

    def ours(s, t):
        return loss(s.log_softmax(-1), t.log_softmax(-1) if log_target else t.softmax(-1))

    same(ours, formula, student, teacher)


def test_the_default_reduction_is_torchs(draw):
    student, teacher, _ = draw(6, 11)
    with pytest.warns(UserWarning, match="batchmean"):
        expected = torch.nn.KLDivLoss()(student.log_softmax(-1), teacher.softmax(-1))
    torch.testing.assert_close(LigerKLDIVLoss()(student.log_softmax(-1), teacher.softmax(-1)), expected)


@pytest.mark.parametrize("beta", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("ignored", [None, -100, 2])
def test_jsd_is_the_formula(beta, ignored, draw, same):
    student, teacher, labels = draw(8, 11)
    labels[1] = 2
    counted = torch.ones(8).bool() if ignored is None else labels != ignored

    def formula(s, t):
        p, q = t.softmax(-1), s.softmax(-1)
        m = beta * p + (1 - beta) * q
        kl = [(x * (x / y).log()).sum(-1) for x, y in ((p, m), (q, m), (p, q), (q, p))]
        rows = kl[2] if beta == 0 else kl[3] if beta == 1 else beta * kl[0] + (1 - beta) * kl[1]
        return rows[counted].mean()

    loss = LigerJSD(beta) if ignored is None else LigerJSD(beta, ignored)
    given = None if ignored is None else labels
    same(lambda s, t: loss(s.log_softmax(-1), t.log_softmax(-1), given), formula, student, teacher)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("labelled", [True, False])
def test_tvd_is_the_formula(reduction, labelled, draw, same):
    student, teacher, labels = draw(6, 11)
    counted = labels != -100 if labelled else torch.ones(6).bool()

    def formula(s, t):
        return REDUCTIONS[reduction](((s.softmax(-1) - t.softmax(-1)).abs().sum(-1) / 2)[counted], 11)

    loss = LigerTVDLoss(reduction)
    same(lambda s, t: loss(s.softmax(-1), t.softmax(-1), labels if labelled else None), formula, student, teacher)


def test_probabilities_that_underflow(draw):
    student, teacher, _ = draw(4, 9)
    loss = LigerTVDLoss()((student * 200).softmax(-1), (teacher * 200).softmax(-1))
    assert loss.isfinite() and torch.autograd.grad(loss, student)[0].isfinite().all()
    loss = LigerKLDIVLoss(reduction="sum")(student.log_softmax(-1), (teacher * 200).softmax(-1))
    assert loss.isfinite()


def test_half_precision_and_moved_rows(draw):
    student, teacher, labels = draw(2, 3, 40, dtype=torch.bfloat16)
    log_q, log_p = student.log_softmax(-1), teacher.log_softmax(-1)
    value = LigerJSD()(log_q[:, 1:].reshape(-1, 40), log_p[:, 1:].reshape(-1, 40), labels[:, 1:].reshape(-1))
    assert value.dtype == torch.bfloat16
    p, q = log_p[:, 1:].double().exp(), log_q[:, 1:].double().exp()
    m = (p + q) / 2
    rows = ((p * (p / m).log()).sum(-1) + (q * (q / m).log()).sum(-1)) / 2
    torch.testing.assert_close(value.double(), rows[labels[:, 1:] != -100].mean(), rtol=2e-2, atol=1e-3)
    gradient = torch.autograd.grad(value, student)[0]
    assert not gradient[:, 0].any() and gradient[:, 1:].any()


def test_an_ignored_row_may_hold_anything(draw):
    student, teacher, labels = draw(6, 5)
    log_p = teacher.log_softmax(-1)
    expected = LigerJSD()(student.log_softmax(-1), log_p, labels)
    log_p[0] = torch.nan
    assert LigerJSD()(student.log_softmax(-1), log_p, labels) == expected


def test_values_without_a_gradient_need_no_log_softmax(draw):
    student, teacher, _ = draw(6, 5)
    q = student.detach().log_softmax(-1)
    assert LigerJSD()(q.clone(), teacher.log_softmax(-1)) > 0


def leaf(x):
    return x.detach().clone().requires_grad_()


REFUSED = [
    ("reduction", lambda s, t: LigerKLDIVLoss(reduction="none")(s.log_softmax(-1), t.softmax(-1))),
    ("reduction", lambda s, t: LigerTVDLoss("none")(s.softmax(-1), t.softmax(-1))),
    ("eps", lambda s, t: LigerKLDIVLoss(1e-3)),
    (r"y_pred: .*log_softmax\(logits, -1\)", lambda s, t: LigerKLDIVLoss()(leaf(s.log_softmax(-1)), t.softmax(-1))),
    (r"log_q: .*log_softmax", lambda s, t: LigerJSD()(leaf(s.log_softmax(-1)) * 1, t.log_softmax(-1))),
    (r"p: .*; pass softmax", lambda s, t: LigerTVDLoss()(leaf(s.softmax(-1)), t.softmax(-1))),
    (r"y_pred\[0\]: expected log-probabilities", lambda s, t: LigerKLDIVLoss()(s.detach(), t.softmax(-1))),
    (r"y_true\[0\]: expected probabilities", lambda s, t: LigerKLDIVLoss()(s.log_softmax(-1), t)),
    (r"log_p\[0\]: expected log-prob", lambda s, t: LigerJSD()(s.log_softmax(-1), t.softmax(-1))),
    (r"q\[0\]: expected probabilities, their sum is 2", lambda s, t: LigerTVDLoss()(s.softmax(-1), 2 * t.softmax(-1))),
    (r"log_q\[0\]: expected log-prob", lambda s, t: LigerJSD()(s.log_softmax(-1)[:, :4], t[:, :4].log_softmax(-1))),
    (r"log_q\[0\]: expected log", lambda s, t: LigerJSD()(s.T.log_softmax(-1).T, t.log_softmax(-1))),
    ("teacher", lambda s, t: LigerJSD()(s.log_softmax(-1), s.log_softmax(-1))),
]


@pytest.mark.parametrize("message,call", REFUSED, ids=[message for message, _ in REFUSED])
def test_what_is_not_offered_raises(message, call, draw):
    student, teacher, _ = draw(6, 6)
    with pytest.raises(ValueError, match=message):
        call(student, teacher)


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_the_fused_linear_losses_are_the_formula(beta):
    g = torch.Generator().manual_seed(0)
    x, w, b, t, tw = (
        torch.randn(*shape, generator=g, dtype=torch.float64) for shape in ((7, 5), (13, 5), (13,), (7, 4), (13, 4))
    )
    labels = torch.randint(0, 13, (7,), generator=g)
    labels[::3] = -1
    counted = labels != -1

    def formula(x, w, b, weights):
        logits, tau = x @ w.T + b, 2.0
        p, q = (t @ tw.T / tau).softmax(-1), (logits / tau).softmax(-1)
        m = beta * p + (1 - beta) * q
        kl = [(one * (one / other).log()).sum(-1) for one, other in ((p, m), (q, m), (p, q), (q, p))]
        jsd = kl[2] if beta == 0 else kl[3] if beta == 1 else beta * kl[0] + (1 - beta) * kl[1]
        hard = torch.nn.functional.cross_entropy(logits, labels, ignore_index=-1)
        soft = jsd[counted].mean()
        return weights[0] * hard + weights[1] * soft, soft, hard

    leaves = [y.clone().requires_grad_() for y in (x, w, b)]
    fused = LigerFusedLinearJSDLoss(0.25, 0.75, beta, -1, 2.0, return_soft_hard_loss=True)
    got = fused(leaves[0], leaves[1], t, tw, labels, leaves[2])
    wide = [y.clone().requires_grad_() for y in (x, w, b)]
    expected = formula(*wide, (0.25, 0.75))
    torch.testing.assert_close(got, tuple(e.detach() if i else e for i, e in enumerate(expected)))
    torch.testing.assert_close(torch.autograd.grad(got[0], leaves), torch.autograd.grad(expected[0], wide))
    alone = LigerFusedLinearJSD(beta, -1, 2.0)(x, w, t, tw, labels)
    torch.testing.assert_close(alone, formula(x, w, 0 * b, (0.0, 1.0))[0])


@pytest.mark.parametrize("reduction", ["batchmean", "sum", "mean"])
def test_the_fused_linear_kl_is_the_formula(reduction):
    g = torch.Generator().manual_seed(0)
    x, w, t = (torch.randn(*shape, generator=g, dtype=torch.float64) for shape in ((7, 5), (13, 5), (7, 13)))
    target, labels = t.softmax(-1), torch.arange(7) % 3 - 1
    counted = labels != -1
    given, wide = ([y.clone().requires_grad_() for y in (x, w)] for _ in range(2))
    loss = LigerFusedLinearKLDivLoss(reduction, -1, 2.0)(*given, target, labels)
    q = (wide[0] @ wide[1].T / 2).softmax(-1)
    rows = (target * (target / q).log()).sum(-1)[counted]
    expected = {"batchmean": rows.mean(), "sum": rows.sum(), "mean": rows.mean() / 13}[reduction]
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(torch.autograd.grad(loss, given), torch.autograd.grad(expected, wide))
    with pytest.raises(ValueError, match=r"target\[0\]: expected probabilities"):
        LigerFusedLinearKLDivLoss()(x, w, 2 * target)
    with pytest.raises(NotImplementedError, match="take LigerFusedLinearJSDLoss"):
        LigerFusedLinearCosineSimilarityLoss(beta=0.5)
