"""The figures of a report, as SVG in the page's text colour, so that they fit a light and a dark page."""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from cycler import cycler
from matplotlib.colors import LinearSegmentedColormap, PowerNorm
from matplotlib.figure import Figure

COLOURS = ("#3b82f6", "#f59e0b", "#10b981", "#ef4444", "#8b5cf6", "#06b6d4", "#ec4899", "#84cc16")
INK = "#010203"  # a placeholder, replaced by currentColor in the SVG
STYLE: Any = {
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.prop_cycle": cycler(color=COLOURS),
    "legend.frameon": False,
    "font.size": 9,
    "svg.fonttype": "none",
    "svg.hashsalt": "nanonet",
    # class names may contain dollar signs
    "text.parse_math": False,
}
TERMS = {"ce": "cross-entropy on the labels", "teacher": "divergence from the teacher", "peers": "from the peers"}
ANNOTATED = 12  # classes up to which every cell of the confusion matrix shows its count
NAMED = 160  # classes up to which every row has its name


def draw_losses(metrics: Sequence[dict[str, Any]]) -> str:
    """The three terms of every student against the step, raw and smoothed; "" where nothing was logged."""
    shown = {term: _numbers(metrics, term) for term in TERMS}
    shown = {term: values for term, values in shown.items() if values.size and np.nan_to_num(values).any()}
    if not shown:
        return ""
    steps = [record["step"] for record in metrics]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(3.4 * len(shown), 2.6), layout="constrained")
        axes = figure.subplots(1, len(shown), squeeze=False)[0]
        for axis, (term, values) in zip(axes, shown.items(), strict=True):
            for k, line in enumerate(values.T):
                colour = COLOURS[k % len(COLOURS)]
                axis.plot(steps, line, color=colour, alpha=0.25, linewidth=0.8)
                axis.plot(steps, _smooth(line), color=colour, linewidth=1.6, label=f"student {k}")
            if term == "ce" and "teacher_ce" in metrics[0]:
                teacher_ce = np.array([record["teacher_ce"] for record in metrics], float)
                axis.plot(steps, _smooth(teacher_ce), color=INK, linestyle="--", linewidth=1.2, label="teacher")
            axis.set_title(TERMS[term], fontsize=9)
            axis.set_xlabel("step")
            axis.set_ylim(bottom=0)
        axes[0].set_ylabel("nats")
        axes[0].legend(fontsize=8)
        return _svg(figure, "losses")


def draw_confusion(counts: Sequence[Sequence[int]], classes: Sequence[str]) -> str:
    """The confusion matrix, coloured by the fraction of the true class; with counts where they fit."""
    C = len(classes)
    matrix = np.asarray(counts, float)
    share = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    names = [name if len(name) <= 24 else name[:23] + "…" for name in map(_one_line, classes)]
    side = min(max(3.2, 1.6 + 0.42 * C), 9.5)
    # font size of the names: that of the cells
    size = min(9.0, 9.5 * 72 * 0.62 / max(C, 1))
    shades = LinearSegmentedColormap.from_list("share", [(0.23, 0.51, 0.96, 0.0), (0.23, 0.51, 0.96, 1.0)])
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(side, side), layout="constrained")
        axis = figure.subplots()
        # a power law makes the small fractions off the diagonal visible
        axis.imshow(share, cmap=shades, norm=PowerNorm(0.6, 0, 1), interpolation="nearest")
        axis.set_xlabel("predicted")
        axis.set_ylabel("true")
        if C <= NAMED:
            axis.set_xticks(range(C), names, rotation=90, fontsize=size)
            axis.set_yticks(range(C), names, fontsize=size)
        axis.tick_params(length=0 if C > ANNOTATED else 3)
        if C <= ANNOTATED:
            for i, j in np.ndindex(C, C):
                if matrix[i, j]:
                    axis.text(j, i, f"{matrix[i, j]:.0f}", ha="center", va="center", fontsize=8)
        for spine in axis.spines.values():
            spine.set_visible(True)
            spine.set_linewidth(0.5)
        return _svg(figure, "confusion")


