"""The cohort's adapters are PEFT's: same A and B, same logits, same gradients."""

from __future__ import annotations

import copy

import torch
from peft import LoraConfig, get_peft_model

from nanonet.cohort.build import plain_student
from nanonet.cohort.model import Lora
from nanonet.cohort.stack import stack

LABELS = ["a", "b", "c"]
MAPPING = [[0, 5], [0, 4]]


def _cohort(teacher, dropout: float = 0.0):
    models = [plain_student(teacher, layers, LABELS, "lora", k) for k, layers in enumerate(MAPPING)]
    cohort = stack(models, "lora", lora=Lora(rank=4, alpha=6.0, dropout=dropout))
    with torch.no_grad():
        for name, parameter in cohort.named_parameters():
            if name.endswith("lora_b"):
                parameter.normal_(std=0.2)
    return models, cohort.train()


def test_logits_and_gradients_are_pefts(make_teacher, batch) -> None:
    ids, mask = batch
    for kind in ("bert", "modernbert"):
        models, cohort = _cohort(make_teacher(kind))
        logits = cohort(ids, mask, chunk=2).logits
        logits.square().sum().backward()
        layers = {n.removesuffix(".lora_a") for n, _ in cohort.model.named_parameters() if n.endswith(".lora_a")}
        assert len(layers) == 2 * (6 if kind == "bert" else 4)
        for k, model in enumerate(models):
            settings = LoraConfig(r=4, lora_alpha=6, target_modules=sorted(layers), lora_dropout=0.0)
            adapted = get_peft_model(copy.deepcopy(model), settings)
            theirs = {n: adapted.get_base_model().get_submodule(n) for n in layers}
            for name, layer in theirs.items():
                layer.lora_A["default"].weight.data.copy_(cohort.model.get_submodule(name).lora_a[k])
                layer.lora_B["default"].weight.data.copy_(cohort.model.get_submodule(name).lora_b[k])
            wanted = adapted(input_ids=ids, attention_mask=mask).logits
            torch.testing.assert_close(logits[k], wanted, rtol=1e-5, atol=2e-6)
            wanted.square().sum().backward()
            for name, layer in theirs.items():
                ours = cohort.model.get_submodule(name)
                for mine, their in ((ours.lora_a, layer.lora_A), (ours.lora_b, layer.lora_B)):
                    want = their["default"].weight.grad
                    torch.testing.assert_close(mine.grad[k], want, rtol=1e-4, atol=1e-5 * float(want.abs().max()))


def test_adapters_start_as_pefts_and_differ_between_students(make_teacher) -> None:
    teacher = make_teacher("bert")
    models = [plain_student(teacher, layers, LABELS, "lora", k) for k, layers in enumerate(MAPPING)]
    cohorts = [stack(models, "lora", lora=Lora(rank=4), seed=seed) for seed in (1, 1, 2)]
    layer, again, other = (cohort.model.bert.encoder.layer[0].intermediate.dense for cohort in cohorts)
    assert torch.equal(layer.lora_a, again.lora_a) and not torch.equal(layer.lora_a, other.lora_a)
    assert not torch.equal(layer.lora_a[0], layer.lora_a[1]) and torch.count_nonzero(layer.lora_b) == 0
    assert 0.9 * 32**-0.5 < float(layer.lora_a.detach().abs().max()) <= 32**-0.5
    assert layer.scale.tolist() == [4.0, 4.0]


def test_lora_dropout_differs_by_step_student_layer_and_chunk(make_teacher, batch, monkeypatch) -> None:
    from nanonet.cohort import layers

    ids, mask = batch
    _, cohort = _cohort(make_teacher("bert"), dropout=0.5)
    torch.manual_seed(0)
    first = cohort(ids, mask).logits
    assert not torch.equal(first, cohort(ids, mask).logits)
    torch.manual_seed(0)
    assert torch.equal(first, cohort(ids, mask).logits)  # torch's generator decides: a step can be repeated
    seeds = []
    original = layers.cohort_linear

    def listen(*arguments, **options):
        seeds.append(options["seed"])
        return original(*arguments, **options)

    monkeypatch.setattr(layers, "cohort_linear", listen)
    cohort(ids, mask, chunk=1)
    drawn = [int(seed) for seed in seeds if seed is not None]
    assert len(drawn) == len(set(drawn)) == 2 * 12
    cohort.eval()
    assert torch.equal(cohort(ids, mask).logits, cohort(ids, mask).logits)
