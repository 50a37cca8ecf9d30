"""Pairs of texts, from training to export: as a plain loop of transformers tokenises and computes them."""

from __future__ import annotations

import dataclasses
import io
import json
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
from support.grids import slow
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

import nanonet
from nanonet.cli.main import main
from nanonet.config.train import TrainConfig
from nanonet.data.batches import encode
from nanonet.data.pairs import MARK
from nanonet.errors import InputError
from nanonet.inference.forward import logits_of
from nanonet.inference.onnx_graph import NEEDED
from nanonet.inference.onnx_model import QUANTIZED, onnx_session
from nanonet.models.load import load_encoder, load_tokenizer
from nanonet.models.pairs import set_text_pair
from nanonet.teacher.cache import fingerprint_of_encoder
from nanonet.training.pipeline import train

# separator: its number in the students' tokenizer, from which unused pieces may be cut
STUDENTS: dict[str, dict] = {
    "encoder": {},
    "all pieces": {"vocabulary": "all"},
    "lora": {"tuning": "lora", "views": "shuffle,cutoff"},
    "adversarial": {"views": "adversarial,none", "relation_weight": 0.1},
    "cnn": {"student": "cnn", "embedding_width": 16},
    "static": {"student": "static", "embedding_width": 16, "vocabulary": "35"},
    "online": {"teacher_mode": "online", "teacher_steps": 2, "tuning": "head"},
}
PAIRS = [
    ("the cat was near", "bread again"),
    ("rain today", "the dog had a little very very very very very very very very very very very near near soup"),
    ("some " * 40 + "apple", "snow"),
    ("cheese", "horse"),
]


@pytest.fixture(scope="module")
def settings(pair_encoder: Path, pair_data: Path) -> TrainConfig:
    return TrainConfig(
        data=str(pair_data),
        text_column="premise,hypothesis",
        teacher=str(pair_encoder),
        teacher_steps=4,
        steps=8,
        labelled_batch=8,
        unlabelled_batch=8,
        learning_rate=3e-3,
        max_tokens=24,
    )


