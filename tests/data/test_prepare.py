"""The rows of a run: labelled, unlabelled, for validation, for testing; whatever tables they come from."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.text import jsonl, read_jsonl, write_files
from transformers import AutoTokenizer

from nanonet.config.settings import DataSettings, data_settings
from nanonet.config.train import TrainConfig
from nanonet.data.prepare import MANY_LABELS, RunData, labels_per_class, prepare
from nanonet.errors import InputError

CASES = Path(__file__).parent / "cases"


@pytest.fixture(scope="module")
def tokenizer(tiny_encoder: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_encoder)


def settings(data: Path | str, **changes: Any) -> DataSettings:
    return data_settings(replace(TrainConfig(data=str(data), max_tokens=32), **changes))


def same(a: RunData, b: RunData) -> bool:
    rows = [(part.ids.tolist(), part.lengths) for data in (a, b) for part in (data.rows, data.validation, data.test)]
    return rows[:3] == rows[3:] and a.label.tolist() == b.label.tolist() and a.test_label == b.test_label


def test_one_table_with_blanks_is_the_two_files_that_say_the_same(tiny_data: Path, tmp_path: Path, tokenizer) -> None:
    rows = read_jsonl(tiny_data / "train.jsonl")
    few = [i for topic in ("animals", "food", "weather") for i in range(150) if rows[i]["label"] == topic][::5]
    sheet = io.StringIO()
    writer = csv.writer(sheet)
    writer.writerows([["label", "text"], *([r["label"] if i in few else "", r["text"]] for i, r in enumerate(rows))])
    test = (tiny_data / "test.jsonl").read_text()
    write_files(tmp_path, {"sheet/train.csv": sheet.getvalue(), "sheet/test.jsonl": test, "two/test.jsonl": test})
    write_files(tmp_path, {"two/train.jsonl": jsonl(rows[i] for i in sorted(few))})
    rest = jsonl({"text": row["text"]} for i, row in enumerate(rows) if i not in few)
    write_files(tmp_path, {"rest.jsonl": rest, "folder/test.jsonl": test, "folder/unlabelled.jsonl": rest})
    write_files(tmp_path, {"folder/labelled.jsonl": jsonl(rows[i] for i in sorted(few))})
    one = prepare(settings(tmp_path / "sheet"), tokenizer)
    assert len(one.rows) + len(one.validation) == 150 and int((one.label >= 0).sum()) == 30
    assert same(one, prepare(settings(tmp_path / "two", unlabelled=str(tmp_path / "rest.jsonl")), tokenizer))
    assert same(one, prepare(settings(tmp_path / "folder"), tokenizer))
    drawn = prepare(settings(tmp_path / "sheet", labels_per_class=4), tokenizer)
    assert int((drawn.label >= 0).sum()) == 12 and not same(one, drawn)


def test_every_label_is_used_unless_some_are_asked_for(
    tiny_data: Path, tokenizer: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    data = prepare(settings(tiny_data), tokenizer)
    assert data.label.tolist().count(-100) == 0 and len(data.rows) == 150 and data.labels_per_class == 0
    assert prepare(settings(tiny_data, labels_per_class=3), tokenizer).labels_per_class == 3
    assert (
        labels_per_class(settings("pydocs"), 4000) == 10
        and labels_per_class(settings("pydocs", labels_per_class=0), 9) == 0
    )
    assert capsys.readouterr().err == ""
    assert labels_per_class(settings("big"), MANY_LABELS + 1) == 0
    assert "big: all 20001 labelled rows are used; --labels-per-class draws some" in capsys.readouterr().err


def test_without_a_test_table_no_row_is_taken_away(tokenizer: Any) -> None:
    case = CASES / "c18_rare_class_held_out" / "all.jsonl"
    data = prepare(settings(case), tokenizer)
    assert len(data.rows) == 204 and not data.test_label and data.label.tolist().count(2) == 4
    data = prepare(settings(case, test_fraction=0.25), tokenizer)
    assert sorted(set(data.test_label)) == [0, 1, 2] and len(data.test_label) == 51
    assert [data.label.tolist().count(c) for c in range(3)] == [75, 75, 3]


def test_test_texts_among_the_training_texts_are_counted_and_left_out_on_demand(
    tokenizer: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    case = CASES / "c11_duplicates"
    data = prepare(settings(case), tokenizer)
    assert data.test_in_train == 60 == len(data.test_label) and len(data.rows) == 150
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "c11_duplicates: 60 of 60 test texts stand in the training texts too; --deduplicate" in said
    # the unlabelled ones too, whatever their white space
    write_files(tmp_path, {"u.jsonl": jsonl([{"text": f" {read_jsonl(case / 'test.jsonl')[0]['text']}\n"}] * 2)})
    alone = prepare(settings(case, deduplicate=True, unlabelled=str(tmp_path / "u.jsonl")), tokenizer)
    tested = {row["text"] for row in read_jsonl(case / "test.jsonl")}
    left = [row for row in read_jsonl(case / "train.jsonl") if row["text"] not in tested]
    assert len(alone.rows) == len(left) and alone.test_in_train == 0 and len(alone.test_label) == 60
    assert f"{152 - len(left)} rows are left out there" in capsys.readouterr().err
    prepare(settings(CASES / "clean", deduplicate=True), tokenizer)
    assert capsys.readouterr().err == ""


def test_a_text_without_a_token_is_named_by_file_and_line(tmp_path: Path) -> None:
    class Nothing:
        name_or_path = "nothing"

        def num_special_tokens_to_add(self) -> int:
            return 0

        def __call__(self, texts: list[str], **_: Any) -> dict[str, list[list[int]]]:
            return {"input_ids": [[] if "zero" in text else [1] for text in texts]}

    rows = [{"text": f"text {i}", "label": i % 2} for i in range(6)]
    write_files(tmp_path, {"d/train.jsonl": jsonl(rows), "u.csv": "text\na\nzero\n"})
    with pytest.raises(InputError, match=r"u.csv, line 3: the text 'zero' has no tokens: delete it"):
        prepare(settings(tmp_path / "d", unlabelled=str(tmp_path / "u.csv")), Nothing())
    write_files(tmp_path, {"d/test.json": json.dumps([rows[0], {"text": "zero", "label": 1}])})
    with pytest.raises(InputError, match=r"test.json, row 2: the text 'zero' has no tokens"):
        prepare(settings(tmp_path / "d"), Nothing())


def test_the_limits_of_the_flags_are_obeyed(tiny_data: Path, tokenizer: Any) -> None:
    for changes, flag in (({"max_text_bytes": 20}, "--max-text-bytes"), ({"max_data_bytes": 2000}, "--max-data-bytes")):
        with pytest.raises(InputError, match=flag):
            prepare(settings(tiny_data, **changes), tokenizer)


def test_rows_without_a_text_are_left_out_of_training_and_stay_in_the_test(
    tokenizer: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train = "text,label\na cat,x\n,x\n  ,y\nrain,y\n"
    files = {"d/train.csv": train, "d/test.csv": "text,label\n,x\na dog,y\n", "u.csv": "text\nsnow\n \n"}
    write_files(tmp_path, files)
    data = prepare(settings(tmp_path / "d", unlabelled=str(tmp_path / "u.csv")), tokenizer)
    assert data.label.tolist() == [0, 1, -100]
    assert data.test_label == [0, 1] and data.test.lengths == [2, 4]  # [CLS] and [SEP] are left of nothing
    said = capsys.readouterr().err
    assert "train.csv, column 'text': 2 rows have no text and are left out, line 3 first" in said
    assert "u.csv, column 'text': 1 rows have no text and are left out, line 3 first" in said
