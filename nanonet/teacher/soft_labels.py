"""Soft labels of unlabelled rows from the embeddings of an encoder and a few labels.

Four rules. classifier: a logistic regression on the labelled embeddings. self_training: that classifier, trained
further on its most confident pseudo-labels, more of them each round. diffusion: its probabilities, averaged over the
graph of nearest neighbours (neighbours.py). propagation: label propagation over that graph. The last three also use the
embeddings of the unlabelled rows. Which rule is best depends on the data (diffusion gains ten points on ag_news and
loses one on trec6), so it is chosen by cross-validation inside the labels (selection.py).
N rows, D features, C classes.
"""

from __future__ import annotations

import warnings

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from torch import Tensor

Array = NDArray[np.float64]
Embedding = NDArray[np.floating]  # float32 as an encoder makes them: in float64 a copy would be twice their size
Labels = NDArray[np.int64]

PROPAGATION, PROPAGATION_ROUNDS = 0.95, 50  # the share of a row's mass that flows to its neighbours in each round
DIFFUSION, DIFFUSION_ROUNDS = 0.8, 20  # the neighbours' share in a row's new probabilities
SELF_TRAINING_ROUNDS = 10
INVERSE_REGULARISATIONS = (1.0, 10.0, 100.0)  # C of the logistic regression, to choose from
INVERSE_REGULARISATION = 10.0  # C of the self-training classifier


def calibrate_confidence(logits: Tensor, cv_accuracy: float | None) -> Tensor:
    """Divide logits (N,C) by the temperature at which their mean largest probability is `cv_accuracy`.

    So the mean confidence equals the cross-validated accuracy, but is at least halfway between chance and certainty: an
    accuracy measured on twenty labels may be at chance by accident, and soft labels as flat as that teach nothing. No
    label of these rows is used.
    cv_accuracy: None, where there is no label to measure it on, leaves the logits as they are.
    """
    if cv_accuracy is None:
        return logits.float()
    logits = logits.float() - logits.float().amax(-1, keepdim=True)
    return logits * confidence_scale(logits, max(cv_accuracy, (1 + 1 / logits.shape[-1]) / 2))


def confidence_scale(logits: Tensor, confidence: float) -> Tensor:
    """The inverse temperature () at which the mean largest probability of logits (N,C) is `confidence`, at most 0.999.

    By bisection on the device, without waiting for it.
    """
    goal = min(confidence, 1 - 1e-3)
    logits = logits.float() - logits.float().amax(-1, keepdim=True)
    low, high = logits.new_full((), -10.0), logits.new_full((), 10.0)
    for _ in range(30):
        middle = (low + high) / 2
        above = torch.softmax(logits * middle.exp(), -1).amax(-1).mean() > goal
        low, high = torch.where(above, low, middle), torch.where(above, middle, high)
    return ((low + high) / 2).exp()


def propagate(graph: csr_matrix, label: Labels, classes: int, uniform_prior: bool = False) -> Array:
    """Label propagation: probabilities (N,C) that flow from the labelled rows (label >= 0) along the graph.

        F <- PROPAGATION * S F + Y, PROPAGATION_ROUNDS times, Y one-hot rows divided by their class's count

    `uniform_prior` balances the columns to equal mass, which is right only if the classes are equally frequent.
    Source: Zhou et al. 2003, Learning with Local and Global Consistency.
    """
    source = np.zeros((len(label), classes))
    labelled = label >= 0
    source[labelled, label[labelled]] = 1
    source /= source.sum(0)
    flow = source.copy()
    for _ in range(PROPAGATION_ROUNDS):
        flow = PROPAGATION * (graph @ flow) + source
    flow = np.maximum(flow, 1e-12)
    p: Array = flow / flow.sum(1, keepdims=True)
    for _ in range(50 if uniform_prior else 0):
        p /= p.sum(0)
        p /= p.sum(1, keepdims=True)
    return p


def classify(embedding: Embedding, label: Labels, inverse_regularisation: float) -> LogisticRegression:
    """A logistic regression on the labelled rows, fitted in float64."""
    labelled = label >= 0
    x = np.asarray(embedding[labelled], np.float64)
    return LogisticRegression(C=inverse_regularisation, max_iter=1000).fit(x, label[labelled])


def linear_head(classifier: LogisticRegression) -> tuple[Tensor, Tensor]:
    """Weight (C,D) and bias (C,) of a classifier, float32; for two classes scikit-learn stores one row only."""
    weight, bias = (torch.from_numpy(np.asarray(t)).float() for t in (classifier.coef_, classifier.intercept_))
    if len(weight) == 1:
        weight, bias = torch.cat([torch.zeros_like(weight), weight]), torch.cat([torch.zeros_like(bias), bias])
    return weight, bias


def self_train(
    embedding: Embedding, label: Labels, inverse_regularisation: float = INVERSE_REGULARISATION
) -> LogisticRegression:
    """The classifier, fitted SELF_TRAINING_ROUNDS times more on the labelled rows and its own pseudo-labels.

    Round r uses the most confident r / SELF_TRAINING_ROUNDS of the rows of each predicted class: so an easy class does
    not crowd out the others, and no class prior is assumed. Source: Zou et al. 2018 (arXiv 1810.07911), class-balanced
    self-training.
    """
    model = classify(embedding, label, inverse_regularisation).set_params(max_iter=50, warm_start=True, tol=1e-3)
    labelled = label >= 0
    for r in range(1, SELF_TRAINING_ROUNDS + 1):
        p = model.predict_proba(embedding)
        pseudo_label = np.where(labelled, label, model.classes_[p.argmax(1)])
        confidence, used = p.max(1), labelled.copy()
        for c in model.classes_:
            rows = np.flatnonzero((pseudo_label == c) & ~labelled)
            count = len(rows) * r // SELF_TRAINING_ROUNDS
            used[rows[np.argsort(-confidence[rows], kind="stable")[:count]]] = True
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # the next round continues from here
            model.fit(np.asarray(embedding[used], np.float64), pseudo_label[used])
    return model


def diffuse(graph: csr_matrix, p: Array) -> Array:
    """Probabilities (N,C) averaged over the graph: neighbouring rows come to agree.

    F <- DIFFUSION * S F + (1 - DIFFUSION) * p, DIFFUSION_ROUNDS times. Source: Huang et al. 2021 (arXiv 2010.13993),
    the smoothing of Correct and Smooth.
    """
    flow = p
    for _ in range(DIFFUSION_ROUNDS):
        flow = DIFFUSION * (graph @ flow) + (1 - DIFFUSION) * p
    result: Array = flow / flow.sum(1, keepdims=True)
    return result
