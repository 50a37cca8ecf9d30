"""Figures of every size and of the terms that were used."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from nanonet.report import figures


@pytest.mark.parametrize("C", [2, 12, 40, 150, 200])
def test_confusion_matrices_of_every_size(C: int) -> None:
    # 12 is the last that shows counts, 160 the last that names its classes
    svg = figures.draw_confusion([[7 * (i == j) for j in range(C)] for i in range(C)], [f"class-{i}" for i in range(C)])
    ElementTree.fromstring(svg.replace("xlink:", ""))
    assert ("class-1<" in svg) == (C <= figures.NAMED) and (">7<" in svg) == (C <= figures.ANNOTATED)
    assert len(svg) < 1_000_000


def test_losses_show_the_terms_that_were_used() -> None:
    metrics = [{"step": i, "ce": [1.0 / (i + 1)], "teacher": [0.3], "peers": [0.0]} for i in range(30)]
    svg = figures.draw_losses(metrics)
    assert "cross-entropy" in svg and "divergence from the teacher" in svg and "peers" not in svg
    assert figures.draw_losses([]) == ""
