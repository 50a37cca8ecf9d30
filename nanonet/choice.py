"""Which embeddings and which rule make the soft targets: cross-validated inside the labels.

An encoder tuned on a few labels knows the task better, as it was pretrained it knows more of the texts: TREC-6 gains
25 points from the tuning, AG News loses two in one draw and wins one in the next. Where the labels cannot tell the two
apart, the embeddings of both stand side by side. The rule is chosen after that.
N rows, D features, C classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nanonet.config import InputError
from nanonet.data.split import folds
from nanonet.targets import STRENGTH, STRENGTHS, Array, classify, diffuse, neighbour_graph, propagate, self_train

TRIAL_ROWS = 2000  # unlabelled rows that the cross-validation of the rules sees
TUNED_TRIAL_ROWS, TUNED_HELD_ROWS = 1000, 200  # where each fold tunes an encoder of its own: fewer, and labels enough
CLASS_TRIAL_ROWS = 40  # for every class, where that is more: a row needs neighbours of its own class

PRETRAINED, TUNED, BOTH = "pretrained", "tuned", "both"
Retune = Callable[[NDArray[np.int64], NDArray[np.int64]], Tensor]
Rule = tuple[str, float]  # its name, the classifier's strength


@dataclass(frozen=True)
class Choice:
    """What the labels prefer: embeddings (pretrained, tuned or both), rule and the classifier's strength.

    accuracy: {embeddings: {rule: cross-validated accuracy}} of all that was tried
    """

    embeddings: str
    rule: str
    strength: float
    accuracy: dict[str, dict[str, float]]

    @property
    def trust(self) -> float:
        return self.accuracy[self.embeddings][self.rule]


def combined(which: str, pretrained: Tensor, tuned: Tensor) -> Tensor:
    """The embeddings of that name: (N,D), or for `both` side by side (N,2D); of norm 1 where these are."""
    return {PRETRAINED: pretrained, TUNED: tuned}.get(which, torch.cat([pretrained, tuned], -1) / 2**0.5)


def choose(
    embedding: Tensor,
    label: NDArray[np.int64],
    classes: int,
    rule: str,
    seed: int,
    uniform_prior: bool = False,
    retune: Retune | None = None,
) -> Choice:
    """Cross-validate embeddings and rules inside the labelled rows; `rule` other than "auto" is taken as it is.

    embedding: (N,D), the pretrained encoder's. Each fold's labels are hidden from the rules; the unlabelled rows, or
    some of them, are seen as in use. An encoder that was tuned on the labels has seen those that a fold hides. `retune`
    gives the embeddings by one that has not: called with labels (n,), -100 where hidden or unknown, and row numbers
    (n,), it returns (n,D). Then there are three folds, and no more of them than it takes to hold TUNED_HELD_ROWS out.

    Raises:
        InputError: no class has two labels, so none can be hidden.
    """
    known = np.flatnonzero(label >= 0)
    most = max(TUNED_TRIAL_ROWS if retune else TRIAL_ROWS, CLASS_TRIAL_ROWS * classes)
    free = np.random.default_rng(seed).permutation(np.flatnonzero(label < 0))[:most]
    rows = np.concatenate([known, free])
    x, y = embedding[torch.from_numpy(rows)], label[rows]
    tried = {"self_training", "diffusion"} if rule == "auto" else {rule}
    right: dict[str, dict[Rule, list[bool]]] = {}
    tested = 0
    for repeat in range(1 if retune else 2):
        for _, held in folds(y[: len(known)].tolist(), 3 if retune else 5, seed + repeat):
            if retune and tested >= TUNED_HELD_ROWS:
                break
            tested += len(held)
            hidden = y.copy()
            hidden[held] = -100
            trial = {PRETRAINED: x}
            if retune:
                tuned = retune(hidden, rows)
                trial |= {name: combined(name, x, tuned) for name in (TUNED, BOTH)}
            for name, features in trial.items():
                guesses = _guess(features.double().numpy(), hidden, held, classes, tried, uniform_prior)
                for key, guess in guesses.items():
                    right.setdefault(name, {}).setdefault(key, []).extend(guess == y[held])
    if not right:
        raise InputError("--labels-per-class 1: soft targets are cross-validated inside the labels; give 2 or more")
    # {rule: strength}: in order of its right guesses, so that of a rule's strengths the best stays
    strengths = {name: dict(sorted(of, key=lambda key: sum(right[name][key]))) for name, of in right.items()}
    hits = {name: {r: np.array(right[name][r, s], float) for r, s in of.items()} for name, of in strengths.items()}
    rows_held = min(tested, len(known))
    which = _embeddings({name: _best(of) if rule == "auto" else of[rule] for name, of in hits.items()}, rows_held)
    chosen = _rule(hits[which], rows_held) if rule == "auto" else rule
    accuracy = {name: {r: float(h.mean()) for r, h in of.items()} for name, of in hits.items()}
    return Choice(which, chosen, strengths[which][chosen], accuracy)


def _guess(
    x: Array, label: NDArray[np.int64], held: list[int], classes: int, tried: set[str], uniform_prior: bool
) -> dict[Rule, NDArray[np.int64]]:
    """Every rule's guess of the held rows, whose labels are hidden."""
    guesses = {("classifier", s): classify(x, label, s).predict(x[held]) for s in STRENGTHS}
    graph = neighbour_graph(x) if tried & {"diffusion", "propagation"} else None
    if tried & {"self_training", "diffusion"}:
        p = self_train(x, label).predict_proba(x)
        guesses["self_training", STRENGTH] = p[held].argmax(1)
    if "diffusion" in tried and graph is not None:
        guesses["diffusion", STRENGTH] = diffuse(graph, p)[held].argmax(1)
    if "propagation" in tried and graph is not None:
        guesses["propagation", STRENGTH] = propagate(graph, label, classes, uniform_prior)[held].argmax(1)
    return guesses


def _best(hits: dict[str, Array]) -> Array:
    return max(hits.values(), key=lambda h: h.mean())


def _apart(better: Array, other: Array, rows: int) -> bool:
    """Whether one is better by more than a standard error of the difference, label by label, over `rows` labels."""
    gap = better - other
    return bool(gap.mean() > gap.std() / rows**0.5)


def _embeddings(hits: dict[str, Array], rows: int) -> str:
    """Pretrained or tuned where the labels tell them apart, else both."""
    if TUNED not in hits or _apart(hits[PRETRAINED], hits[TUNED], rows):
        return PRETRAINED
    return TUNED if _apart(hits[TUNED], hits[PRETRAINED], rows) else BOTH


def _rule(hits: dict[str, Array], rows: int) -> str:
    """Of the rules that the labels cannot tell from the best, the one that uses more of the rows."""
    ordered = ("diffusion", "self_training", "classifier")
    return next(rule for rule in ordered if not _apart(_best(hits), hits[rule], rows))
