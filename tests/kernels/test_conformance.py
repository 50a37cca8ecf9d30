"""The Triton kernels under the conformance kit that others use for theirs."""

import pytest
import torch

from nanonet.backends import triton
from nanonet.reference import DEFAULT_BETA, DIVERGENCES
from nanonet.testing import check_distillation, check_loss_ops, check_topk_ops, loss_ops, topk_ops


class Terms(torch.autograd.Function):
    @staticmethod
    def forward(ctx, student, teacher, options):
        terms, stats = triton.implementations()["distill_terms"](student, teacher, None, *options)
        ctx.save_for_backward(student, teacher, stats)
        ctx.options = options
        return terms

    @staticmethod
    def backward(ctx, dterms):
        student, teacher, stats = ctx.saved_tensors
        backward = triton.implementations()["distill_terms_backward"]
        return backward(dterms, student, teacher, None, stats, *ctx.options), None, None


# the interpreter takes half a minute for each
@pytest.mark.parametrize("divergence", DIVERGENCES if torch.cuda.is_available() else ("kl", "js", "tv"))
def test_conforms(divergence, device):
    temperature = 1.0 if divergence == "mse" else 2.0
    options = temperature, DIVERGENCES[divergence], DEFAULT_BETA.get(divergence, 0.0)

    def rows(student, teacher):
        return Terms.apply(torch.stack([teacher, student]), teacher, options)[1, 1]

    check_distillation(rows, divergence=divergence, temperature=temperature, device=device).raise_failures()


# as `nanonet check` judges them on a GPU; a few cases, since the interpreter is slow
@pytest.mark.slow
def test_the_ops_of_the_check_pass(device, monkeypatch):
    names = ("1 x 4", "same classes at -inf", "row weights of each", "no teacher")
    few = [case for case in loss_ops._cases(torch.float32, (), 0, device) if case[0] in names]
    monkeypatch.setattr(loss_ops, "_cases", lambda *_: few)
    ops = {n: op for n, op in triton.implementations().items() if n.startswith("distill") and "topk" not in n}
    report = check_loss_ops(ops, divergence="js", dtypes=(torch.float32,), device=device)
    report.raise_failures()
    assert {check.what for check in report.checks} == ops.keys()


@pytest.mark.slow
def test_the_ops_of_a_topk_teacher_pass(device, monkeypatch):
    cases = topk_ops._cases
    monkeypatch.setattr(
        topk_ops, "_cases", lambda *given: [case for case in cases(*given) if case[0] != "several chunks"]
    )
    if device.type == "cpu":  # the interpreter's rows that are refused are NaN, as a GPU's are
        monkeypatch.setattr(topk_ops, "_refusals", lambda *_: ())
    check_topk_ops(triton.implementations(), divergence="js", dtypes=(torch.float32,), device=device).raise_failures()
