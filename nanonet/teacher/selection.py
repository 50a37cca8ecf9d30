"""Which rule makes the soft targets: cross-validated inside the labels.

N rows, D features, C classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from torch import Tensor

from nanonet.data.split import folds
from nanonet.errors import InputError
from nanonet.teacher.soft_labels import (
    STRENGTH,
    STRENGTHS,
    Array,
    classify,
    diffuse,
    neighbour_graph,
    propagate,
    self_train,
)

TRIAL_ROWS = 2000  # unlabelled rows that the cross-validation of the rules sees
TUNED_TRIAL_ROWS, TUNED_HELD_ROWS = 1000, 200  # where each fold tunes an encoder of its own: fewer, and labels enough
CLASS_TRIAL_ROWS = 40  # for every class, where that is more: a row needs neighbours of its own class

Retune = Callable[[NDArray[np.int64], NDArray[np.int64]], Tensor]
Rule = tuple[str, float]  # its name, the classifier's strength


@dataclass(frozen=True)
class Choice:
    """Which rule the labels prefer: its name, the classifier's strength, and each rule's cross-validated accuracy."""

    rule: str
    strength: float
    accuracy: dict[str, float]

    @property
    def cv_accuracy(self) -> float:
        return self.accuracy[self.rule]


def trial_rows(classes: int, tuned: bool) -> int:
    """The most unlabelled rows that `choose` looks at."""
    return max(TUNED_TRIAL_ROWS if tuned else TRIAL_ROWS, CLASS_TRIAL_ROWS * classes)


def check_labels(label: Tensor) -> None:
    """Refuse labels (N,), -100 where there is none, of which none can be hidden: no class has two.

    Raises:
        InputError: says so.
    """
    if not (label[label >= 0].bincount() > 1).any():
        raise InputError(
            "soft targets are cross-validated inside the labels, and no class has two; raise --labels-per-class, or"
            " add labelled rows"
        )


def choose(
    embedding: Array,
    label: NDArray[np.int64],
    classes: int,
    rule: str,
    seed: int,
    uniform_prior: bool = False,
    retune: Retune | None = None,
) -> Choice:
    """Cross-validate the rules inside the labelled rows; `rule` other than "auto" is taken as it is.

    Each fold's labels are hidden from the rules; the unlabelled rows, or some of them, are seen as in use.
    An encoder that was tuned on the labels has seen those that a fold hides. `retune` gives the embeddings by one that
    has not: called with labels (n,), -100 where hidden or unknown, and row numbers (n,), it returns (n,D). Then there
    are three folds, and no more of them than it takes to hold TUNED_HELD_ROWS labels out. `check_labels` says which
    labels will not do.
    """
    known = np.flatnonzero(label >= 0)
    free = np.random.default_rng(seed).permutation(np.flatnonzero(label < 0))[: trial_rows(classes, retune is not None)]
    rows = np.concatenate([known, free])
    x, y = embedding[rows], label[rows]
    tried = {"self_training", "diffusion"} if rule == "auto" else {rule}
    linked = bool(tried & {"diffusion", "propagation"})
    graph = neighbour_graph(x) if linked and not retune else None
    right: dict[Rule, list[bool]] = {}
    tested = 0
    for repeat in range(1 if retune else 2):
        for _, held in folds(y[: len(known)].tolist(), 3 if retune else 5, seed + repeat):
            if retune and tested >= TUNED_HELD_ROWS:
                break
            tested += len(held)
            hidden = y.copy()
            hidden[held] = -100
            if retune:
                x = retune(hidden, rows).double().numpy()
                graph = neighbour_graph(x) if linked else None
            for key, guess in _guess(x, graph, hidden, held, classes, tried, uniform_prior).items():
                right.setdefault(key, []).extend(guess == y[held])
    # {rule: strength}: in order of its right guesses, so that of a rule's strengths the best stays
    strengths = dict(sorted(right, key=lambda key: sum(right[key])))
    hits = {name: np.array(right[name, s], float) for name, s in strengths.items()}
    chosen = _rule(hits, min(tested, len(known))) if rule == "auto" else rule
    return Choice(chosen, strengths[chosen], {name: float(h.mean()) for name, h in hits.items()})


def _guess(
    x: Array,
    graph: csr_matrix | None,
    label: NDArray[np.int64],
    held: list[int],
    classes: int,
    tried: set[str],
    uniform_prior: bool,
) -> dict[Rule, NDArray[np.int64]]:
    """Every rule's guess of the held rows, whose labels are hidden."""
    guesses = {("classifier", s): classify(x, label, s).predict(x[held]) for s in STRENGTHS}
    if tried & {"self_training", "diffusion"}:
        p = self_train(x, label).predict_proba(x)
        guesses["self_training", STRENGTH] = p[held].argmax(1)
    if "diffusion" in tried and graph is not None:
        guesses["diffusion", STRENGTH] = diffuse(graph, p)[held].argmax(1)
    if "propagation" in tried and graph is not None:
        guesses["propagation", STRENGTH] = propagate(graph, label, classes, uniform_prior)[held].argmax(1)
    return guesses


def _rule(hits: dict[str, Array], rows: int) -> str:
    """Of the rules that `rows` labels cannot tell from the best, the one that uses more of the texts.

    hits: 1 where a rule was right. Told apart: by more than one label, and by more than a standard error of the
    difference, label by label.
    """
    best = max(hits.values(), key=lambda h: h.mean())
    near = {name for name, h in hits.items() if (best - h).mean() <= max((best - h).std() / rows**0.5, 1 / rows)}
    return next(name for name in ("diffusion", "self_training", "classifier") if name in near)
