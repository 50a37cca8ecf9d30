"""Soft targets for unlabelled rows from a frozen encoder's embeddings and a handful of labels.

Four rules. classifier: a logistic regression on the labelled embeddings. self_training: the same, trained further on
its own surest guesses, more of them each round. diffusion: its probabilities, averaged over the graph of nearest
neighbours. propagation: the labels themselves, spread over that graph. The last three also use where the unlabelled
rows lie. Which one is best depends on the data (ag_news gains ten points from diffusion, trec6 loses one by it), so
it is chosen by cross-validation inside the labels.
N rows, D features, C classes.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_matrix, diags
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from nanonet.config import InputError
from nanonet.data.split import folds

Array = NDArray[np.float64]

NEIGHBOURS = 20
SHARPNESS = 3  # an edge weighs the cosine to this power
SPREAD, ROUNDS = 0.95, 50  # propagation: the share of a row's mass that flows on to its neighbours at each round
DIFFUSION, DIFFUSION_ROUNDS = 0.8, 20  # the neighbours' share in a row's new probabilities
SELF_ROUNDS = 10
STRENGTHS = (1.0, 10.0, 100.0)  # C of the logistic regression
STRENGTH = 10.0  # of the self-training classifier
TRIAL_ROWS = 2000  # unlabelled rows that the cross-validation of the rules sees
TUNED_TRIAL_ROWS, TUNED_HELD_ROWS = 1000, 200  # where each fold tunes an encoder of its own: fewer, and labels enough
CLASS_TRIAL_ROWS = 40  # for every class, where that is more: a row needs neighbours of its own class

Retune = Callable[[NDArray[np.int64], NDArray[np.int64]], Tensor]


def soften(logits: Tensor, trust: float) -> Tensor:
    """Divide logits (N,C) by the temperature at which their mean largest probability is `trust`.

    A teacher is as sure of itself as its cross-validated accuracy says it may be; no label of these rows is used. But
    never less sure than halfway between chance and certainty: an accuracy found on twenty labels may be chance by
    accident, and targets as flat as that teach nothing. By bisection on the device, without a look from the host.
    """
    C = logits.shape[-1]
    goal = min(max(trust, (1 + 1 / C) / 2), 1 - 1e-3)
    logits = logits.float() - logits.float().amax(-1, keepdim=True)
    low, high = logits.new_full((), -10.0), logits.new_full((), 10.0)
    for _ in range(30):
        middle = (low + high) / 2
        sure = torch.softmax(logits * middle.exp(), -1).amax(-1).mean() > goal
        low, high = torch.where(sure, low, middle), torch.where(sure, middle, high)
    return logits * ((low + high) / 2).exp()


def neighbour_graph(embedding: Array, neighbours: int = NEIGHBOURS) -> csr_matrix:
    """Symmetrically normalised affinities D^-1/2 W D^-1/2 of L2-normalised embeddings (N,D): (N,N), sparse."""
    N = len(embedding)
    k = min(neighbours, N - 1)
    x = torch.as_tensor(embedding, dtype=torch.float32)
    near, place = [], []
    for start in range(0, N, 2048):
        cosine = x[start : start + 2048] @ x.T
        cosine[torch.arange(len(cosine)), torch.arange(start, start + len(cosine))] = -1
        value, index = cosine.topk(k, -1)
        near.append(value.clamp(min=1e-6).numpy() ** SHARPNESS)
        place.append(index.numpy())
    rows = np.repeat(np.arange(N), k)
    weight = csr_matrix((np.concatenate(near).ravel(), (rows, np.concatenate(place).ravel())), shape=(N, N))
    weight = weight.maximum(weight.T)
    scale = diags(1 / np.sqrt(np.asarray(weight.sum(1)).ravel()))
    return (scale @ weight @ scale).tocsr()


def propagate(graph: csr_matrix, label: NDArray[np.int64], classes: int, uniform_prior: bool = False) -> Array:
    """Probabilities (N,C) that flow from the labelled rows (label >= 0) along the graph.

        F <- SPREAD * S F + Y, ROUNDS times, Y one-hot rows divided by their class's count

    `uniform_prior` balances the columns to equal mass, which is right only where the classes are equally frequent.
    Source: Zhou et al. 2003, Learning with Local and Global Consistency.
    """
    source = np.zeros((len(label), classes))
    known = label >= 0
    source[known, label[known]] = 1
    source /= source.sum(0)
    flow = source.copy()
    for _ in range(ROUNDS):
        flow = SPREAD * (graph @ flow) + source
    flow = np.maximum(flow, 1e-12)
    p: Array = flow / flow.sum(1, keepdims=True)
    for _ in range(50 if uniform_prior else 0):
        p /= p.sum(0)
        p /= p.sum(1, keepdims=True)
    return p


def classify(embedding: Array, label: NDArray[np.int64], strength: float) -> LogisticRegression:
    """A logistic regression on the labelled rows."""
    known = label >= 0
    return LogisticRegression(C=strength, max_iter=1000).fit(embedding[known], label[known])


def linear(head: LogisticRegression) -> tuple[Tensor, Tensor]:
    """A classifier's weight (C,D) and bias (C,), float32; scikit-learn keeps one row where there are two classes."""
    weight, bias = (torch.from_numpy(np.asarray(t)).float() for t in (head.coef_, head.intercept_))
    if len(weight) == 1:
        weight, bias = torch.cat([torch.zeros_like(weight), weight]), torch.cat([torch.zeros_like(bias), bias])
    return weight, bias


