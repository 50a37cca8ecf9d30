"""Accuracy, macro-F1 and confusion counts of logits."""

from __future__ import annotations

from sklearn.metrics import confusion_matrix, f1_score
from torch import Tensor


def scores(logits: Tensor, labels: list[int]) -> dict[str, float]:
    """Accuracy and macro-averaged F1 of logits (N,C), as fractions."""
    predicted = logits.argmax(-1).numpy()
    return {
        "accuracy": float((predicted == labels).mean()),
        "macro_f1": float(f1_score(labels, predicted, average="macro", zero_division=0)),
    }


def wilson(accuracy: float, rows: int) -> tuple[float, float]:
    """The 95% interval of an accuracy that was measured on so many rows (Wilson 1927), as fractions."""
    z = 1.959964
    middle = (accuracy + z * z / (2 * rows)) / (1 + z * z / rows)
    half = z / (1 + z * z / rows) * (accuracy * (1 - accuracy) / rows + z * z / (4 * rows * rows)) ** 0.5
    return max(middle - half, 0.0), min(middle + half, 1.0)


def confusion(logits: Tensor, labels: list[int]) -> list[list[int]]:
    """Rows: true class; columns: predicted class; counts (C,C)."""
    classes = list(range(logits.shape[-1]))
    return confusion_matrix(labels, logits.argmax(-1).numpy(), labels=classes).tolist()
