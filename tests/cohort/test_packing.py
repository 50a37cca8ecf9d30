"""Rows without padding: a last layer that runs on the first tokens alone, and attention in float32."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import nanonet.cohort.packing as packing
from nanonet.cohort.layers import CohortLinear
from nanonet.cohort.stack import stack


class PairPooler(nn.Module):
    """The mean of two tokens, where BERT's pooler reads the first one."""

    def __init__(self, dense: nn.Linear) -> None:
        super().__init__()
        self.dense = dense

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.dense(hidden[:, :2].mean(1)))


def tokens_of_last_layer(cohort, ids, mask, **options) -> dict[str, int]:
    """{linear layer: tokens that it ran on} of the last layer."""
    layer = cohort.model.get_submodule(cohort.parts.layers + "1")
    found: dict[str, int] = {}
    hooks = [
        module.register_forward_hook(
            lambda module, given, output, name=name: found.update({name: given[0][..., 0].numel()})
        )
        for name, module in layer.named_modules()
        if isinstance(module, CohortLinear)
    ]
    cohort(ids, mask, **options)
    for hook in hooks:
        hook.remove()
    return found


# with padding; rows of one length, which have none
@pytest.mark.parametrize("rows", [[0, 1, 2, 3, 4, 5], [0, 2]])
@pytest.mark.parametrize("kind", ["bert", "roberta", "electra", "distilbert"])
def test_the_last_layer_runs_on_first_tokens_but_for_keys_and_values(kind, rows, make_teacher, batch, models_of):
    ids, mask = (t[rows] for t in batch)
    cohort = stack(models_of(make_teacher(kind), "full"), "full").eval()
    found = tokens_of_last_layer(cohort, ids, mask, chunk=3)
    names = [name.split(".layer.1.")[-1] for name in cohort.key_value]
    assert len(names) == 2
    for name, tokens in found.items():
        assert tokens == 3 * (int(mask.sum()) if name in names else len(rows)), name
    cohort.packing = ()
    assert set(tokens_of_last_layer(cohort, ids, mask, chunk=3).values()) == {3 * mask.numel()}


# one layer makes queries, keys and values; the head reads two tokens
@pytest.mark.parametrize("kind", ["modernbert", "pair"])
def test_a_head_or_a_layer_that_is_otherwise_gets_all_tokens(kind, make_teacher, batch, models_of) -> None:
    ids, mask = batch
    models = models_of(make_teacher("bert" if kind == "pair" else kind), "full")
    if kind == "pair":
        for model in models:
            model.bert.pooler = PairPooler(model.bert.pooler.dense)
    cohort = stack(models, "full").eval()
    assert cohort.key_value == [] and cohort.packing == ("cpu",)
    logits = cohort(ids, mask).logits
    for k, model in enumerate(models):
        wanted = model.eval()(input_ids=ids, attention_mask=mask).logits
        torch.testing.assert_close(logits[k], wanted, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("mask", [None, "bool", "float"])
def test_bfloat16_attention_is_trained_in_float32(mask, monkeypatch: pytest.MonkeyPatch) -> None:
    run, dtypes = packing.sdpa_attention_forward, []

    def spy(module, query, *others, **options):
        dtypes.append(query.dtype)
        return run(module, query, *others, **options)

    monkeypatch.setattr(packing, "sdpa_attention_forward", spy)
    torch.manual_seed(0)
    given = [torch.randn(3, 4, 9, 8).bfloat16() for _ in range(3)]
    seen = torch.arange(9) < torch.tensor([9, 4, 7])[:, None, None, None]
    masks = {None: None, "bool": seen, "float": torch.zeros(seen.shape).masked_fill(~seen, -1e4).bfloat16()}
    weight = torch.randn(3, 9, 4, 8, dtype=torch.float64)

    def gradients(attention, dtype: torch.dtype) -> list[torch.Tensor]:
        tensors = [t.to(dtype, copy=True).requires_grad_() for t in given]
        own = masks[mask] if mask != "float" else masks[mask].to(dtype)
        y = attention(nn.Identity(), *tensors, own)
        assert y.dtype == dtype
        return [y.detach().double(), *(g.double() for g in torch.autograd.grad(y, tensors, weight.to(dtype)))]

    exact = gradients(lambda *arguments: run(*arguments)[0], torch.float64)
    theirs = gradients(lambda *arguments: run(*arguments)[0], torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        ours = gradients(packing._sdpa, torch.bfloat16)
    assert dtypes == [torch.float32]
    for want, one, other in zip(exact, ours, theirs, strict=True):
        assert float((one - want).norm()) <= 1.05 * float((other - want).norm())
    with torch.no_grad():  # whose forward is as fast as it is
        packing._sdpa(nn.Identity(), *given, masks[mask])
    assert dtypes[1:] == [torch.bfloat16]


@pytest.mark.parametrize(("above", "forwards"), [(65, 6), (66, 3)])
def test_rows_of_few_tokens_run_in_one_group(above, forwards, make_teacher, batch, models_of) -> None:
    cohort = stack(models_of(make_teacher("bert"), "bias"), "bias").eval()
    runs: list[int] = []
    cohort.model.register_forward_pre_hook(lambda *_: runs.append(1))
    cohort.group_rows, cohort.group_above = 4, above
    cohort(*batch)  # (6,11)
    assert len(runs) == forwards
