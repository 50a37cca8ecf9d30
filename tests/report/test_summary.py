"""The report of runs that a real one seldom is: no test rows, one student, odd names, numbers that are none."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from nanonet.config.train import TrainConfig
from nanonet.report import figures
from nanonet.report import summary as report
from nanonet.report.html import headline, render_html, report_rows
from nanonet.report.summary import Facts, write_report
from nanonet.teacher.selection import Choice

LABELS = [0, 1, 2, 1, 0, 2]
NAN = float("nan")


class Balance(HTMLParser):
    """Every tag that is opened is closed, and nothing is fetched or run."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        assert tag not in ("script", "link", "iframe", "object")
        assert not [
            value for name, value in attrs if name in ("src", "href") and not str(value).startswith(("#", "data:"))
        ]
        if tag not in ("meta", "br", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def make(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    K: int = 2,
    test: bool = True,
    choice: Choice | None = None,
    probe: torch.Tensor | None = None,
    **facts: Any,
) -> dict[str, Any]:
    """write_report of K students, the last one right about every test row and the first one about none."""
    monkeypatch.setattr(report, "count_parameters", lambda cohort: (2_000, 300))
    right = torch.eye(3)[LABELS] * 9
    logits = torch.stack([right.roll(1, -1)] * (K - 1) + [right])
    probe = right.roll(1, -1) if probe is None else probe
    outcome = {"students": logits, "teacher": right, "linear_probe": probe} if test else {}
    values: dict[str, Any] = {
        "config": TrainConfig(output=str(folder)),
        "name": "news",
        "classes": ["a", "b", "c"],
        "label": torch.tensor([0, 1, 2, -100, -100]),
        "validation": 2,
        "views": ["none"] * K,
        "mapping": [[0, 5]] * K,
        "divergence": [0.5] * K,
        "agreement": [0.25] * K,
        "best": K - 1,
        "teacher": "news-encoder",
        "parameters": 4_000,
    }
    cohort: Any = nn.Linear(1, 1)
    choice = choice or Choice("diffusion", 1.0, {"diffusion": 0.8, "classifier": 0.7}, 10)
    write_report(folder, Facts(**values | facts), cohort, choice, outcome, LABELS if test else [], {"fit": 2.0})
    return json.loads((folder / "report.json").read_text())


def test_a_baseline_of_some_test_rows_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    probe = torch.eye(3)[LABELS]
    probe[2:] = torch.nan
    found = make(tmp_path, monkeypatch, probe=probe)
    assert found["linear_probe"] == {"accuracy": 1.0, "macro_f1": found["linear_probe"]["macro_f1"], "test": 2}
    assert "regression (2 test rows)  100.0 [34.2, 100.0]" in headline(found)


def check(html: str) -> Balance:
    balance = Balance()
    balance.feed(html)
    assert balance.open == []
    return balance


def test_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = make(tmp_path, monkeypatch)
    assert found["data"] == {
        "name": "news",
        "classes": ["a", "b", "c"],
        "labelled": 3,
        "unlabelled": 2,
        "validation": 2,
        "test": 6,
        "test_in_train": 0,
        "labels_per_class": 0,
    }
    assert found["teacher"]["accuracy"] == found["teacher"]["macro_f1"] == 1 and found["linear_probe"]["accuracy"] == 0
    assert found["teacher"]["targets"] == "diffusion" and found["teacher"]["parameters"] == 4000
    assert [student["accuracy"] for student in found["students"]] == [0, 1]
    assert found["students"][1]["parameters"] == {"total": 2000, "trainable": 300}
    assert found["confusion"] == [[2, 0, 0], [0, 2, 0], [0, 0, 2]] and found["best"] == 1
    assert found["seconds"] == {"fit": 2.0} and found["config"]["seed"] == 0
    check((tmp_path / "report.html").read_text())
    table = {row.name: row for row in report_rows(found)}
    assert table["student 1 (layers 0, 5)"].smaller == 2 and table["student 1 (layers 0, 5)"].best
    assert "* student 1" in headline(found) and "ensemble of 2" in headline(found)
    # 6 test rows
    assert "100.0 [61.0, 100.0]" in headline(found) and "6 test rows: in brackets the 95% interval" in headline(found)
    assert "test texts" not in headline(found)
    found["data"] |= {"test": 100_000, "test_in_train": 5}
    found["linear_probe"]["test"] = 100_000
    assert "[" not in headline(found) and "5 of the test texts are training texts too" in headline(found)


def test_confidence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = make(tmp_path, monkeypatch)
    wrong, right = (student["reliability"] for student in found["students"])
    assert wrong["calibration_error"] == wrong["mean_confidence"] == pytest.approx(1, abs=1e-3)
    assert right["calibration_error"] == pytest.approx(0, abs=1e-3) and found["teacher"]["reliability"] == right
    html, shown = (tmp_path / "report.html").read_text(), headline(found)
    assert 'aria-label="reliability"' in html and "<td>student 0</td><td>100.0</td><td>100.0</td><td>0.0</td>" in html
    assert ["student", "0", "100.0", "100.0", "0.0", "0.0", "0.0"] in [line.split() for line in shown.splitlines()]
    for part in (found["teacher"], *found["students"]):  # as a report of an older version
        del part["reliability"]
    assert "calibration" not in headline(found) and "Calibration error" not in render_html(found, [])


def test_speed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "megabytes" not in headline(make(tmp_path, monkeypatch))
    slow: dict[str, Any] = {"megabytes": 90.864, "rows_per_s": None, "texts_per_s": 40.4}
    fast = {"megabytes": 6.0, "rows_per_s": 31234.4, "texts_per_s": 900.0}
    found = make(tmp_path, monkeypatch, teacher_speed=slow, speed=[fast, slow])
    assert found["speed"] == {"teacher": slow, "students": [fast, slow]}
    html, lines = (tmp_path / "report.html").read_text(), [line.split() for line in headline(found).splitlines()]
    assert ["student", "0", "6.00", "31,234", "900"] in lines and ["teacher", "90.86", "–", "40"] in lines
    assert "<td>student 0</td><td>6.00</td><td>31,234</td><td>900</td>" in html
    check(html)
    del found["speed"]  # as a report of an older version
    assert "megabytes" not in headline(found) and "Size and speed" not in render_html(found, [])


def test_no_test_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = make(tmp_path, monkeypatch, test=False)
    assert found["confusion"] is None and found["linear_probe"] is None
    assert found["teacher"]["reliability"] is None and found["students"][0]["reliability"] is None
    assert found["teacher"]["accuracy"] is None and found["ensemble"] == {"accuracy": None, "macro_f1": None}
    html = (tmp_path / "report.html").read_text()
    assert "no test rows" in html and "Confusions" not in html and "<svg" not in html
    told = "cross-validated accuracy is 80.0 [49.0, 94.3]% on 10 labels"
    assert told in html and told in headline(found)
    assert "The best student gives 25.0% of 2 validation rows its label." in headline(found)
    check(html)


def test_one_student_is_no_ensemble(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = make(tmp_path, monkeypatch, K=1)
    assert [row.name.split()[0] for row in report_rows(found)] == ["frozen", "teacher", "student"]
    assert found["ensemble"]["accuracy"] == found["students"][0]["accuracy"] == 1


def test_an_online_teacher_is_called_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = TrainConfig(output=str(tmp_path), teacher_mode="online")
    assert make(tmp_path, monkeypatch, config=config)["teacher"]["targets"] == "online"


def test_names_are_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # markup, mathematics, a line break, a control character, another script
    names = ["<script>alert('x')</script>", '$\\frac{ & "$', "two\nlines\x07 类"]
    config = TrainConfig(output=str(tmp_path), teacher="</code><script>", data="<b>")
    found = make(tmp_path, monkeypatch, classes=names, name="<img src=x>\x1b[2J", config=config)
    assert found["data"]["classes"] == names
    html = (tmp_path / "report.html").read_text()
    assert "img" not in check(html).seen
    assert "&lt;script&gt;" in html and "currentColor" in html
    assert "\x07" not in html and "\x1b" not in html and "&lt;img src=x&gt;\\x1b[2J" in html


def test_a_class_name_is_no_reference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # what the figures' ids and colours are made of
    names = ["url(#a)", 'id="b" href="#c"', figures.INK]
    make(tmp_path, monkeypatch, classes=names)
    html = (tmp_path / "report.html").read_text()
    check(html)
    shown = [part.split("<")[0] for part in html.split("<text")[1:] for part in part.split(">")[1:2]]
    assert {"url(#a)", figures.INK} <= set(shown) and any(text.startswith('id="b" href="#c"') for text in shown)


def test_numbers_that_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    line = {"step": 0, "loss": NAN, "ce": [NAN, 1.0], "teacher": [0.5, 1e30], "peers": [0.0, 0.0], "teacher_ce": 1.0}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(line) + "\n" + json.dumps(line | {"step": 1}) + "\n")
    found = make(tmp_path, monkeypatch, divergence=[NAN, 0.5])
    assert [student["validation_divergence"] for student in found["students"]] == [None, 0.5]
    check((tmp_path / "report.html").read_text())


def test_files_of_soft_labels_have_no_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    choice = Choice("files", 0.0, {})
    found = make(tmp_path, monkeypatch, choice=choice, teacher="a.jsonl b.jsonl", parameters=None, test=False)
    assert found["teacher"]["name"] == "a.jsonl b.jsonl" and found["teacher"]["parameters"] is None
    check((tmp_path / "report.html").read_text())
    rows = report_rows(found)
    assert [row.smaller for row in rows] == [None] * len(rows) and "–" in headline(found)


def test_a_page_needs_no_metrics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    html = render_html(make(tmp_path, monkeypatch), [])
    check(html)
    assert "Training loss" not in html and "Accuracy against size" in html