@pytest.fixture(scope="module")
def run(settings: TrainConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run on pairs, with its teacher."""
    folder = tmp_path_factory.mktemp("pairs") / "run"
    train(dataclasses.replace(settings, output=str(folder), keep_teacher=True))
    return folder


@torch.no_grad()
def plain(folder: Path, pairs: list[tuple[str, str]]) -> torch.Tensor:
    """Probabilities (N,C) as anybody computes them, one pair at a time."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    rows = [tokenizer(a, b, truncation=True, max_length=24, return_tensors="pt") for a, b in pairs]
    return torch.cat([model(**row).logits for row in rows]).softmax(-1)


def swapped(pairs: list[tuple[str, str]]) -> list[tuple[str, str]]:
    return [(b, a) for a, b in pairs]


@pytest.mark.parametrize("changes", STUDENTS.values(), ids=STUDENTS)
def test_students_read_pairs_as_transformers_does(changes: dict, settings: TrainConfig, tmp_path: Path) -> None:
    train(dataclasses.replace(settings, output=str(tmp_path / "run"), **changes))
    folder = tmp_path / "run" / "best"
    model = nanonet.load(tmp_path / "run")
    found = torch.from_numpy(model.predict_proba(PAIRS))
    torch.testing.assert_close(found, plain(folder, PAIRS), rtol=0, atol=1e-5)
    other = torch.from_numpy(model.predict_proba(swapped(PAIRS)))
    assert (other - found).abs().amax(1).min() > 1e-4
    classify = pipeline("text-classification", str(folder), top_k=None)
    for (a, b), row in zip(PAIRS[:1] + PAIRS[3:], found[[0, 3]].tolist(), strict=True):
        said = {answer["label"]: answer["score"] for answer in classify({"text": a, "text_pair": b})}
        assert [said[name] for name in model.classes] == pytest.approx(row, abs=1e-5)
    pair = json.loads((folder / "config.json").read_text())["text_pair"]
    whole = changes.get("vocabulary") == "all" or "student" in changes and changes["student"] == "cnn"
    assert pair == {"separator": 12 if whole else 3, "types": "student" not in changes}


def test_students_without_order_learn_which_text_comes_first(settings: TrainConfig, tmp_path: Path) -> None:
    """The label is the topic of the first text: a model that reads both as one is right in two thirds at most."""
    changes = {"teacher_weight": 0.0, "steps": 300, "student": "static", "embedding_width": 16, "learning_rate": 5e-3}
    report = train(dataclasses.replace(settings, output=str(tmp_path / "run"), **changes))
    assert report["students"][0]["accuracy"] > 0.8


def test_predict_writes_the_columns_that_it_read(run: Path, pair_data: Path, tmp_path: Path, capsys) -> None:
    words = ["--model", str(run), "--text-column", "premise,hypothesis", "--output", str(tmp_path / "p.jsonl")]
    assert main(["predict", str(pair_data / "test.csv"), *words]) == 0
    rows = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    found = plain(run / "best", [(row["premise"], row["hypothesis"]) for row in rows])
    assert len(rows) == 60 and list(rows[0]) == ["premise", "hypothesis", "label", "probability", "probabilities"]
    wanted = torch.tensor([list(row["probabilities"].values()) for row in rows])
    torch.testing.assert_close(wanted, found, rtol=0, atol=1e-5)
    capsys.readouterr()
    assert main(["evaluate", "--data", str(pair_data), *words[:4]]) == 0
    report = json.loads((run / "report.json").read_text())
    said = json.loads(capsys.readouterr().out)["accuracy"]
    assert said == report["students"][report["best"]]["accuracy"]
    # what predict writes are soft labels of the same texts
    config = ["--config", str(run / "config.yaml"), "--soft-labels", str(tmp_path / "p.jsonl"), "--data", "pydocs"]
    alone = ["--teacher-steps", str(TrainConfig.teacher_steps), "--no-keep-teacher"]
    assert main(["train", *config, *alone, "--output", str(tmp_path / "run")]) == 0
    assert nanonet.load(tmp_path / "run").pairs


def test_lines_are_pairs_with_a_tab(run: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    def predict(text: str) -> tuple[int, list[dict], str]:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
        capsys.readouterr()
        code = main(["predict", "--model", str(run)])
        captured = capsys.readouterr()
        return code, [json.loads(line) for line in captured.out.splitlines()], captured.err

    code, rows, said = predict("cheese\thorse\n\ncheese\t\n\thorse\n")
    assert code == 0 and [(row["text"], row["text_pair"]) for row in rows[:2]] == [("cheese", "horse"), ("", "")]
    found = plain(run / "best", [("cheese", "horse")])[0].tolist()
    assert list(rows[0]["probabilities"].values()) == pytest.approx(found, abs=1e-5)
    assert [row["label"] for row in rows[1:]] == [None] * 3 and "3 of 4 texts have no words" in said
    for line, what in (("cheese", "0 tabs"), ("a\tb\tc", "2 tabs")):
        code, rows, said = predict(f"cheese\thorse\n{line}\n")
        assert code == 2 and not rows and f"standard input, line 2: {what}: the model reads pairs" in said


def test_an_export_reads_pairs(run: Path, pair_data: Path, tmp_path: Path, capsys) -> None:
    words = ["export", "--model", str(run), "--format", "huggingface", "--output", str(tmp_path / "copy")]
    assert main(words) == 0
    torch.testing.assert_close(plain(tmp_path / "copy", PAIRS), plain(run / "best", PAIRS), rtol=0, atol=0)
    for name in NEEDED:
        pytest.importorskip(name)
    data = ["--data", str(pair_data), "--text-column", "premise,hypothesis"]
    assert main(["export", "--model", str(run), "--output", str(tmp_path / "m.onnx"), *data]) == 0
    model = nanonet.load(run)
    encoded = model.encode([MARK.join(pair) for pair in PAIRS], 24)
    for row in range(len(PAIRS)):
        ids = encoded[[row]].ids[None].long()
        mask = torch.ones_like(ids)
        found = onnx_session(tmp_path / "m.onnx")(ids, mask)
        torch.testing.assert_close(found.softmax(-1), plain(run / "best", PAIRS[row : row + 1]), rtol=0, atol=1e-4)
        torch.testing.assert_close(found, logits_of(model.model)(ids, mask), rtol=0, atol=1e-3)


@pytest.mark.slow
def test_an_exported_folder_reads_pairs(run: Path, tmp_path: Path) -> None:
    """In onnxruntime, by nanonet and by the code of its card; and in transformers."""
    for name in NEEDED:
        pytest.importorskip(name)
    assert main(["export", "--model", str(run), "--output", str(tmp_path / "o")]) == 0
    model, copy, small = (nanonet.load(place) for place in (run, tmp_path / "o", tmp_path / "o" / QUANTIZED))
    wanted = model.predict_proba(PAIRS)
    assert copy.pairs and abs(copy.predict_proba(PAIRS) - wanted).max() < 1e-4
    assert abs(small.predict_proba(PAIRS) - wanted).max() < 5e-2
    torch.testing.assert_close(plain(tmp_path / "o", PAIRS), plain(run / "best", PAIRS), rtol=0, atol=0)
    with pytest.raises(InputError, match="pairs of texts"):
        copy.predict(["one"])
    code = re.search(r"### onnxruntime\n\n```python\n(.*?)```", (tmp_path / "o" / "README.md").read_text(), re.DOTALL)
    for pair, p in zip(PAIRS, wanted, strict=True):
        said: list[tuple] = []
        assert code and '("a text to classify", "the text beside it")' in code[1]
        program = code[1].replace('("a text to classify", "the text beside it")', repr(pair))
        exec(program, {"folder": str(tmp_path / "o"), "print": lambda *words, said=said: said.append(words)})
        assert said == [(model.classes[p.argmax()], pytest.approx(float(p.max()), abs=1e-3))]


@pytest.mark.parametrize("student", [slow("cnn"), "static"])
def test_students_of_words_leave_as_onnx(student: str, settings: TrainConfig, tmp_path: Path) -> None:
    for name in NEEDED:
        pytest.importorskip(name)
    train(dataclasses.replace(settings, output=str(tmp_path / "run"), student=student, embedding_width=16))
    assert main(["export", "--model", str(tmp_path / "run"), "--output", str(tmp_path / "m.onnx")]) == 0


def test_a_model_of_the_other_kind_is_refused(
    run: Path, trained_run: Path, pair_data: Path, tiny_data: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    def refused(words: list[str], *wanted: str) -> None:
        capsys.readouterr()
        assert main(words) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1 and all(what in said for what in wanted), said

    single, both = str(tiny_data / "test.jsonl"), ["--text-column", "premise,hypothesis"]
    to = ["--output", str(tmp_path / "o")]
    cure = "was trained on pairs of texts: give both columns, such as --text-column premise,hypothesis"
    refused(["predict", single, "--model", str(run), *to], cure)
    refused(["evaluate", "--data", single, "--model", str(run)], cure)
    pairs = str(pair_data / "test.csv")
    refused(["predict", pairs, "--model", str(trained_run), *both, *to], "trained on single texts: give --text-column")
    refused(["evaluate", "--data", pairs, "--model", str(trained_run), *both], "was trained on single texts")
    with pytest.raises(InputError, match="takes pairs of texts: give a list of .text, text."):
        nanonet.load(run).predict(["cheese"])
    with pytest.raises(InputError, match="takes single texts: give strings"):
        nanonet.load(trained_run).predict(PAIRS)
    kept = ["--teacher", str(run / "teacher-classifier"), "--student-model", str(run / "best"), *to]
    rest = ["--steps", "1", "--max-tokens", "24"]
    refused(["train", "--data", single, *kept, *rest], "teacher-classifier was trained on pairs of texts")
    assert not (tmp_path / "o").exists()


def test_a_teacher_of_pairs_and_students_from_a_student(run: Path, settings: TrainConfig, tmp_path: Path) -> None:
    """The kept teacher says the same as a teacher as by itself, also of another run's students."""
    kept = run / "teacher-classifier"
    assert torch.allclose(torch.from_numpy(nanonet.load(kept).predict_proba(PAIRS)), plain(kept, PAIRS), atol=1e-5)
    config = dataclasses.replace(
        settings, output=str(tmp_path / "run"), teacher=str(kept), student_model=str(run / "best"), steps=2
    )
    report = train(config)
    accuracy = json.loads((run / "report.json").read_text())["teacher"]["accuracy"]
    assert report["teacher"]["accuracy"] == accuracy
    folder = tmp_path / "run" / "best"
    found = torch.from_numpy(nanonet.load(folder).predict_proba(PAIRS))
    torch.testing.assert_close(found, plain(folder, PAIRS), rtol=0, atol=1e-5)


def test_a_student_of_pairs_becomes_one_of_single_texts(run: Path, tiny_data: Path, tmp_path: Path) -> None:
    teacher = json.loads((run / "report.json").read_text())["teacher"]["name"]
    words = f"train --data {tiny_data} --teacher {teacher} --student-model {run / 'best'} --output {tmp_path / 'run'}"
    assert main([*words.split(), "--steps", "2", "--teacher-steps", "2", "--max-tokens", "24"]) == 0
    model = nanonet.load(tmp_path / "run")
    assert not model.pairs and "text_pair" not in json.loads((tmp_path / "run/best/config.json").read_text())


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"class_names": True}, "--class-names: the name of a class is no pair of texts"),
        ({"max_tokens": 4}, "--max-tokens 4: the tokenizer itself takes 3 of them; give more"),
        ({"text_column": "premise,other"}, "column 'other': no such column: set the second name of text_column to"),
        ({"text_column": "premise,premise"}, "column 'premise,premise': two of the columns are one"),
        ({"text_column": "premise,label"}, "column 'premise,label': two of the columns are one"),
    ],
)
def test_settings_that_do_not_go_with_pairs(changes: dict, what: str, settings: TrainConfig, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        train(dataclasses.replace(settings, output=str(tmp_path / "run"), **changes))
    assert what in str(caught.value) and not (tmp_path / "run").exists()


def test_tables_of_both_kinds_are_refused(settings: TrainConfig, tmp_path: Path) -> None:
    (tmp_path / "u.csv").write_text('"premise,hypothesis"\nthe cat\n')
    with pytest.raises(InputError, match="--text-column premise,hypothesis: pairs beside single texts"):
        train(dataclasses.replace(settings, output=str(tmp_path / "run"), unlabelled=str(tmp_path / "u.csv")))


def test_a_text_with_the_separator_is_refused(settings: TrainConfig, run: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "u.jsonl").write_text(json.dumps({"premise": "a cat", "hypothesis": "a [SEP] dog"}) + "\n")
    with pytest.raises(InputError, match=r"u.jsonl, line 1: it holds \[SEP\], which separates the texts of a pair"):
        train(dataclasses.replace(settings, output=str(tmp_path / "run"), unlabelled=str(tmp_path / "u.jsonl")))
    words = ["predict", str(tmp_path / "u.jsonl"), "--model", str(run), "--text-column", "premise,hypothesis"]
    assert main(words) == 2 and "u.jsonl, line 1: it holds [SEP]" in capsys.readouterr().err


def test_pairs_have_a_fingerprint_of_their_own(pair_encoder: Path) -> None:
    """Also where a single text has the same tokens."""
    tokenizer, encoder = load_tokenizer(str(pair_encoder)), load_encoder(str(pair_encoder))
    pairs, single = encode(tokenizer, [f"cheese{MARK}horse"], 24), encode(tokenizer, ["cheese [SEP] horse"], 24)
    assert torch.equal(pairs.ids, single.ids)
    before = fingerprint_of_encoder(encoder, single)
    set_text_pair(encoder, 12, True)
    assert fingerprint_of_encoder(encoder, pairs) != before
    set_text_pair(encoder, None)
    assert fingerprint_of_encoder(encoder, single) == before


def test_a_generator_writes_no_pairs(pair_data: Path, tmp_path: Path, capsys) -> None:
    words = f"generate --model m --labelled {pair_data} --text-column premise,hypothesis --output {tmp_path}/g.jsonl"
    assert main(words.split()) == 2 and not any(tmp_path.iterdir())
    assert "--text-column premise,hypothesis: nanonet generate writes single texts" in capsys.readouterr().err


def test_predictions_have_names_that_no_column_may_have(run: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "t.csv").write_text("label,b\ncat,dog\n")
    words = ["predict", str(tmp_path / "t.csv"), "--model", str(run), "--text-column", "label,b"]
    assert main(words) == 2 and "the predictions have a label; give --no-text" in capsys.readouterr().err
    assert main([*words, "--no-text"]) == 0 and json.loads(capsys.readouterr().out)["label"]


@pytest.mark.parametrize("pair", [{"separator": 4, "types": True}, {"separator": 3}, 7])
def test_a_damaged_text_pair_is_one_line(pair: object, run: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(run / "best", tmp_path / "m"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"text_pair": pair}))
    with pytest.raises(InputError, match="text_pair in its config.json does not fit its tokenizer"):
        nanonet.load(folder)
