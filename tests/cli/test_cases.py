"""The tables of tests/data/cases from end to end: `nanonet train` reads each right, or says in one line what to do."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.text import jsonl, read_jsonl, write_files

from nanonet.cli.main import main

CASES = Path(__file__).parents[1] / "data" / "cases"
FLAGS = (
    "--teacher-steps 0 --targets classifier --steps 2 --max-unlabelled 200 --max-test 100 --max-tokens 32 --threads 1"
)

# case: what is said besides progress; labelled, unlabelled and test rows of the report; its classes
READ: dict[str, tuple[str, list[int], str]] = {
    "clean": ("", [150, 0, 60], "garden kitchen traffic"),
    "c02_tsv_quotes": ("", [150, 0, 60], "garden kitchen traffic"),
    "c03_semicolon": ("", [150, 0, 0], "garden kitchen traffic"),
    "c05_cr_only": ("", [150, 0, 0], "garden kitchen traffic"),
    "c08_minus_one": ("60 of 60 rows have no label and are left out", [150, 0, 0], "0 1 2"),
    "c09_nfc_nfd": ("another Unicode form or invisible characters: 1", [150, 0, 60], "café kitchen traffic"),
    "c11_duplicates": ("60 of 60 test texts stand in the training texts too", [150, 0, 60], "garden kitchen traffic"),
    "c13_parquet_classlabel": ("", [150, 0, 60], "traffic kitchen garden"),
    "c18_rare_class_held_out": ("", [204, 0, 0], "garden kitchen traffic"),
    "c18_rare_class_held_out/all.jsonl": ("", [204, 0, 0], "garden kitchen traffic"),
    "c19_hub_layout": ("", [150, 0, 60], "traffic kitchen garden"),
    "c28_float_names_int_test": ("", [150, 0, 40], "1 2 3"),
}


def train(data: Path, encoder: Path, output: Path, flags: str = "") -> int:
    words = f"train --data {data} --teacher {encoder} --output {output} {FLAGS} {flags}"
    return main(words.split())


@pytest.mark.parametrize("case", READ)
def test_a_case_is_read_right(
    case: str, tiny_encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if "parquet" in case or "hub" in case:
        pytest.importorskip("pyarrow")
    if case == "c18_rare_class_held_out":  # a folder has a table by the name of train
        (tmp_path / "d").mkdir()
        shutil.copy(CASES / case / "all.jsonl", tmp_path / "d" / "train.jsonl")
    data = tmp_path / "d" if (tmp_path / "d").exists() else CASES / case
    assert train(data, tiny_encoder, tmp_path / "run") == 0
    said, counts, classes = READ[case]
    captured = capsys.readouterr()
    notes = [line for line in captured.err.splitlines() if line.startswith("nanonet: ")]
    assert len(notes) == bool(said) and all(said in note for note in notes), notes
    found = json.loads((tmp_path / "run" / "report.json").read_text())
    assert [found["data"][name] for name in ("labelled", "unlabelled", "test")] == counts
    assert found["data"]["classes"] == classes.split() and found["data"]["labels_per_class"] == 0
    assert ("No test rows. The teacher's cross-validated accuracy is " in captured.out) == (counts[2] == 0)


def test_numbers_against_names_are_refused(
    tiny_encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(CASES / "c01_names_then_numbers", tiny_encoder, tmp_path / "run") == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "test.csv, line 2" in said and "labels.json" in said
    assert not (tmp_path / "run").exists()


def test_one_spreadsheet_trains_the_students_of_two_files(
    tiny_encoder: Path, tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = read_jsonl(tiny_data / "train.jsonl")
    write_files(tmp_path, {"few.jsonl": jsonl(rows[:30]), "rest.jsonl": jsonl({"text": r["text"]} for r in rows[30:])})
    sheet = jsonl(row if i < 30 else row | {"label": None} for i, row in enumerate(rows))
    write_files(tmp_path, {"sheet.jsonl": sheet})
    assert train(tmp_path / "few.jsonl", tiny_encoder, tmp_path / "two", f"--unlabelled {tmp_path}/rest.jsonl") == 0
    assert train(tmp_path / "sheet.jsonl", tiny_encoder, tmp_path / "one") == 0
    assert "column 'label': 120 of 150 rows have no label and are used as unlabelled" in capsys.readouterr().err
    for name in ("student-0", "student-1"):
        one, two = (load_file(tmp_path / run / name / "model.safetensors") for run in ("one", "two"))
        assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


def test_a_tilde_is_the_home_folder_in_every_path(
    tiny_encoder: Path, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    shutil.copytree(tiny_encoder, tmp_path / "encoder")
    shutil.copytree(tiny_data, tmp_path / "data")
    write_files(tmp_path, {"c.yaml": "steps: 2\n", "t.txt": "a cat\n"})
    words = "train --config ~/c.yaml --data ~/data --unlabelled ~/data/test.jsonl --teacher ~/encoder --output ~/run"
    assert main([*words.split(), "--teacher-cache", "~/cache", *FLAGS.split()]) == 0
    assert main("evaluate --model ~/run --data ~/data".split()) == 0
    assert main("evaluate --model ~/run/best --data ~/data/test.jsonl".split()) == 0
    assert main("predict ~/t.txt --model ~/run --output ~/p.jsonl".split()) == 0
    assert main("export --model ~/run --format huggingface --output ~/copy".split()) == 0
    assert {"run", "cache", "p.jsonl", "copy"} <= {path.name for path in tmp_path.iterdir()}
    assert not Path("~").exists()
