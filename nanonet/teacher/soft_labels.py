"""Soft targets for unlabelled rows from a frozen encoder's embeddings and a handful of labels.

Four rules. classifier: a logistic regression on the labelled embeddings. self_training: the same, trained further on
its own surest guesses, more of them each round. diffusion: its probabilities, averaged over the graph of nearest
neighbours. propagation: the labels themselves, spread over that graph. The last three also use where the unlabelled
rows lie. Which one is best depends on the data (ag_news gains ten points from diffusion, trec6 loses one by it), so
it is chosen by cross-validation inside the labels (choice.py).
N rows, D features, C classes.
"""

from __future__ import annotations

import warnings

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_matrix, diags
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from torch import Tensor

Array = NDArray[np.float64]

NEIGHBOURS = 20
BLOCK = 1 << 26  # cosines held at a time
SHARPNESS = 3  # an edge weighs the cosine to this power
SPREAD, ROUNDS = 0.95, 50  # propagation: the share of a row's mass that flows on to its neighbours at each round
DIFFUSION, DIFFUSION_ROUNDS = 0.8, 20  # the neighbours' share in a row's new probabilities
SELF_ROUNDS = 10
STRENGTHS = (1.0, 10.0, 100.0)  # C of the logistic regression
STRENGTH = 10.0  # of the self-training classifier


def calibrate_confidence(logits: Tensor, cv_accuracy: float) -> Tensor:
    """Divide logits (N,C) by the temperature at which their mean largest probability is `cv_accuracy`.

    A teacher is as sure of itself as its cross-validated accuracy says it may be; no label of these rows is used. But
    never less sure than halfway between chance and certainty: an accuracy found on twenty labels may be chance by
    accident, and targets as flat as that teach nothing. By bisection on the device, without a look from the host.
    """
    C = logits.shape[-1]
    goal = min(max(cv_accuracy, (1 + 1 / C) / 2), 1 - 1e-3)
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
    block = max(1, min(2048, BLOCK // N))
    for start in range(0, N, block):
        cosine = x[start : start + block] @ x.T
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