def self_train(embedding: Array, label: NDArray[np.int64], strength: float = STRENGTH) -> LogisticRegression:
    """The classifier, fitted SELF_ROUNDS times more on the labelled rows and its own guesses.

    Round r takes the surest r / SELF_ROUNDS of the rows that it gives to each class: so a class that is easy does not
    crowd out the others, and no class prior is assumed. Source: Zou et al. 2018 (arXiv 1810.07911), class-balanced
    self-training.
    """
    model = classify(embedding, label, strength).set_params(max_iter=50, warm_start=True, tol=1e-3)
    known = label >= 0
    for r in range(1, SELF_ROUNDS + 1):
        p = model.predict_proba(embedding)
        guess = np.where(known, label, model.classes_[p.argmax(1)])
        sure, kept = p.max(1), known.copy()
        for c in model.classes_:
            rows = np.flatnonzero((guess == c) & ~known)
            kept[rows[np.argsort(-sure[rows], kind="stable")[: len(rows) * r // SELF_ROUNDS]]] = True
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # the next round goes on from here
            model.fit(embedding[kept], guess[kept])
    return model


def diffuse(graph: csr_matrix, p: Array) -> Array:
    """Probabilities (N,C) averaged over the graph: rows that lie together come to agree.

    F <- DIFFUSION * S F + (1 - DIFFUSION) * p, DIFFUSION_ROUNDS times. Source: Huang et al. 2021 (arXiv 2010.13993),
    the smoothing of Correct and Smooth.
    """
    flow = p
    for _ in range(DIFFUSION_ROUNDS):
        flow = DIFFUSION * (graph @ flow) + (1 - DIFFUSION) * p
    result: Array = flow / flow.sum(1, keepdims=True)
    return result


@dataclass(frozen=True)
class Choice:
    """Which rule the labels prefer: its name, the classifier's strength, and each rule's cross-validated accuracy."""

    rule: str
    strength: float
    accuracy: dict[str, float]

    @property
    def trust(self) -> float:
        return self.accuracy[self.rule]


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
    are three folds, and no more of them than it takes to hold TUNED_HELD_ROWS labels out.

    Raises:
        InputError: no class has two labels, so none can be hidden.
    """
    known = np.flatnonzero(label >= 0)
    most = max(TUNED_TRIAL_ROWS if retune else TRIAL_ROWS, CLASS_TRIAL_ROWS * classes)
    free = np.random.default_rng(seed).permutation(np.flatnonzero(label < 0))[:most]
    rows = np.concatenate([known, free])
    x, y = embedding[rows], label[rows]
    tried = {"self_training", "diffusion"} if rule == "auto" else {rule}
    linked = bool(tried & {"diffusion", "propagation"})
    graph = neighbour_graph(x) if linked and not retune else None
    right: dict[tuple[str, float], list[bool]] = {}
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
            guesses = {("classifier", s): classify(x, hidden, s).predict(x[held]) for s in STRENGTHS}
            if tried & {"self_training", "diffusion"}:
                p = self_train(x, hidden).predict_proba(x)
                guesses["self_training", STRENGTH] = p[held].argmax(1)
            if "diffusion" in tried and graph is not None:
                guesses["diffusion", STRENGTH] = diffuse(graph, p)[held].argmax(1)
            if "propagation" in tried and graph is not None:
                guesses["propagation", STRENGTH] = propagate(graph, hidden, classes, uniform_prior)[held].argmax(1)
            for key, guess in guesses.items():
                right.setdefault(key, []).extend(guess == y[held])
    if not right:
        raise InputError("--labels-per-class 1: soft targets are cross-validated inside the labels; give 2 or more")
    mean = {key: float(np.mean(hits)) for key, hits in right.items()}
    strengths = {name: s for (name, s) in sorted(mean, key=lambda key: mean[key])}
    accuracy = {name: mean[name, s] for name, s in strengths.items()}
    if rule != "auto":
        return Choice(rule, strengths[rule], accuracy)
    # of rules that so few labels cannot tell apart (one standard error) the one that has used more of the rows
    top = max(accuracy.values())
    margin = (top * (1 - top) / min(tested, len(known))) ** 0.5
    best = next(r for r in ("diffusion", "self_training", "classifier") if accuracy[r] >= top - margin)
    return Choice(best, strengths[best], accuracy)
