"""The choice of the rule follows the labels, and is never made on labels that were trained on."""

from __future__ import annotations

import numpy as np
import pytest

from nanonet.teacher.selection import _choose_rule, choose, expected_accuracy, make_trial


def test_the_choice_follows_the_labels(clusters):
    x, _, truth = clusters(300, noise=0.35)
    label = np.where(np.arange(300) < 24, truth, -100)
    chosen, _ = choose(x, label, 3, "auto", seed=0)
    assert chosen.rule in ("self_training", "diffusion") and chosen.cv_accuracy == chosen.accuracy[chosen.rule]
    # where neighbours say nothing about the class, guessing on cannot help: half of the rows have another class
    shuffled = np.where(label >= 0, np.random.default_rng(1).integers(0, 3, 300), -100)
    assert choose(x, shuffled, 3, "auto", seed=0)[0].cv_accuracy < 0.7
    named, _ = choose(x, label, 3, "propagation", seed=0)
    assert named.rule == "propagation" and set(named.accuracy) == {"classifier", "propagation"}


def test_an_encoder_tuned_in_a_fold_has_not_seen_the_labels_that_it_is_validated_on(clusters):
    x, _, truth = clusters(300)
    label = np.where(np.arange(300) < 150, truth, -100)
    trial = make_trial(label, 3, 0, tuned=True)
    rows, tuned = trial.rows, []
    for visible in trial.label:
        labelled = visible >= 0
        assert np.array_equal(visible[labelled], label[rows][labelled])
        overfitted = np.random.default_rng(0).normal(size=(len(rows), 3)) + 10 * np.eye(3)[truth[rows]]
        overfitted[~labelled] = x[rows][~labelled][:, :3]  # an encoder that separates the rows it was tuned on only
        tuned.append(overfitted)
    choice, said = choose(x, label, 3, "auto", 0, tuned=tuned)
    assert [len(labels) for labels in said] == [len(rows)] * 3
    validation = [set(range(150)) - set(rows[visible >= 0].tolist()) for visible in trial.label]
    assert len(tuned) == 3 and set().union(*validation) == set(range(150)) and sum(map(len, validation)) == 150
    assert choice.cv_accuracy < 0.9
    # an encoder that separates every class
    perfect, _ = choose(x, label, 3, "auto", 0, tuned=[np.eye(3)[truth[rows]]] * 3)
    assert perfect.cv_accuracy == 1 and perfect.rule == "diffusion"


def test_folds_that_tune_an_encoder_stop_after_enough_validation_labels(clusters):
    x, _, truth = clusters(900)
    label = np.where(np.arange(900) < 700, truth, -100)
    trial = make_trial(label, 3, 0, tuned=True)
    assert len(trial.rows) == 900 and len(trial.label) == 1  # one fold validates on 234 of the 700
    assert choose(x, label, 3, "classifier", 0, tuned=[x[trial.rows]])[0].tested == len(trial.validation[0]) == 234


def test_of_rules_that_the_labels_cannot_tell_apart_the_one_that_uses_more_texts_is_taken():
    none, all_of_them = np.zeros(100), np.ones(100)
    one_less = all_of_them.copy()
    one_less[3] = 0
    assert (
        _choose_rule({"classifier": all_of_them, "self_training": one_less, "diffusion": none}, 100) == "self_training"
    )
    assert (
        _choose_rule({"classifier": all_of_them, "self_training": none, "diffusion": all_of_them}, 100) == "diffusion"
    )
    # ten labels that one gets and the other does not: distinguished, however many both get
    ten_less = all_of_them.copy()
    ten_less[:10] = 0
    assert (
        _choose_rule({"classifier": all_of_them, "self_training": ten_less, "diffusion": ten_less}, 100) == "classifier"
    )
    # as many that only the other gets: not distinguished
    others = all_of_them.copy()
    others[10:20] = 0
    assert _choose_rule({"classifier": others, "self_training": ten_less, "diffusion": none}, 100) == "self_training"


def test_the_expected_accuracy_grows_where_the_teacher_lies_between_the_folds():
    truth = np.zeros(1000, int)
    folds = [np.where(np.arange(1000) % 10 == k, 1, truth) for k in range(3)]  # each errs elsewhere, in a tenth
    assert expected_accuracy(0.9, folds, truth) == pytest.approx(0.95)  # differs half as much from them
    assert expected_accuracy(0.9, folds, folds[0]) == pytest.approx(1 - 0.1 * (2 / 3))
    assert expected_accuracy(0.9, folds, 1 - truth) < 0.9
    for alike in (folds[:1], folds[:1] * 3):  # nothing to compare with
        assert expected_accuracy(0.7, alike, truth) == 0.7
    # data whose every row has a label
    assert expected_accuracy(0.7, [fold[:0] for fold in folds], truth[:0]) == 0.7
