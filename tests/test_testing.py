"""The conformance kit: our ops pass it, losses as others write them are found out, and so is every kind of mutant."""

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from nanonet import distill_loss, distill_terms, reference
from nanonet.reference import DEFAULT_BETA, DIVERGENCES
from nanonet.testing import Check, Report, check_distillation

ALL = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
# each divergence, and those with a beta at its ends too
CASES = [(name, None) for name in DIVERGENCES] + [(name, beta) for name in DEFAULT_BETA for beta in (0.01, 0.9)]


@pytest.mark.parametrize("divergence,beta", CASES)
@pytest.mark.parametrize("tau_squared", [True, False])
def test_our_terms_pass_and_so_does_the_reference(divergence, beta, tau_squared):
    temperature = 1.0 if divergence == "mse" else 2.0
    options = dict(divergence=divergence, beta=beta, temperature=temperature)
    scale = 1 if tau_squared else temperature**-2

    def ours(student, teacher):
        return scale * distill_terms(torch.stack([teacher, student]), teacher, **options)[1, 1]

    def definition(student, teacher):
        number = DEFAULT_BETA.get(divergence, 0.0) if beta is None else beta
        rows = reference.divergence_from(teacher, student, temperature, DIVERGENCES[divergence], number)
        return scale * rows

    report = check_distillation(ours, tau_squared=tau_squared, dtypes=ALL, **options)
    report.raise_failures()
    assert len(report.checks) > 100 and not report.untried
    # autograd through the definition, where nothing is infinite
    found = check_distillation(definition, tau_squared=tau_squared, dtypes=ALL[:2], **options)
    assert [check for check in found.failures if "inf" not in check.case] == []


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_our_loss_passes_with_masks(divergence, reduction):
    def ours(student, teacher, keep=None, temperature=1.0):
        keep = None if keep is None else keep.to(torch.float32)
        total = None if reduction == "mean" else (1.0, 1.0)
        options = dict(row_weight=keep, denominators=total, divergence=divergence, temperature=temperature)
        return distill_loss(student[None], teacher, weights=(0.0, 1.0, 0.0), **options)[0]

    options = dict(reduction=reduction, mask=lambda keep: {"keep": keep})
    arguments = {} if divergence == "mse" else {"temperature": 3.0}
    report = check_distillation(ours, divergence=divergence, arguments=arguments, **options)
    report.raise_failures()
    assert {"half masked", "masked rows of NaN", "all masked"} <= {check.case for check in report.checks}
    assert report.untried == (("temperature",) if divergence == "mse" else ())


def naive_jsd(student, teacher, keep=None, beta=0.5):
    """The generalised JSD as TRL takes it: every step in the logits' dtype, a kl_div against a log-mixture."""
    log_q, log_p = student.log_softmax(-1), teacher.log_softmax(-1)
    b = torch.tensor(beta, dtype=log_q.dtype)
    log_m = torch.logsumexp(torch.stack([log_p + b.log(), log_q + torch.log1p(-b)]), 0)
    kl = [F.kl_div(log_m, x, reduction="none", log_target=True) for x in (log_p, log_q)]
    each = b * kl[0] + (1 - b) * kl[1]
    return (each if keep is None else each[keep]).sum()


def test_the_jsd_as_trl_takes_it_is_found_out_in_bfloat16():
    report = check_distillation(naive_jsd, divergence="js", reduction="sum", mask=lambda keep: {"keep": keep})
    errors = {(check.case, check.dtype, check.what): check for check in report.checks}
    for case in ("8 x 1000", "5 x 33", "half masked"):
        check = errors[case, "bfloat16", "gradient"]
        assert not check.passed and 1e-2 < check.error < 1e-1, check
        assert errors[case, "float32", "gradient"].passed
    # 0 * -inf, and a masked row whose zero gradient is multiplied by its NaN
    for case in ("same classes at -inf", "masked rows of NaN"):
        assert errors[case, "float32", "gradient"].error == torch.inf
    assert report.untried == ("beta",)
    report = check_distillation(naive_jsd, divergence="js", beta=0.5, reduction="sum", arguments={"beta": 0.3})
    assert next(check for check in report.checks if check.case == "argument beta").passed
    assert report.untried == ("keep",)


def test_the_cross_entropy_as_torchtune_takes_it():
    def forward_kl(student, teacher, labels=None):
        """float32 copies, and a mask that multiplies."""
        q, p = student.log_softmax(-1, dtype=torch.float32), teacher.softmax(-1, dtype=torch.float32)
        rows = (p * q).masked_fill(student.isinf(), 0).sum(-1)
        mask = torch.ones_like(rows) if labels is None else (labels != -100).float()
        return -(rows * mask).sum() / mask.sum().clamp_min(1)

    def labels(keep):
        return {"labels": torch.where(keep, 1, -100)}

    report = check_distillation(forward_kl, divergence="cross_entropy", reduction="mean", mask=labels)
    assert {check.case for check in report.failures} == {"masked rows of NaN"}


