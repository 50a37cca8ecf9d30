"""A cohort of K is K separate models: logits, gradients, and which parameters are trained."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from nanonet.cohort.build import plain_student
from nanonet.cohort.layers import CohortDropout, CohortLinear
from nanonet.cohort.model import Lora, count_parameters, matrix_names
from nanonet.cohort.stack import build_cohort, stack
from nanonet.errors import InputError

KINDS = ["bert", "roberta", "modernbert", "distilbert", "electra", "mpnet"]
LABELS = ["a", "b", "c"]


@pytest.mark.parametrize("kind", KINDS)
# 1: as on a CPU; 2: a ragged last chunk; 3: all at a time, as on a GPU
@pytest.mark.parametrize("chunk", [1, 2, 3])
def test_cohort_is_k_separate_models(kind, chunk, make_teacher, batch, models_of, gradients_of) -> None:
    ids, mask = batch
    models = models_of(make_teacher(kind), "full")
    cohort = stack(models, "full").train()
    logits = cohort(ids, mask, chunk=chunk).logits
    assert logits.shape == (3, 6, 3)
    gradients = gradients_of(cohort, logits)
    trained = {name for name, p in cohort.named_parameters() if p.requires_grad}
    assert set(gradients) == trained
    for k, model in enumerate(models):
        wanted = model(input_ids=ids, attention_mask=mask).logits
        torch.testing.assert_close(logits[k], wanted, rtol=1e-6, atol=1e-6)
        theirs = gradients_of(model, wanted[None])
        for name in trained:
            want = theirs[name.removeprefix("model.")]
            scale = float(want.abs().max())
            torch.testing.assert_close(gradients[name][k], want, rtol=0, atol=2e-6 * max(scale, 1.0), msg=name)


@pytest.mark.parametrize("kind", ["bert", "modernbert"])
@pytest.mark.parametrize("tuning", ["bias", "lora", "head"])
def test_every_tuning_is_k_separate_models(kind, tuning, make_teacher, batch, models_of, gradients_of) -> None:
    ids, mask = batch
    models = models_of(make_teacher(kind), tuning)
    cohort = stack(models, tuning).train()
    both = [cohort(ids, mask, chunk=chunk).logits for chunk in (1, 3)]
    gradients = [gradients_of(cohort, logits) for logits in both]
    torch.testing.assert_close(both[0], both[1], rtol=1e-6, atol=1e-6)
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(
            gradient, gradients[1][name], rtol=0, atol=2e-6 * max(1, float(gradient.abs().max()))
        )
    for k, model in enumerate(models):
        wanted = model(input_ids=ids, attention_mask=mask).logits
        torch.testing.assert_close(both[1][k], wanted, rtol=1e-6, atol=1e-6)
        theirs = gradients_of(model, wanted[None])
        for name, gradient in gradients[1].items():
            if ".lora_" not in name:
                want = theirs[name.removeprefix("model.")]
                torch.testing.assert_close(gradient[k], want, rtol=0, atol=2e-6 * max(1, float(want.abs().max())))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tuning", ["bias", "lora", "full", "head"])
def test_what_is_trained_and_what_is_not(kind, tuning, make_teacher, batch, models_of) -> None:
    ids, mask = batch
    cohort = stack(models_of(make_teacher(kind), tuning), tuning).train()
    cohort(ids, mask).logits.sum().backward()
    trained_outside_the_head = 0
    for name, parameter in cohort.model.named_parameters():
        part = cohort.parts.of(name)
        if part == "head":
            assert parameter.requires_grad, name
        elif part == "embeddings" or "relative_attention_bias" in name:
            assert not parameter.requires_grad, name
        else:
            expected = {
                "bias": name.endswith(".bias"),
                "lora": name.endswith((".lora_a", ".lora_b")),
                "full": True,
                "head": False,
            }[tuning]
            assert parameter.requires_grad == expected, name
            trained_outside_the_head += expected
        assert (parameter.grad is not None) == parameter.requires_grad, name
        if parameter.requires_grad:
            assert parameter.shape[0] == 3, name
    assert (trained_outside_the_head > 0) == (tuning != "head")


def test_a_frozen_weight_that_students_share_is_stored_once(make_teacher) -> None:
    teacher = make_teacher("bert")
    for tuning, share in (("bias", True), ("lora", True), ("head", True), ("full", False)):
        cohort = build_cohort(teacher, [[0, 5], [0, 4]], LABELS, tuning)
        dims = [cohort.model.bert.encoder.layer[slot].intermediate.dense.weight.dim() for slot in (0, 1)]
        assert dims == ([2, 3] if share else [3, 3]), tuning
        assert cohort.model.bert.pooler.dense.weight.dim() == 3
        word = cohort.model.get_input_embeddings().weight
        assert word.data_ptr() == teacher.get_input_embeddings().weight.data_ptr()


def test_parameter_names_are_the_plain_models(make_teacher, models_of) -> None:
    models = models_of(make_teacher("bert"), "full")
    cohort = stack(models, "full")
    assert {n for n, _ in cohort.model.named_parameters()} == {n for n, _ in models[0].named_parameters()}
    assert cohort.model.state_dict().keys() == models[0].state_dict().keys()


def test_stacking_leaves_the_models_as_they_are(make_teacher, batch, models_of) -> None:
    ids, mask = batch
    models = models_of(make_teacher("bert"), "bias")
    before = [copy.deepcopy(model.state_dict()) for model in models]
    cohort = stack(models, "bias")
    with torch.no_grad():
        for parameter in cohort.parameters():
            if parameter.requires_grad:
                parameter.add_(1)
    for model, state in zip(models, before, strict=True):
        assert all(torch.equal(t, state[name]) for name, t in model.state_dict().items())
        assert not any("Cohort" in type(module).__name__ for module in model.modules())


def test_each_student_may_see_its_own_rows(make_teacher, batch, models_of) -> None:
    ids, mask = batch
    models = models_of(make_teacher("roberta"), "full")
    cohort = stack(models, "full").eval()
    own = torch.stack([ids, ids.flip(0), ids.roll(1, 0)]), torch.stack([mask, mask.flip(0), mask.roll(1, 0)])
    for chunk in (1, 3):
        logits = cohort(*own, chunk=chunk).logits
        for k, model in enumerate(models):
            wanted = model(input_ids=own[0][k], attention_mask=own[1][k]).logits
            torch.testing.assert_close(logits[k], wanted, rtol=1e-6, atol=1e-6)


def test_dropouts_are_off_but_for_the_students_that_ask(make_teacher, batch, models_of) -> None:
    ids, mask = batch
    teacher = make_teacher("modernbert")
    teacher.config.attention_dropout = teacher.config.mlp_dropout = 0.5
    cohort = stack(models_of(teacher, "full"), "full").train()
    plain = cohort(ids, mask).logits
    assert torch.equal(plain, cohort(ids, mask).logits)
    assert cohort.model.config.attention_dropout == 0.5  # the export keeps what the teacher had
    assert not any(type(module) is nn.Dropout for module in cohort.modules())
    cohort.set_dropout([0.0, 0.3, 0.0])
    for chunk in (1, 3):
        dropped = cohort(ids, mask, chunk=chunk).logits
        same = [torch.allclose(dropped[k], plain[k], atol=1e-6) for k in range(3)]
        assert same == [True, False, True]
        assert not torch.equal(dropped[1], cohort(ids, mask, chunk=chunk).logits[1])
    assert torch.allclose(cohort.eval()(ids, mask).logits, plain, atol=1e-6)
    with pytest.raises(ValueError, match="expected 3 numbers"):
        cohort.set_dropout([0.1])


def test_dropout_keeps_the_mean_and_the_other_students() -> None:
    from nanonet.cohort.layers import Span

    dropout = CohortDropout(Span(0, 2))
    dropout.probability = (0.0, 0.25)
    y = dropout(torch.ones(2, 20_000))
    assert torch.equal(y[0], torch.ones(20_000))
    assert y[1].unique().tolist() == pytest.approx([0, 4 / 3])
    assert abs(float((y[1] == 0).float().mean()) - 0.25) < 0.02


def test_counts_are_those_of_the_plain_model(make_teacher) -> None:
    teacher = make_teacher("bert")
    plain = plain_student(teacher, [0, 5], LABELS, "full", 0)
    total = sum(p.numel() for p in plain.parameters())
    embeddings = sum(p.numel() for p in plain.bert.embeddings.parameters())
    head = sum(p.numel() for m in (plain.bert.pooler, plain.classifier) for p in m.parameters())
    lora = 2 * 4 * (4 * (32 + 32) + 2 * (32 + 48))
    for tuning, trainable in (("full", total - embeddings), ("head", head), ("lora", head + lora)):
        cohort = build_cohort(teacher, [[0, 5], [0, 4]], LABELS, tuning, lora=Lora(rank=4))
        assert count_parameters(cohort) == (total, trainable)


def test_weight_decay_is_for_matrices(make_teacher) -> None:
    for kind in ("modernbert", "distilbert"):
        cohort = build_cohort(make_teacher(kind), [[0, 5], [0, 4]], LABELS, "lora")
        names = matrix_names(cohort)
        for name, parameter in cohort.named_parameters():
            norm = "norm" in name.lower()
            matrix = name.endswith((".lora_a", ".lora_b")) or (name.endswith(".weight") and not norm)
            if parameter.requires_grad:
                assert (name in names) == matrix, name


def test_k_of_one(make_teacher, batch) -> None:
    ids, mask = batch
    model = plain_student(make_teacher("bert"), range(6), LABELS, "full", 0)
    logits = stack([model], "full")(ids, mask).logits
    torch.testing.assert_close(logits[0], model(input_ids=ids, attention_mask=mask).logits, rtol=1e-6, atol=1e-6)


def test_models_of_other_shapes_are_refused(make_teacher) -> None:
    teacher = make_teacher("bert")
    models = [plain_student(teacher, layers, LABELS, "full", 0) for layers in ([0], [0, 1])]
    with pytest.raises(ValueError, match="one class and shape"):
        stack(models, "full")


def test_parameters_of_another_kind_of_layer_make_the_students_run_one_at_a_time(
    make_teacher, batch, models_of, gradients_of, capsys
) -> None:
    ids, mask = batch
    models = models_of(make_teacher("bert"), "full")
    for k, model in enumerate(models):
        norm = nn.RMSNorm(32)
        nn.init.normal_(norm.weight, 1.0, 0.1 * (k + 1))
        model.bert.encoder.layer[0].output.LayerNorm = norm
    cohort = stack(models, "full").train()
    name = "bert.encoder.layer.0.output.LayerNorm.weight"
    assert cohort.unbatched == {name} and cohort.students_at_once == 1
    assert "3 students run one at a time, which is slower on a GPU\n" in capsys.readouterr().err
    for chunk in (1, 3):
        logits = cohort(ids, mask, chunk=chunk).logits
        gradients = gradients_of(cohort, logits)
        for k, model in enumerate(models):
            wanted = model(input_ids=ids, attention_mask=mask).logits
            torch.testing.assert_close(logits[k], wanted, rtol=1e-6, atol=1e-6)
            theirs = gradients_of(model, wanted[None])[name]
            torch.testing.assert_close(gradients[f"model.{name}"][k], theirs, rtol=1e-5, atol=1e-5)
    # a norm of any kind does not decay
    assert f"model.{name}" not in matrix_names(cohort)


@pytest.mark.parametrize("tuning", ["full", "bias", "head"])
def test_an_architecture_whose_layers_see_more_than_rows_runs_one_student_at_a_time(
    tuning, make_teacher, batch, models_of, gradients_of, capsys
) -> None:
    # DeBERTa puts its relative positions through the same linear layers as the rows
    ids, mask = batch
    models = models_of(make_teacher("deberta"), tuning)
    cohort = stack(models, tuning).train()
    assert cohort.students_at_once == 1 and not cohort.unbatched
    assert capsys.readouterr().err.count("\n") == 1
    logits = cohort(ids, mask, chunk=3).logits
    gradients = gradients_of(cohort, logits)
    for k, model in enumerate(models):
        wanted = model(input_ids=ids, attention_mask=mask).logits
        torch.testing.assert_close(logits[k], wanted, rtol=1e-5, atol=1e-5)
        theirs = gradients_of(model, wanted[None])
        for name, gradient in gradients.items():
            want = theirs[name.removeprefix("model.")]
            scale = max(1.0, float(want.abs().max()))
            torch.testing.assert_close(gradient[k], want, rtol=0, atol=1e-5 * scale, msg=name)


def test_small_weights_do_not_hide_that_students_are_mixed(make_teacher, models_of) -> None:
    models = models_of(make_teacher("deberta"), "full")
    with torch.no_grad():
        for model in models:  # as transformers initialises them
            for parameter in model.parameters():
                parameter.mul_(0.05)
    assert stack(models, "full").students_at_once == 1


def test_an_architecture_that_cannot_be_stacked_at_all_is_refused(models_of, make_teacher) -> None:
    models = models_of(make_teacher("bert"), "full")
    for model in models:
        model.bert.encoder.layer[0].output.dropout = nn.AlphaDropout(0.5)  # nobody turns this one off
    with pytest.raises(
        InputError, match="BertForSequenceClassification cannot be stacked: .* other logits than one by one;"
    ):
        stack(models, "full")


@pytest.mark.parametrize("kind", ["roberta", "electra"])
def test_the_classifier_is_found_whatever_was_registered_first(kind, make_teacher, models_of, batch) -> None:
    models = models_of(make_teacher(kind), "full")
    for model in models:  # as XLM-R does it: the head before the layers
        base = model._modules.pop(model.base_model_prefix)
        model._modules[model.base_model_prefix] = base
    cohort = stack(models, "full")
    assert list(cohort.model._modules)[-1] == kind and cohort.classifier == "classifier.out_proj"
    assert cohort(*batch, features=cohort.classifier).features.shape == (3, 6, 32)


def test_layers_print_what_they_hold(make_teacher) -> None:
    cohort = build_cohort(make_teacher("bert"), [[0], [1]], LABELS, "lora")
    linears = [module for module in cohort.modules() if isinstance(module, CohortLinear)]
    assert "weight=(2, 32, 32), bias=True, lora_rank=8" in repr(linears[0])
