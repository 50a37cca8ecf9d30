"""Rows as one template writes them are what json writes."""

from __future__ import annotations

import json

import pytest
import torch

from nanonet.inference.answers import Layout, json_lines

TEXTS = ['a "quoted" \\ word', "tab\tand \x01", "é 漢 😀", "", "\u2028 \x9b2J \u202e"]


@pytest.mark.parametrize("narrow", [False, True])
@pytest.mark.parametrize("threshold", [0.0, 0.6])
def test_rows_are_those_of_json(narrow: bool, threshold: float) -> None:
    classes = ['100% "sure"', "é\u2028"]
    p = torch.tensor([[0.25, 0.75], [0.5, 0.5], [1 - 1e-7, 1e-7], [0.59999996, 0.40000004]])
    layout, texts = Layout(classes, True, threshold, narrow), [{"text": text} for text in TEXTS]
    lines, unsure = json_lines(texts, p, [0, 1, 2, 4], layout)
    rows = [json.loads(line) for line in lines]
    assert [row["text"] for row in rows] == TEXTS
    assert all(line.isascii() if narrow else line.isprintable() for line in lines)
    assert rows[0]["probabilities"] == {classes[0]: 0.25, classes[1]: 0.75} and rows[0]["label"] == classes[1]
    assert rows[2]["probability"] == 1.0 and rows[2]["probabilities"] == {classes[0]: 1.0, classes[1]: 0.0}
    assert set(list(rows[3].values())[1:]) == {None}
    # a tie goes to the first class; 0.59999996 is written as 0.6, which is not below
    assert [row["label"] for row in rows] == [
        classes[1],
        None if threshold else classes[0],
        classes[0],
        None,
        classes[0],
    ]
    assert unsure == (1 if threshold else 0)
    plain = {"text": TEXTS[0], "label": classes[1], "probability": 0.75, "probabilities": rows[0]["probabilities"]}
    assert rows[0] == plain | ({"unsure": False} if threshold else {})
    if narrow:
        assert lines[2] == json.dumps(rows[2])


def test_without_the_texts() -> None:
    layout = Layout(["x", "y"], False, 0, False)
    lines, _ = json_lines([{"text": "a"}, {"text": ""}], torch.tensor([[0.5, 0.5]]), [0], layout)
    assert lines == [
        '{"label": "x", "probability": 0.5, "probabilities": {"x": 0.5, "y": 0.5}}',
        '{"label": null, "probability": null, "probabilities": null}',
    ]


def test_a_pair_has_the_names_of_its_columns() -> None:
    texts = [{"100% a": "one", "b": 'two "2"'}]
    lines, _ = json_lines(texts, torch.tensor([[0.5, 0.5]]), [0], Layout(["x", "y"], True, 0, False))
    row = json.loads(lines[0])
    assert row == texts[0] | {"label": "x", "probability": 0.5, "probabilities": {"x": 0.5, "y": 0.5}}
    assert list(row)[:2] == ["100% a", "b"]
