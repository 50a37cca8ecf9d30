"""Soft labels: each rule on clusters where its answer is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from nanonet.config.settings import teacher_settings
from nanonet.config.train import TrainConfig
from nanonet.errors import InputError
from nanonet.teacher.frozen import FrozenTeacher, load_teacher, pseudo_labels, save_teacher, teacher_of_embeddings
from nanonet.teacher.neighbours import neighbour_graph
from nanonet.teacher.selection import choose
from nanonet.teacher.soft_labels import classify, diffuse, propagate, self_train


def make_teacher(config: TrainConfig, embedding: torch.Tensor, label: torch.Tensor, classes: int) -> FrozenTeacher:
    settings = teacher_settings(config)
    choice, _ = choose(
        embedding.double().numpy(), label.numpy(), classes, settings.targets, settings.seed, settings.uniform_prior
    )
    return teacher_of_embeddings(settings, choice, embedding, label, classes, embedding[label >= 0])


def test_rules_that_use_unlabelled_rows_beat_the_classifier_on_clusters(clusters):
    x, label, truth = clusters()
    graph = neighbour_graph(x, 10)
    predicted = {
        "classifier": classify(x, label, 10.0).predict(x),
        "self_training": self_train(x, label).predict(x),
        "diffusion": diffuse(graph, self_train(x, label).predict_proba(x)).argmax(1),
        "propagation": propagate(graph, label, 3).argmax(1),
    }
    accuracy = {name: float((labels == truth).mean()) for name, labels in predicted.items()}
    assert accuracy["self_training"] > accuracy["classifier"] + 0.02
    assert accuracy["diffusion"] > accuracy["classifier"] and accuracy["propagation"] > accuracy["classifier"]


def test_a_uniform_prior_balances_the_classes(clusters):
    x, label, _ = clusters(90)
    graph = neighbour_graph(x, 10)
    free, balanced = propagate(graph, label, 3), propagate(graph, label, 3, uniform_prior=True)
    np.testing.assert_allclose(balanced.sum(1), 1)
    np.testing.assert_allclose(balanced.sum(0), 30, rtol=1e-3)
    assert np.ptp(free.sum(0)) > np.ptp(balanced.sum(0))


def test_a_stated_prior_reaches_the_soft_labels(clusters):
    x, label, _ = clusters(90)
    free, stated = (
        make_teacher(TrainConfig(targets="propagation", uniform_prior=u), torch.tensor(x), torch.tensor(label), 3)
        for u in (False, True)
    )
    assert not torch.allclose(free.soft_labels, stated.soft_labels, atol=1e-3)


def test_diffusion_keeps_probabilities_and_draws_neighbours_together(clusters):
    x, _, _ = clusters(60)
    p = np.random.default_rng(0).dirichlet(np.ones(3), 60)
    smooth = diffuse(neighbour_graph(x, 10), p)
    np.testing.assert_allclose(smooth.sum(1), 1)
    assert smooth.std(0).max() < p.std(0).max()


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("rule", ["classifier", "self_training", "diffusion", "propagation"])
def test_the_teacher_is_its_head_and_is_stored(clusters, rule, classes, tmp_path):
    x, label, truth = clusters(80, classes)
    embedding = torch.from_numpy(x).float()
    teacher = make_teacher(TrainConfig(targets=rule), embedding, torch.from_numpy(label), classes)
    assert teacher.soft_labels.shape == (80, classes) and teacher.soft_labels.dtype == torch.float32
    assert (teacher.logits(embedding).argmax(1).numpy() == truth).mean() > 0.8
    assert (teacher.soft_labels.argmax(1).numpy() == truth).mean() > 0.8
    confidence = min(max(teacher.choice.cv_accuracy, (1 + 1 / classes) / 2), 0.999)
    assert teacher.soft_labels.softmax(-1).amax(-1).mean().item() == pytest.approx(confidence, abs=2e-3)
    save_teacher(tmp_path, teacher, "of these")
    again = load_teacher(tmp_path, "of these")
    assert torch.equal(again.soft_labels, teacher.soft_labels) and again.choice == teacher.choice
    assert [p.name for p in tmp_path.iterdir()] == ["targets.safetensors"]
    with pytest.raises(InputError, match="was begun with other texts"):
        load_teacher(tmp_path, "of others")


def test_pseudo_labels_are_the_most_confident_of_each_class_and_labels_stay(clusters):
    _, label, _ = clusters(12)
    p = np.full((12, 3), 0.1)
    p[6:10, 0], p[10:, 2] = (
        (0.5, 0.9, 0.6, 0.8),
        (0.4, 0.3),
    )  # four unlabelled rows go to the first class, two to the last
    found = pseudo_labels(p, label)
    assert (found[:6] == label[:6]).all() and found[6:].tolist() == [-100, 0, -100, 0, 2, -100]
    assert (label[6:] == -100).all()  # the input is left alone
