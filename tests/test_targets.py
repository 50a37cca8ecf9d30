"""Soft targets: each rule on clusters where its answer is known, and a choice that follows the labels."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from nanonet.config import TrainConfig
from nanonet.targets import choose, classify, diffuse, neighbour_graph, propagate, self_train
from nanonet.teacher import load_teacher, make_teacher, save_teacher


def clusters(rows: int = 120, classes: int = 3, noise: float = 0.35, seed: int = 0):
    """L2-normalised rows around `classes` directions, two labels a class; the truth of every row."""
    rng = np.random.default_rng(seed)
    centres = np.linalg.qr(rng.normal(size=(16, 16)))[0][:classes]
    truth = np.arange(rows) % classes
    x = centres[truth] + noise * rng.normal(size=(rows, 16))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    label = np.where(np.arange(rows) < 2 * classes, truth, -100)
    return x, label, truth


def test_rules_that_use_unlabelled_rows_beat_the_classifier_on_clusters():
    x, label, truth = clusters()
    graph = neighbour_graph(x, 10)
    right = {
        "classifier": classify(x, label, 10.0).predict(x),
        "self_training": self_train(x, label).predict(x),
        "diffusion": diffuse(graph, self_train(x, label).predict_proba(x)).argmax(1),
        "propagation": propagate(graph, label, 3).argmax(1),
    }
    right = {name: float((guess == truth).mean()) for name, guess in right.items()}
    assert right["self_training"] > right["classifier"] + 0.02
    assert right["diffusion"] > right["classifier"] and right["propagation"] > right["classifier"]


def test_the_graph_is_symmetric_without_loops_and_has_no_row_without_a_neighbour():
    x, _, _ = clusters(50)
    graph = neighbour_graph(x, 5)
    assert abs(graph - graph.T).max() < 1e-6 and graph.diagonal().max() == 0
    assert (np.diff(graph.indptr) >= 5).all()
    assert neighbour_graph(x[:3], 20).shape == (3, 3)


def test_a_uniform_prior_balances_the_classes():
    x, label, _ = clusters(90)
    graph = neighbour_graph(x, 10)
    free, balanced = propagate(graph, label, 3), propagate(graph, label, 3, uniform_prior=True)
    np.testing.assert_allclose(balanced.sum(1), 1)
    np.testing.assert_allclose(balanced.sum(0), 30, rtol=1e-3)
    assert np.ptp(free.sum(0)) > np.ptp(balanced.sum(0))


def test_a_stated_prior_reaches_the_soft_targets():
    x, label, _ = clusters(90)
    free, stated = (
        make_teacher(TrainConfig(targets="propagation", uniform_prior=u), torch.tensor(x), torch.tensor(label), 3)
        for u in (False, True)
    )
    assert not torch.allclose(free.soft, stated.soft, atol=1e-3)


def test_diffusion_keeps_probabilities_and_draws_neighbours_together():
    x, _, _ = clusters(60)
    p = np.random.default_rng(0).dirichlet(np.ones(3), 60)
    smooth = diffuse(neighbour_graph(x, 10), p)
    np.testing.assert_allclose(smooth.sum(1), 1)
    assert smooth.std(0).max() < p.std(0).max()


def test_the_choice_follows_the_labels():
    x, _, truth = clusters(300, noise=0.35)
    label = np.where(np.arange(300) < 24, truth, -100)
    chosen = choose(x, label, 3, "auto", seed=0)
    assert chosen.rule in ("self_training", "diffusion") and chosen.trust == chosen.accuracy[chosen.rule]
    # where neighbours say nothing about the class, guessing on cannot help: half of the rows have another class
    shuffled = np.where(label >= 0, np.random.default_rng(1).integers(0, 3, 300), -100)
    assert choose(x, shuffled, 3, "auto", seed=0).trust < 0.7
    named = choose(x, label, 3, "propagation", seed=0)
    assert named.rule == "propagation" and set(named.accuracy) == {"classifier", "propagation"}


def test_an_encoder_tuned_in_a_fold_has_not_seen_the_labels_that_it_is_judged_on():
    x, _, truth = clusters(300)
    label = np.where(np.arange(300) < 150, truth, -100)
    seen = []

    def retune(hidden, rows):
        seen.append(rows[hidden >= 0])
        spoilt = np.random.default_rng(0).normal(size=(len(rows), 3)) + 10 * np.eye(3)[truth[rows]]
        known = hidden >= 0
        spoilt[~known] = x[rows][~known][:, :3]  # a body that tells apart what it has seen, and nothing else
        return torch.from_numpy(spoilt)

    choice = choose(x, label, 3, "auto", 0, retune=retune)
    held = [set(range(150)) - set(part.tolist()) for part in seen]
    assert len(seen) == 3 and set().union(*held) == set(range(150)) and sum(map(len, held)) == 150
    assert choice.trust < 0.9
    # a body that knows every class is trusted
    sure = choose(x, label, 3, "auto", 0, retune=lambda hidden, rows: torch.eye(3)[torch.from_numpy(truth[rows])])
    assert sure.trust == 1 and sure.rule == "diffusion"


def test_folds_that_tune_an_encoder_stop_when_enough_labels_were_held_out():
    x, _, truth = clusters(900)
    label = np.where(np.arange(900) < 700, truth, -100)
    calls = []
    choose(
        x, label, 3, "classifier", 0, retune=lambda hidden, rows: calls.append(len(rows)) or torch.from_numpy(x[rows])
    )
    assert calls == [900]  # 233 of the 700 are held out by one fold


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("rule", ["classifier", "self_training", "diffusion", "propagation"])
def test_the_teacher_is_its_head_and_is_kept(rule, classes, tmp_path):
    x, label, truth = clusters(80, classes)
    embedding = torch.from_numpy(x).float()
    teacher = make_teacher(TrainConfig(targets=rule), embedding, torch.from_numpy(label), classes)
    assert teacher.soft.shape == (80, classes) and teacher.soft.dtype == torch.float32
    assert (teacher.logits(embedding).argmax(1).numpy() == truth).mean() > 0.8
    assert (teacher.soft.argmax(1).numpy() == truth).mean() > 0.8
    sure = min(max(teacher.choice.trust, (1 + 1 / classes) / 2), 0.999)
    assert teacher.soft.softmax(-1).amax(-1).mean().item() == pytest.approx(sure, abs=2e-3)
    save_teacher(tmp_path, teacher)
    again = load_teacher(tmp_path)
    assert torch.equal(again.soft, teacher.soft) and again.choice == teacher.choice
    assert [p.name for p in tmp_path.iterdir()] == ["targets.safetensors"]
