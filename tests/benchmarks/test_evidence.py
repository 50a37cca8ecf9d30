"""`nanonet evidence`: runs over draws, their lines, and the table of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nanonet.benchmarks import evidence, evidence_tables, tables
from nanonet.cli.main import main
from nanonet.config.train import TrainConfig


@pytest.fixture
def words(tiny_data: Path, tiny_encoder: Path, tmp_path: Path) -> list[str]:
    flags = f"--teacher {tiny_encoder} --steps 2 --teacher-steps 2 --max-tokens 32 --threads 1"
    output = ["--output", str(tmp_path / "lines.jsonl"), "--teacher-cache", str(tmp_path / "cache")]
    return ["evidence", "--data", str(tiny_data), "--labels", "4", "--flags", flags, *output]


def test_runs_are_made_once_and_the_gold_labels_are_those_of_the_same_rows(words: list[str], tmp_path: Path, capsys):
    assert main([*words, "--seeds", "1"]) == 0 and main([*words, "--seeds", "1", "--gold"]) == 0
    lines = evidence_tables.read_lines(tmp_path / "lines.jsonl")
    assert [(r["labels_per_class"], r["seed"], r["flags"].startswith("gold labels ")) for r in lines] == [
        (4, 1, False), (4, 1, True),
    ]  # fmt: skip
    assert all(0 <= r["best"] <= 1 and r["test_rows"] == 60 for r in lines) and lines[0]["best"] in lines[0]["students"]
    assert len(list((tmp_path / "cache").iterdir())) == 2
    before = (tmp_path / "lines.jsonl").read_text()
    capsys.readouterr()
    assert main([*words, "--seeds", "1"]) == 0
    assert (tmp_path / "lines.jsonl").read_text() == before
    shown = capsys.readouterr().out.splitlines()
    assert len(shown) == 4 and f"| {lines[0]['data']} | 4 | 1 |" in "\n".join(shown)


def test_the_gold_folder_holds_the_rows_that_a_run_trains_on(tiny_data: Path, tmp_path: Path):
    folder = Path(evidence.gold_folder(str(tiny_data), 4, 0, tmp_path, TrainConfig()))
    rows = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    every = [json.loads(line) for line in (tiny_data / "train.jsonl").read_text().splitlines()]
    topics = sorted({row["label"] for row in every})
    assert len(rows) == 12 + 138 - 13  # the labelled ones, the others, less a tenth of these
    assert {(row["text"], topics[row["label"]]) for row in rows} <= {(row["text"], row["label"]) for row in every}
    assert [row["label"] for row in rows[:12]] == [0] * 4 + [1] * 4 + [2] * 4


def test_the_table_is_means_and_deviations_and_the_files_keep_what_stands_around_it(tmp_path: Path):
    line = {"data": "d", "labels_per_class": 10, "flags": "", "linear_probe": 0.5, "teacher": 0.75, "ensemble": 1.0}
    text = evidence_tables.table([line | {"seed": seed, "best": best} for seed, best in enumerate((0.6, 0.8))])
    assert text.splitlines()[2] == "| d | 10 | 2 | 50.0 ± 0.0 | 75.0 ± 0.0 | 70.0 ± 14.1 | 100.0 ± 0.0 |  |"
    gold = evidence_tables.table([line | {"seed": 0, "best": 0.9, "flags": evidence_tables.GOLD}])
    assert gold.splitlines()[2] == "| d | 10 | 1 |  |  | 90.0 | 100.0 | `gold labels` |"
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- results -->\nold\n<!-- end -->\nafter\n")
    tables.put(page, {"results": text})
    assert page.read_text() == f"before\n<!-- results -->\n{text}\n<!-- end -->\nafter\n"
    page.write_text("no marks")
    with pytest.raises(SystemExit, match="page.md: expected the marks"):
        tables.put(page, {"results": text})


def test_a_file_of_lines_that_was_cut_off_is_refused_and_one_without_its_last_end_goes_on(tmp_path: Path, capsys):
    path = tmp_path / "lines.jsonl"
    line = {"data": "d", "labels_per_class": 10, "seed": 0, "flags": ""}
    path.write_text(json.dumps(line))
    evidence.append(path, line | {"seed": 1})
    evidence.append(path, line | {"seed": 2})
    assert [record["seed"] for record in evidence_tables.read_lines(path)] == [0, 1, 2]
    path.write_text(path.read_text()[:-20])
    assert main(["evidence", "--output", str(path)]) == 2
    assert "line 3: no record of a run" in capsys.readouterr().err


def test_a_folder_is_called_by_its_name_wherever_one_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path / "mine")
    assert evidence.name_of(".") == evidence.name_of(str(tmp_path / "mine")) == "mine"
    assert evidence.name_of("owner/set") == "set" and evidence.name_of("pydocs") == "pydocs"


def test_the_comparison_is_over_the_draws_that_all_have():
    line = {"data": "d", "labels_per_class": 10, "linear_probe": 0.5, "teacher": 0.75, "best": 0.7, "ensemble": 1.0}
    lines = [line | {"flags": "", "seed": seed, "best": best} for seed, best in enumerate((0.6, 0.8, 0.1))]
    lines += [line | {"flags": "--precision bfloat16", "seed": 0, "best": 0.0}]  # fewer draws than the others
    lines += [line | {"flags": "supervised teacher", "seed": seed, "teacher": 0.25} for seed in (0, 1, 3)]
    lines += [line | {"flags": evidence_tables.ALONE, "seed": seed, "best": 0.4} for seed in (0, 1)]
    lines += [line | {"flags": "--views cutoff", "seed": 0, "data": "another"}]
    assert evidence_tables.comparison(lines).splitlines()[2:] == [
        "| d | 10 | 2 | 50.0 ± 0.0 |  |  | 25.0 ± 0.0 | 40.0 ± 0.0 | 75.0 ± 0.0 | 70.0 ± 14.1 | 100.0 ± 0.0 |"
    ]


def test_costs_are_those_of_the_quickest_draw_that_was_timed_on_two_threads():
    line = {"data": "d", "labels_per_class": 10, "flags": "", "students": [0.5, 0.5], "test_rows": 100}
    line |= {"parameters": {"total": 15_600_000, "trainable": 3_700_000}, "versions": {"threads": 2}}

    def seconds(slow: float) -> dict:
        stages = {"tuning on the labels": 2.0, "embedding the texts": 3.0, "training the students": 7.0}
        return {"seconds": {name: slow * t for name, t in {**stages, "testing the students": 0.5}.items()}}

    lines = [line | seconds(2), line | seconds(1), line | seconds(0.1) | {"versions": {"threads": 1}}]
    lines.append(line | {"seconds": {"training the students": 1.0, "testing the students": 0.1}})  # a kept teacher
    lines.append(line | {"seconds": {}, "data": "untimed"})
    assert evidence_tables.costs(lines).splitlines()[2:] == ["| d | 10 | 15.6M | 3.7M | 5 | 7 | 400 |  |"]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--seeds", "a"], "--seeds a: give numbers"),
        (["--seeds", "4-0"], "--seeds 4-0: give numbers"),
        (["--labels", "ten"], "--labels ten"),
        (["--output", "/nowhere/lines.jsonl"], "--output /nowhere/lines.jsonl"),
        (["--flags=--nonsense 1"], "--nonsense: no such flag"),
        (["--flags=--seed 3"], "--flags --seed 3: --seed is set for every run"),
        (["--flags=--labels_per_class=10"], "--labels-per-class is set for every run"),
    ],
)
def test_bad_numbers_are_named(words: list[str], flags: list[str], said: str, capsys):
    assert main([*words, *flags]) == 2
    assert said in capsys.readouterr().err


def test_what_is_for_runs_is_refused_without_data_and_a_file_of_something_else_is_named(tmp_path: Path, capsys):
    path = tmp_path / "model.bin"
    path.write_bytes(b"\xff\xfe\n")
    assert main(["evidence", "--gold"]) == 2 and main(["evidence", "--output", str(path)]) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert "--data is missing" in first and f"--output {path}, line 1: no record" in second


def test_a_run_that_fails_is_named_and_leaves_the_lines(words: list[str], tmp_path: Path, capsys):
    (tmp_path / "lines.jsonl").write_text("")
    assert main([*words, "--seeds", "0", "--flags", "--max-tokens 1"]) == 2
    assert "--max-tokens 1: failed" in capsys.readouterr().err and (tmp_path / "lines.jsonl").read_text() == ""
