"""`nanonet evaluate`: scores by label name, by number, and of every model of a run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from support.text import jsonl, write_files

from nanonet.cli.main import main


def evaluate(capsys: pytest.CaptureFixture[str], *words: str) -> dict:
    capsys.readouterr()
    assert main(["evaluate", *words]) == 0
    return json.loads(capsys.readouterr().out)


def test_evaluate_agrees_with_the_report(
    trained_run: Path, tiny_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = json.loads((trained_run / "report.json").read_text())
    for model, k in (
        (trained_run, report["best"]),
        (trained_run / "best", report["best"]),
        (trained_run / "student-0", 0),
        (trained_run / "student-1", 1),
    ):
        found = evaluate(capsys, "--model", str(model), "--data", str(tiny_data))
        assert {found[key] for key in ("accuracy",)} == {report["students"][k]["accuracy"]}
        low, high = found["accuracy_interval"]
        assert 0 <= low < found["accuracy"] <= high <= 1 and 0.05 < high - low < 0.26  # 60 rows
        assert found["macro_f1"] == report["students"][k]["macro_f1"] and found["rows"] == 60
        assert found["rows_per_s"] > 0 and found["device"] == "cpu" or torch.cuda.is_available()


def test_labels_by_name_by_number_and_by_another_order(
    trained_run: Path, tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [json.loads(line) for line in (tiny_data / "test.jsonl").read_text().splitlines()]
    wanted = evaluate(capsys, "--model", str(trained_run), "--data", str(tiny_data / "test.jsonl"))["accuracy"]
    for name, order in (("numbers", ["animals", "food", "weather"]), ("other", ["weather", "animals", "food"])):
        (tmp_path / name).mkdir()
        index = {label: i for i, label in enumerate(order)}
        lines = [json.dumps({"body": row["text"], "topic": index[row["label"]]}) for row in rows]
        (tmp_path / name / "test.jsonl").write_text("\n".join(lines))
        (tmp_path / name / "labels.json").write_text(json.dumps(order))
        columns = ["--text-column", "body", "--label-column", "topic"]
        for data in (tmp_path / name, tmp_path / name / "test.jsonl"):
            assert evaluate(capsys, "--model", str(trained_run), "--data", str(data), *columns)["accuracy"] == wanted


def test_numbers_are_not_guessed(trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    case = Path(__file__).parents[1] / "data" / "cases" / "e03_own_numbers"
    for data in (case, case / "test.jsonl"):
        assert main(["evaluate", "--model", str(trained_run), "--data", str(data)]) == 2
        said = capsys.readouterr().err
        assert "test.jsonl, line 1, column 'label': the label 2 is a number" in said and "labels.json" in said
    # which of the model's classes the numbers count is said beside the data
    write_files(
        tmp_path,
        {"test.jsonl": jsonl([{"text": "cat dog horse cow sheep bird", "label": 2}, {"text": "rain", "label": -1}])},
    )
    write_files(tmp_path, {"labels.json": '["food", "weather", "animals"]'})
    found = evaluate(capsys, "--model", str(trained_run), "--data", str(tmp_path))
    assert found["rows"] == 1 and found["accuracy"] == 1
