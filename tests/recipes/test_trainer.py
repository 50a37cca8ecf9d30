"""Recipe: transformers' Trainer with a teacher."""

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from support.causal import collate, make_model, make_rows
from transformers import BertConfig, BertForSequenceClassification

from nanonet.cohort.stack import stack
from nanonet.compat.transformers import DistillTrainer


def losses(trainer):
    return [line["loss"] for line in trainer.state.log_history if "loss" in line]


def train(arguments, model, teacher, rows, options=None, **training):
    training = {"weights": (0.5, 0.5, 0.0)} | training
    given = arguments(**(options or {}))
    trainer = DistillTrainer(model, given, train_dataset=rows, teacher_model=teacher, **training)
    trainer.train()
    return trainer


def formula(model, teacher, rows, weights, temperature):
    """Mean over the tokens that have a label, after the shift."""
    batch = collate(rows)
    labels = batch.pop("labels")[:, 1:]
    q, p = ((m(**batch).logits[:, :-1] / temperature).softmax(-1) for m in (model, teacher))
    kl = temperature**2 * (p * (p / q).log()).sum(-1)[labels != -100].mean()
    ce = F.cross_entropy(model(**batch).logits[:, :-1].flatten(0, 1), labels.flatten())
    return weights[0] * ce + weights[1] * kl


def test_the_loss_of_a_causal_language_model_is_the_formula_and_falls(arguments):
    model, teacher, rows = make_model(0), make_model(1), make_rows(4)
    expected = formula(model, teacher, rows, (0.5, 2.0), 2.0).item()
    training = dict(weights=(0.5, 2.0, 0.0), temperature=2.0)
    trainer = train(arguments, model, teacher, rows, {"max_steps": 20}, **training)
    found = losses(trainer)
    assert found[0] == pytest.approx(expected, rel=1e-4) and found[-1] < 0.8 * found[0]
    assert trainer.means.shape == (3, 1) and not trainer.means.requires_grad
    assert not any(p.requires_grad for p in teacher.parameters()) and not teacher.training


def test_accumulated_steps_equal_one_large_batch(arguments):
    rows, ends = make_rows(12), []
    for size, accumulation in ((4, 1), (2, 2), (1, 4)):
        options = dict(per_device_train_batch_size=size, gradient_accumulation_steps=accumulation, optim="sgd")
        trainer = train(arguments, make_model(0), make_model(1), rows, options)
        ends.append((losses(trainer), [p.detach().clone() for p in trainer.model.parameters()]))
    for found, parameters in ends[1:]:
        torch.testing.assert_close(found, ends[0][0], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(parameters, ends[0][1], rtol=1e-4, atol=1e-5)


def test_each_option_changes_the_loss(arguments):
    options = {"max_steps": 1}
    changes = [
        {},
        {"weights": (1.0, 0.5, 0.0)},
        {"weights": (0.5, 1.0, 0.0)},
        {"temperature": 2.0},
        {"divergence": "js"},
        {"divergence": "js", "beta": 0.2},
    ]
    found = [losses(train(arguments, make_model(0), make_model(1), make_rows(4), options, **c)) for c in changes]
    assert len({round(loss, 4) for (loss,) in found}) == len(changes)


def test_evaluation_and_adapters(arguments):
    model = get_peft_model(make_model(0), LoraConfig(r=2, target_modules=["q_proj"]))
    given = arguments(per_device_eval_batch_size=2)
    training = dict(teacher_model=make_model(1), weights=(0.5, 2.0, 0.0), temperature=2.0)
    trainer = DistillTrainer(model, given, train_dataset=make_rows(4), eval_dataset=make_rows(2), **training)
    assert trainer.causal
    expected = formula(model, training["teacher_model"], make_rows(2), (0.5, 2.0), 2.0)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected.item(), rel=1e-4)
    assert trainer.predict(make_rows(2)).predictions.shape == (2, 12, 61)
    trainer.train()
    assert len(losses(trainer)) == 3


def classifier(seed, width=16):
    torch.manual_seed(seed)
    sizes = dict(hidden_size=width, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2)
    config = BertConfig(vocab_size=61, num_labels=3, attention_probs_dropout_prob=0, hidden_dropout_prob=0, **sizes)
    return BertForSequenceClassification(config)


def texts(count):
    """Rows with one label each, every third unlabelled."""
    rows = [{"input_ids": row["input_ids"], "attention_mask": row["attention_mask"]} for row in make_rows(count)]
    return [row | {"labels": -100 if i % 3 == 2 else i % 3} for i, row in enumerate(rows)]


def test_a_classifier_learns_from_unlabelled_rows_too(arguments):
    model, teacher, rows = classifier(0), classifier(1, 32), texts(4)
    batch = {name: torch.stack([row[name] for row in rows]) for name in ("input_ids", "attention_mask")}
    labels = torch.tensor([row["labels"] for row in rows])
    q, p = (m(**batch).logits.softmax(-1) for m in (model, teacher.eval()))
    expected = F.cross_entropy(q.log(), labels) + (p * (p / q).log()).sum(-1).mean()
    trainer = train(arguments, model, teacher, rows, weights=(1.0, 1.0, 0.0))
    assert not trainer.causal and losses(trainer)[0] == pytest.approx(expected.item(), abs=1e-4)


def test_accumulated_steps_of_a_classifier_are_averaged(arguments):
    rows = texts(6)
    ends = []
    for size, accumulation in ((6, 1), (3, 2)):  # as many labels in each half
        options = dict(per_device_train_batch_size=size, gradient_accumulation_steps=accumulation, max_steps=1)
        ends.append(losses(train(arguments, classifier(0), classifier(1), rows, options)))
    assert ends[0] == pytest.approx(ends[1], abs=1e-4)


def test_a_cohort_learns_and_its_students_from_one_another(arguments):
    rows = texts(12)
    found = []
    for peers in (0.0, 1.0):
        students = [classifier(k) for k in range(2)]
        students[1].bert.embeddings = students[0].bert.embeddings
        cohort = stack(students, "full")
        trainer = train(arguments, cohort, classifier(2), rows, {"max_steps": 30}, weights=(1.0, 1.0, peers))
        found.append(losses(trainer))
        assert found[-1][-1] < found[-1][0] and trainer.means.shape == (3, 2)
    assert found[1][0] > found[0][0]
    trainer.eval_dataset = rows
    predicted = trainer.predict(rows)
    assert predicted.predictions.shape == (12, 2, 3) and predicted.metrics["test_loss"] > 0


def test_another_vocabulary_raises(arguments):
    teacher = make_model(1)
    teacher.resize_token_embeddings(64)
    with pytest.raises(ValueError, match="teacher"):
        train(arguments, make_model(0), teacher, make_rows(4))