def row_kl(student, teacher):
    return distill_terms(student[None], teacher)[1, 0]


class Writes(torch.autograd.Function):
    """Doubles its gradient at each backward of the same graph."""

    @staticmethod
    def forward(ctx, x):
        ctx.calls = 0
        return x.clone()

    @staticmethod
    def backward(ctx, dx):
        ctx.calls += 1
        return dx * ctx.calls


def written_over(student, teacher):
    value = row_kl(student, teacher)
    teacher.data.add_(1)
    return value


def half_precision_gradient(student, teacher):
    return row_kl(student.bfloat16().float(), teacher)


# what is wrong with it, the loss, what the report says
MUTANTS = [
    ("another divergence", lambda s, t: distill_terms(s[None], t, divergence="js")[1, 0], "5 x 33 .* value"),
    ("no tau^2", lambda s, t: distill_terms(s[None], t, temperature=2.0)[1, 0] / 4, "5 x 33 .* gradient"),
    ("a wrong slope", lambda s, t: row_kl(s, t) + 1e-3 * (s - s.detach()).sum(-1), "8 x 1000 .* gradient"),
    ("a rounded gradient", half_precision_gradient, "student near teacher .* gradient"),
    ("a wrong shape", lambda s, t: row_kl(s, t)[:, None], r"1 x 4 .* shape \(1, 1\), expected \(1,\)"),
    (
        "a second backward",
        lambda s, t: row_kl(Writes.apply(s), t),
        "backward twice .* another gradient from the same graph",
    ),
    ("an input written over", written_over, "an input was written over"),
    ("chance", lambda s, t: row_kl(s, t) * (1 + 1e-3 * torch.rand(())), "called twice .* the second call differs"),
    ("an error of its own", lambda s, t: row_kl(s, t[:, :-1]), "1 x 4 .* call .* ValueError: teacher"),
    ("layout", lambda s, t: row_kl(s.as_strided(s.shape, t.stride()), t), "turned .* call|turned .* value"),
    ("upstream ignored", lambda s, t: row_kl(Constant.apply(s), t), "5 x 33 .* gradient"),
]


class Constant(torch.autograd.Function):
    """Gives rows whose upstream is 0 a gradient."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, dx):
        return torch.where(dx == 0, 1e-2, dx)


@pytest.mark.parametrize("what,fn,says", MUTANTS, ids=[mutant[0] for mutant in MUTANTS])
def test_a_mutant_is_found_and_named(what, fn, says):
    temperature = 2.0 if "tau" in what else 1.0
    report = check_distillation(fn, divergence="kl", temperature=temperature, dtypes=(torch.float32,))
    with pytest.raises(AssertionError, match=says):
        report.raise_failures()


def test_masks_and_arguments_that_change_nothing():
    def ignores(student, teacher, keep=None, temperature=1.0, *, bias=0.0):
        return row_kl(student, teacher).sum()

    options = dict(divergence="kl", reduction="sum", dtypes=(torch.float32,))
    report = check_distillation(ignores, mask=lambda keep: {"keep": keep}, arguments={"temperature": 2.0}, **options)
    assert report.untried == ("bias",) and "not tried: bias" in str(report)
    failed = {check.case: check for check in report.failures}
    assert failed.keys() == {"half masked", "masked rows of NaN", "all masked", "argument temperature"}
    assert failed["argument temperature"].note == "it changes nothing"


def test_a_report_is_a_table():
    checks = Check("5 x 33", "float32", "value", 1e-7, 2e-6), Check("both", "float32", "gradient", torch.nan, 1.0)
    report = Report(checks, ("beta",))
    lines = str(report).splitlines()
    assert lines[0].split() == ["case", "dtype", "what", "error", "bar"]
    assert lines[1].split()[-1] == "ok" and "FAILED" in lines[2] and lines[3].startswith("1 of 2 failed")
    assert report.failures == checks[1:]
    Report(checks[:1], ()).raise_failures()


BAD = [
    (dict(divergence="hellinger"), "divergence: expected one of kl"),
    (dict(divergence="kl", beta=0.5), "beta: kl has none"),
    (dict(divergence="js", beta=1.0), "beta: expected 0 < beta < 1"),
    (dict(divergence="kl", reduction="max"), "reduction: expected none, sum or mean"),
]


@pytest.mark.parametrize("options,message", BAD)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        check_distillation(row_kl, **options)


def test_neither_the_kit_nor_compat_is_loaded_unasked():
    late = ("nanonet.testing", "nanonet.compat", "transformers")
    code = f"import sys, nanonet; print([name for name in sys.modules if name in {late}])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