def draw_sizes(points: Sequence[tuple[str, float | None, int]]) -> str:
    """Accuracy against parameters: (name, accuracy, parameters); "" where nothing was tested."""
    tested = [(name, 100 * accuracy, count / 1e6) for name, accuracy, count in points if accuracy is not None]
    if not tested:
        return ""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.4, 2.8), layout="constrained")
        axis = figure.subplots()
        for i, (name, accuracy, count) in enumerate(tested):
            axis.scatter([count], [accuracy], s=55, color=COLOURS[i % len(COLOURS)], label=_one_line(name), zorder=3)
        axis.set_xlabel("parameters [millions]")
        axis.set_ylabel("test accuracy [%]")
        axis.set_xlim(0, 1.15 * max(count for _, _, count in tested))
        axis.margins(y=0.25)
        axis.grid(alpha=0.15, color=INK)
        figure.legend(loc="outside right upper", fontsize=8)
        return _svg(figure, "size")


def draw_reliability(found: Sequence[tuple[str, dict[str, Any]]]) -> str:
    """Accuracy against mean confidence of each bin, with an area as its rows: (name, reliability); "" without any."""
    if not found:
        return ""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.4, 3.2), layout="constrained")
        axis = figure.subplots()
        axis.plot([0, 100], [0, 100], color=INK, linestyle="--", linewidth=0.8, alpha=0.5)
        for i, (name, one) in enumerate(found):
            bins, colour = one["bins"], COLOURS[i % len(COLOURS)]
            rows = np.array([each["rows"] for each in bins], float)
            x, y = (100 * np.array([each[key] for each in bins]) for key in ("confidence", "accuracy"))
            axis.plot(x, y, color=colour, linewidth=1, label=_one_line(name))
            axis.scatter(x, y, s=4 + 120 * rows / rows.sum(), color=colour, alpha=0.7, zorder=3)
        axis.set_xlabel("mean confidence of the bin [%]")
        axis.set_ylabel("test accuracy [%]")
        axis.set_aspect("equal")
        axis.grid(alpha=0.15, color=INK)
        figure.legend(loc="outside right upper", fontsize=8)
        return _svg(figure, "reliability")


def _numbers(metrics: Sequence[dict[str, Any]], term: str) -> np.ndarray[Any, Any]:
    """(steps, K)"""
    return np.array([record[term] for record in metrics], float) if metrics else np.empty((0, 0))


def _smooth(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Moving average over a twentieth of the run."""
    window = max(1, len(values) // 20)
    total = np.concatenate([[0.0], np.cumsum(values)])
    last = np.arange(1, len(values) + 1)
    first = np.maximum(last - window, 0)
    return (total[last] - total[first]) / (last - first)


def _one_line(text: str) -> str:
    """`text` without control characters, which XML forbids, and line breaks."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]+", " ", text)


def _own_ids(tag: str, name: str) -> str:
    """An SVG tag with ids that are unique in a page of several figures, in the page's text colour."""
    return re.sub(r'(id="|url\(#|href="#)', rf"\g<1>{name}-", tag.replace(INK, "currentColor"))


def _svg(figure: Figure, name: str) -> str:
    file = io.StringIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # the browser draws the text
        figure.savefig(file, format="svg", transparent=True, dpi=200, metadata={"Date": None})
    text = file.getvalue()
    # in tags only: a class name may contain any of these words
    text = re.sub(r"<[^>]*>", lambda tag: _own_ids(tag[0], name), text[text.index("<svg") :])
    width = math.ceil(figure.get_figwidth() * 96)
    shape = f'role="img" aria-label="{name}" style="width:{width}px;max-width:100%;height:auto"'
    return re.sub(r'width="[^"]*pt" height="[^"]*pt"', shape, text, count=1)
