"""The choice of embeddings and rule follows the labels, and is never made on labels that were learnt from."""

from __future__ import annotations

import numpy as np
import torch

from nanonet.choice import choose, combined


def test_the_choice_follows_the_labels(clusters):
    x, _, truth = clusters(300, noise=0.35)
    label = np.where(np.arange(300) < 24, truth, -100)
    chosen = choose(torch.from_numpy(x), label, 3, "auto", seed=0)
    assert chosen.rule in ("self_training", "diffusion") and chosen.embeddings == "pretrained"
    # where neighbours say nothing about the class, guessing on cannot help: half of the rows have another class
    shuffled = np.where(label >= 0, np.random.default_rng(1).integers(0, 3, 300), -100)
    assert choose(torch.from_numpy(x), shuffled, 3, "auto", seed=0).trust < 0.7
    named = choose(torch.from_numpy(x), label, 3, "propagation", seed=0)
    assert named.rule == "propagation" and set(named.accuracy["pretrained"]) == {"classifier", "propagation"}


def test_an_encoder_tuned_in_a_fold_has_not_seen_the_labels_that_it_is_judged_on(clusters):
    x, _, truth = clusters(300)
    label = np.where(np.arange(300) < 150, truth, -100)
    seen = []

    def retune(hidden, rows):
        seen.append(rows[hidden >= 0])
        spoilt = np.random.default_rng(0).normal(size=(len(rows), 3)) + 10 * np.eye(3)[truth[rows]]
        known = hidden >= 0
        spoilt[~known] = x[rows][~known][:, :3]  # a body that tells apart what it has seen, and nothing else
        return torch.from_numpy(spoilt)

    choice = choose(torch.from_numpy(x), label, 3, "auto", 0, retune=retune)
    tuned = choice.accuracy["tuned"]
    held = [set(range(150)) - set(part.tolist()) for part in seen]
    assert len(seen) == 3 and set().union(*held) == set(range(150)) and sum(map(len, held)) == 150
    assert max(tuned.values()) < 0.9 and choice.embeddings == "pretrained"
    # a body that knows every class is trusted
    sure = choose(torch.from_numpy(x), label, 3, "auto", 0, retune=lambda hidden, rows: torch.eye(3)[truth[rows]])
    assert sure.trust == 1 and sure.rule == "diffusion" and sure.embeddings == "tuned"


def test_folds_that_tune_an_encoder_stop_when_enough_labels_were_held_out(clusters):
    x, _, truth = clusters(900)
    label = np.where(np.arange(900) < 700, truth, -100)
    calls = []
    x = torch.from_numpy(x)
    choose(x, label, 3, "classifier", 0, retune=lambda hidden, rows: calls.append(len(rows)) or x[rows])
    assert calls == [900]  # 233 of the 700 are held out by one fold


def test_embeddings_that_the_labels_cannot_tell_apart_stand_side_by_side(clusters):
    x, label, truth = clusters(300)
    label = np.where(np.arange(300) < 60, truth, -100)
    x, other = torch.from_numpy(x), torch.from_numpy(x).flip(1)
    choice = choose(x, label, 3, "auto", 0, retune=lambda hidden, rows: other[rows])
    assert choice.embeddings == "both" and set(choice.accuracy) == {"pretrained", "tuned", "both"}
    assert choice.trust == choice.accuracy["both"][choice.rule] >= max(choice.accuracy["tuned"].values())
    both = combined("both", x, other)
    assert both.shape == (300, 32) and torch.allclose(both.norm(dim=1), torch.ones(300, dtype=both.dtype))
    assert combined("tuned", x, other) is other and combined("pretrained", x, other) is x
