"""Do probabilities mean what they say? Confidence against accuracy."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

BINS = 15
COVERAGES = (90, 70, 50)  # the most confident rows [percent]


def reliability(logits: Tensor, labels: list[int]) -> dict[str, Any]:
    """How the confidence of logits (N,C), the largest probability of a row, agrees with their accuracy; fractions.

    mean_confidence
    calibration_error: the expected calibration error, sum over bins of (rows / N) * |accuracy - mean confidence|, in
        BINS bins of equal width ((b-1)/BINS, b/BINS]. Source: Naeini et al. 2015; Guo et al. 2017 (arXiv 1706.04599)
    accuracy_of_most_confident: {percent: accuracy} of so many percent of the rows, at least one
    bins: rows, mean confidence and accuracy of each bin that holds rows

    Raises:
        ValueError: another number of labels than rows, or none.
    """
    N = len(labels)
    if not N or logits.dim() != 2 or len(logits) != N:
        raise ValueError(f"logits: expected ({N},C) with N > 0 for {N} labels, got {tuple(logits.shape)}")
    confidence, predicted = logits.double().softmax(-1).max(-1)
    right = (predicted == torch.tensor(labels, device=predicted.device)).double()
    bin_of = ((confidence * BINS).ceil().long() - 1).clamp(0, BINS - 1)
    bins, error = [], 0.0
    for b in bin_of.unique().tolist():
        rows = bin_of == b
        count, mean, accuracy = int(rows.sum()), confidence[rows].mean().item(), right[rows].mean().item()
        error += count / N * abs(accuracy - mean)
        bins.append({"rows": count, "confidence": round(mean, 6), "accuracy": round(accuracy, 6)})
    order = confidence.argsort(descending=True, stable=True)
    return {
        "mean_confidence": round(confidence.mean().item(), 6),
        "calibration_error": round(error, 6),
        "accuracy_of_most_confident": {
            str(percent): round(right[order[: max(1, N * percent // 100)]].mean().item(), 6) for percent in COVERAGES
        },
        "bins": bins,
    }
