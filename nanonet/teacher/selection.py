"""The choice of the rule that makes the soft labels, by cross-validation inside the labels.

N rows, D features, C classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from scipy.sparse import csr_matrix
from torch import Tensor

from nanonet.data.split import folds
from nanonet.errors import InputError
from nanonet.teacher.neighbours import neighbour_graph
from nanonet.teacher.soft_labels import (
    INVERSE_REGULARISATION,
    INVERSE_REGULARISATIONS,
    Array,
    Embedding,
    Labels,
    classify,
    diffuse,
    propagate,
    self_train,
)

TRIAL_ROWS = 2000  # unlabelled rows that the cross-validation of the rules uses
TUNED_TRIAL_ROWS, TUNED_VALIDATION_ROWS = 1000, 200  # fewer where each fold tunes an encoder of its own
CLASS_TRIAL_ROWS = 40  # for every class, where that is more: a row needs neighbours of its own class

Candidate = tuple[str, float]  # a rule and the inverse regularisation of its classifier


@dataclass(frozen=True)
class Choice:
    """The chosen rule, the inverse regularisation of its classifier, and each rule's cross-validated accuracy.

    tested: the labels that the accuracies are of; 0 where that is not known.
    expected: see `expected_accuracy`; None where nothing was cross-validated
    """

    rule: str
    inverse_regularisation: float
    accuracy: dict[str, float]
    tested: int = 0
    expected: float | None = None

    @property
    def cv_accuracy(self) -> float | None:
        """None where there was no label to measure it on."""
        return self.accuracy.get(self.rule)

    @property
    def best_estimate(self) -> float | None:
        """The accuracy to expect on unlabelled rows; None where there was no label to measure any on."""
        return self.cv_accuracy if self.expected is None else self.expected


def trial_rows(classes: int, tuned: bool) -> int:
    """The largest number of unlabelled rows that `choose` uses."""
    return max(TUNED_TRIAL_ROWS if tuned else TRIAL_ROWS, CLASS_TRIAL_ROWS * classes)


def check_labels(label: Tensor) -> None:
    """Refuse labels (N,), -100 where unlabelled, of which none can be hidden: no class has two.

    Raises:
        InputError: says so.
    """
    if not (label[label >= 0].bincount() > 1).any():
        raise InputError(
            "soft labels are cross-validated inside the labels, and no class has two; raise --labels-per-class, or"
            " add labelled rows"
        )


@dataclass(frozen=True, eq=False)
class Trial:
    """The rows (n,) that the rules are cross-validated on, labelled ones first; each fold's validation rows among them,
    and its labels (n,), -100 where these hide them."""

    rows: Labels
    validation: list[list[int]]
    label: list[Labels]


def make_trial(label: Labels, classes: int, seed: int, tuned: bool) -> Trial:
    """The unlabelled rows, or some of them, are used as in the run.

    tuned: each fold tunes an encoder of its own. Then there are three folds, of which no more run than it takes to
        validate on TUNED_VALIDATION_ROWS labels.
    """
    labelled = np.flatnonzero(label >= 0)
    unlabelled = np.random.default_rng(seed).permutation(np.flatnonzero(label < 0))
    rows = np.concatenate([labelled, unlabelled[: trial_rows(classes, tuned)]])
    validation = list(_validation_rows(label[labelled].tolist(), seed, tuned))
    visible = [np.where(np.isin(np.arange(len(rows)), hidden), -100, label[rows]) for hidden in validation]
    return Trial(rows, validation, visible)


def choose(
    embedding: Embedding,
    label: Labels,
    classes: int,
    rule: str,
    seed: int,
    uniform_prior: bool = False,
    tuned: Sequence[Embedding] = (),
) -> tuple[Choice, list[Labels]]:
    """Cross-validate the rules inside the labelled rows; `rule` other than "auto" is chosen as it is.

    Returns also what each fold's chosen rule says of the trial's rows (n,).
    Each fold's labels are hidden from the rules. `check_labels` refuses labels that cannot be cross-validated.
    tuned: an encoder tuned on the labels has seen those that a fold hides, so each fold needs embeddings (n,D) of the
        trial's rows by an encoder that has not
    """
    trial = make_trial(label, classes, seed, bool(tuned))
    x, y = embedding[trial.rows], label[trial.rows]
    tried = {"self_training", "diffusion"} if rule == "auto" else {rule}
    on_graph = bool(tried & {"diffusion", "propagation"})
    graph = neighbour_graph(x) if on_graph and not tuned else None
    correct: dict[Candidate, list[bool]] = {}
    said: dict[Candidate, list[Labels]] = {}
    tested = 0
    for fold, (validation, visible) in enumerate(zip(trial.validation, trial.label, strict=True)):
        tested += len(validation)
        if tuned:
            x = tuned[fold]
            graph = neighbour_graph(x) if on_graph else None
        for key, predicted in _predict(x, graph, visible, classes, tried, uniform_prior).items():
            correct.setdefault(key, []).extend((predicted == y)[validation])
            said.setdefault(key, []).append(predicted)
    # {rule: inverse regularisation}: in order of correct predictions, so that the best of a rule's values stays
    best = dict(sorted(correct, key=lambda key: sum(correct[key])))
    hits = {name: np.array(correct[name, value], float) for name, value in best.items()}
    tested = min(tested, int((label >= 0).sum()))
    chosen = _choose_rule(hits, tested) if rule == "auto" else rule
    choice = Choice(chosen, best[chosen], {name: float(h.mean()) for name, h in hits.items()}, tested)
    return choice, said[chosen, best[chosen]]


def expected_accuracy(cv_accuracy: float, said: Sequence[Labels], final: Labels) -> float:
    """The accuracy to expect of a teacher whose labels of unlabelled rows are `final` (n,).

    The rules of the folds, which say `said`, have fewer labels than the teacher and no pseudo-labels, so it errs less
    than they do. Of two models the better one lies nearer to the others: their cross-validated error shrinks, or grows,
    by how much less the teacher differs from them than they from one another.
    """
    if not len(final):  # every row has a label
        return cv_accuracy
    between = np.mean([(a != b).mean() for a, b in combinations(said, 2)] or [0])
    return 1 - (1 - cv_accuracy) * float(np.mean([(a != final).mean() for a in said]) / between if between else 1)


def _validation_rows(label: list[int], seed: int, tuned: bool) -> Iterator[list[int]]:
    """The validation rows of each fold."""
    tested = 0
    for repeat in range(1 if tuned else 2):
        for _, validation in folds(label, 3 if tuned else 5, seed + repeat):
            if tuned and tested >= TUNED_VALIDATION_ROWS:
                return
            tested += len(validation)
            yield validation


def _predict(
    x: Embedding,
    graph: csr_matrix | None,
    label: Labels,
    classes: int,
    tried: set[str],
    uniform_prior: bool,
) -> dict[Candidate, Labels]:
    """Every candidate's prediction (n,) of all rows."""
    found: dict[Candidate, Labels] = {
        ("classifier", c): classify(x, label, c).predict(x) for c in INVERSE_REGULARISATIONS
    }
    if tried & {"self_training", "diffusion"}:
        p = self_train(x, label).predict_proba(x)
        found["self_training", INVERSE_REGULARISATION] = p.argmax(1)
    if "diffusion" in tried and graph is not None:
        found["diffusion", INVERSE_REGULARISATION] = diffuse(graph, p).argmax(1)
    if "propagation" in tried and graph is not None:
        found["propagation", INVERSE_REGULARISATION] = propagate(graph, label, classes, uniform_prior).argmax(1)
    return found


def _choose_rule(hits: dict[str, Array], rows: int) -> str:
    """Of the rules that `rows` labels cannot distinguish from the best, the one that uses most of the texts.

    hits: 1 where a rule's prediction was correct. Two rules are distinguished if they differ by more than one label and
    by more than a standard error of the paired difference.
    """
    best = max(hits.values(), key=lambda h: h.mean())
    near = {name for name, h in hits.items() if (best - h).mean() <= max((best - h).std() / rows**0.5, 1 / rows)}
    return next(name for name in ("diffusion", "self_training", "classifier") if name in near)
