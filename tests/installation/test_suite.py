"""What is judged: every op passes here, and mutants of each kind do not."""

from __future__ import annotations

import json
import math

import pytest
import torch

from nanonet import cohort_linear, distill_linear_loss
from nanonet.installation import suite
from nanonet.reference import DIVERGENCES
from nanonet.schemas import SCHEMAS
from nanonet.testing import Check, Report, check_cohort_linear, check_linear_loss, check_loss_ops, check_topk_ops

CPU = torch.device("cpu")
ALL = {name: getattr(torch.ops.nanonet, name).default for name in SCHEMAS if name.startswith("distill")}
TOPK_OPS = {name: op for name, op in ALL.items() if "topk" in name}
OPS = {name: op for name, op in ALL.items() if name not in TOPK_OPS and name != "distill_linear_loss"}
FLOAT32 = (torch.float32,)


@pytest.mark.parametrize("divergence", ["kl", "js", "tv", "mse"])
def test_our_ops_pass_and_none_is_left_out(divergence: str) -> None:
    report = check_loss_ops(OPS, divergence=divergence, dtypes=FLOAT32)
    report.raise_failures()
    assert {check.what for check in report.checks} == OPS.keys()


@pytest.mark.parametrize("divergence", ["kl", "reverse_kl", "tv"])
def test_our_topk_ops_pass_and_none_is_left_out(divergence: str) -> None:
    report = check_topk_ops(ALL, divergence=divergence, dtypes=FLOAT32)
    report.raise_failures()
    assert {check.what for check in report.checks} == TOPK_OPS.keys()
    less = check_topk_ops(ALL, divergence=divergence, dtypes=suite.CPU_DTYPES[:3], students=(2,), every_tail=False)
    assert len({check.case for check in less.checks}) == len({check.case for check in report.checks}) - 3 * 3


def test_the_loss_from_hidden_states_passes() -> None:
    for divergence in ("kl", "mse"):
        report = suite.linear_loss(divergence, (*FLOAT32, torch.bfloat16), CPU)
        report.raise_failures()
        assert {check.what for check in report.checks} == {"distill_linear_loss"}
        assert any("top-k" in check.case for check in report.checks) == (divergence == "kl")


def test_every_op_is_judged() -> None:
    judged = {"cohort_linear", "cohort_linear_backward"}  # by the linear layer, with autograd
    judged |= {"project_into_", "bfloat16_product_"}  # by the loss from hidden states
    assert judged | {*OPS, *TOPK_OPS, "distill_linear_loss"} == SCHEMAS.keys()


def test_the_linear_layer_passes() -> None:
    report = check_cohort_linear(cohort_linear, dtypes=(*FLOAT32, torch.bfloat16))
    report.raise_failures()
    assert {check.what for check in report.checks} >= {"y", "dx", "dweight", "dbias", "dlora_a", "dlora_b", "bits"}


def scaled(name: str, i: int):
    """The op with one of its results off by 1%."""

    def op(*given):
        found = OPS[name](*given)
        return 1.01 * found if i < 0 else tuple(x * (1.01 if j == i else 1) for j, x in enumerate(found))

    return op


def skips_last_row(room, *given):
    before = room[:, -1].clone()
    found = OPS["distill_loss_into_"](room, *given)
    room[:, -1] = before
    return found


calls = [0.0]


def drifts(*given):
    calls[0] += 1e-7
    loss, means, gradient = OPS["distill_loss"](*given)
    return loss, means + calls[0], gradient


def fails_at_eight(student, *given):
    if len(student) == 8:
        raise RuntimeError("too many students")
    return OPS["distill_terms"](student, *given)


MUTANTS = {
    "distill_terms": fails_at_eight,
    "distill_terms_each": scaled("distill_terms_each", 0),
    "distill_terms_backward": scaled("distill_terms_backward", -1),
    "distill_terms_each_backward": scaled("distill_terms_each_backward", -1),
    "distill_loss": drifts,
    "distill_loss_each": scaled("distill_loss_each", 1),
    "distill_loss_into_": skips_last_row,
    "distill_scale_": lambda x, factor: x.mul_(factor * 1.01),
}


@pytest.mark.parametrize("op", OPS)
def test_a_mutant_of_every_op_is_found(op: str) -> None:
    beside = {
        op.removesuffix("_backward"): OPS[op.removesuffix("_backward")],
        f"{op}_backward": OPS.get(f"{op}_backward"),
    }
    ops = {name: kernel for name, kernel in beside.items() if kernel} | {op: MUTANTS[op]}
    report = check_loss_ops(ops, divergence="kl", dtypes=FLOAT32, students=(8,))
    assert report.failures and {check.what for check in report.failures} == {op}


def renormalises(student, ids, logprobs, tail, *given):
    return TOPK_OPS["distill_topk_terms"](student, ids, logprobs, 2, *given)


def forgets_the_last_class(student, ids, logprobs, *given):
    return TOPK_OPS["distill_topk_loss"](
        student, ids.clone().index_fill_(1, torch.tensor(ids.shape[1] - 1), -1), logprobs, *given
    )


def takes_anything(student, ids, logprobs, *given):
    ids = ids.clamp_max(student[0].shape[-1] - 1)
    return TOPK_OPS["distill_topk_terms"](student, ids, logprobs, *given)


TOPK_MUTANTS = [
    ("distill_topk_terms", renormalises),
    ("distill_topk_terms", takes_anything),
    ("distill_topk_terms_backward", lambda *given: 1.01 * TOPK_OPS["distill_topk_terms_backward"](*given)),
    ("distill_topk_loss", forgets_the_last_class),
]


@pytest.mark.parametrize(("op", "mutant"), TOPK_MUTANTS)
def test_a_mutant_of_every_topk_op_is_found(op: str, mutant) -> None:
    report = check_topk_ops(TOPK_OPS | {op: mutant}, divergence="kl", dtypes=FLOAT32, students=())
    assert {check.what for check in report.failures} == {op}


def forgets_bias(*given, bias, **named):
    return distill_linear_loss(*given, bias=None, **named)


def rounds_logits(hidden, weight, *given, **named):
    return distill_linear_loss(hidden, weight, *given, **named | {"transform": lambda x: x.bfloat16().float()})


def doubles_the_gradient(*given, **named):
    loss, means = distill_linear_loss(*given, **named)
    return 2 * loss - loss.detach(), means


@pytest.mark.parametrize("mutant", [forgets_bias, rounds_logits, doubles_the_gradient])
def test_a_mutant_of_the_loss_from_hidden_states_is_found(mutant) -> None:
    def named(hidden, weight, teacher_hidden, teacher_weight, label, **options):
        return mutant(hidden, weight, teacher_hidden, teacher_weight, label, **options)

    assert check_linear_loss(named, divergence="kl", dtypes=FLOAT32).failures


def forgets_scale(x, weight, bias, lora_a, lora_b, scale, **given):
    return cohort_linear(x, weight, bias, lora_a, lora_b, None, **given)


def forgets_dropout(x, *given, dropout=0.0, seed=None):
    return cohort_linear(x, *given)


def rounds(*given, **named):
    y = cohort_linear(*given, **named)
    return y + (y.to(torch.bfloat16).to(y.dtype) - y).detach()


@pytest.mark.parametrize("mutant", [forgets_scale, forgets_dropout, rounds])
def test_a_mutant_of_the_linear_layer_is_found(mutant) -> None:
    assert check_cohort_linear(mutant, dtypes=FLOAT32).failures


def test_every_divergence_and_the_public_functions_are_steps() -> None:
    names = [name for name, _ in suite.steps("C++ avx2", CPU, public=True)]
    for divergence in DIVERGENCES:
        steps = ["the loss", "distill_terms", "distill_loss", "distill_linear_loss", *["TopK"] * (divergence != "mse")]
        assert {f"{what}, {divergence}" for what in steps} <= set(names)
    assert names[-1] == "cohort_linear"
    assert len(list(suite.steps("C++ avx2", CPU, public=False))) == 2 * len(DIVERGENCES) - 1


def test_all_dtypes_are_judged_on_a_gpu() -> None:
    gpu = [judge for name, judge in suite.steps("Triton", torch.device("cuda"), public=True) if "the loss" in name]
    assert set().union(*(judge.keywords["dtypes"] for judge in gpu[1:])) == set(suite.GPU_DTYPES)
    assert gpu[0].keywords["dtypes"] == suite.GPU_DTYPES


def test_the_public_functions_pass() -> None:
    for name, judge in suite.steps("C++ avx2", CPU, public=True):
        if name in ("distill_terms, tv", "distill_loss, js"):
            rows = list(suite.rows_of(name, judge()))
            assert {row["op"] for row in rows} == {f"{name.split(',')[0]}()"}
            assert not any(row["failures"] for row in rows)


def test_rows_count_and_name_what_failed() -> None:
    checks = (
        Check("a", "float32", "distill_terms", 1.0, 2.0),
        Check("b", "float32", "distill_terms", math.nan, 2.0, "odd"),
        Check("bits", "float32", "distill_loss", 0.0, 0.0),
    )
    one, two = suite.rows_of("the loss, kl", Report(checks, ()))
    assert (one["checks"], one["worst"]) == (2, None)
    assert len(one["failures"]) == 1 and "the loss, kl: b" in one["failures"][0]
    assert (two["checks"], two["worst"], two["failures"]) == (1, 0.0, [])
    json.loads(json.dumps([one, two], allow_nan=False))
