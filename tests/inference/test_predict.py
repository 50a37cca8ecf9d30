"""`nanonet predict`: from and to files, pipes and devices; all predictions or none."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.text import write_files

from nanonet.cli.main import main
from nanonet.inference.side_by_side import ROWS_AT_ONCE, WORKERS

TEXTS = ["the cat was near a dog", "bread and soup, again", "snow ☃ today", "a horse", "Rain"]


def test_predict_from_standard_input(
    trained_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("nanonet.inference.predict.ROWS_AT_ONCE", 2)
    text = "\ufeff" + "\r\n".join(TEXTS)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    capsys.readouterr()
    assert main(["predict", "--model", str(trained_run)]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["text"] for row in rows] == TEXTS
    for row in rows:
        assert list(row["probabilities"]) == ["animals", "food", "weather"]
        assert sum(row["probabilities"].values()) == pytest.approx(1, abs=1e-4)
        assert row["probabilities"][row["label"]] == row["probability"] == max(row["probabilities"].values())


@pytest.mark.parametrize("name", ["t.txt", "t.jsonl", "t.csv"])
def test_predict_from_and_to_a_file(
    trained_run: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    body = {
        "t.txt": "\n".join(TEXTS) + "\n",
        "t.jsonl": "".join(json.dumps({"body": text}) + "\n" for text in TEXTS),
        "t.csv": "n,body\n" + "".join(f'{n},"{text}"\n' for n, text in enumerate(TEXTS)),
    }[name]
    (tmp_path / name).write_text(body, encoding="utf-8")
    words = [str(tmp_path / name), "--text-column", "body", "--output", str(tmp_path / "o.jsonl"), "--no-text"]
    capsys.readouterr()
    assert main(["predict", "--model", str(trained_run / "best"), *words, "--batch-rows", "2"]) == 0
    captured = capsys.readouterr()
    assert captured.out == "" and "5 predictions" in captured.err
    rows = [json.loads(line) for line in (tmp_path / "o.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(rows) == 5 and all(list(row) == ["label", "probability", "probabilities"] for row in rows)
    # alone each text says the same: the order is that of the input
    one = ["predict", "--model", str(trained_run), "--text-column", "body"]
    (tmp_path / "one.txt").write_text(TEXTS[2], encoding="utf-8")
    assert main([*one, str(tmp_path / "one.txt")]) == 0
    assert json.loads(capsys.readouterr().out)["probability"] == pytest.approx(rows[2]["probability"], abs=1e-4)


def test_a_device_stays_a_device(trained_run: Path, tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("a cat\n")
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    assert (
        main(["predict", str(tmp_path / "t.txt"), "--model", str(trained_run), "--output", str(tmp_path / "pipe")]) == 0
    )
    assert json.loads(os.read(reader, 10_000))["text"] == "a cat" and (tmp_path / "pipe").is_fifo()
    os.close(reader)


def test_after_a_failure_it_goes_on_once_the_line_is_right(
    trained_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("nanonet.inference.predict.ROWS_AT_ONCE", 2)
    command = ["predict", str(tmp_path / "t.txt"), "--model", str(trained_run), "--output", str(tmp_path / "o")]
    (tmp_path / "t.txt").write_bytes(b"\xff\n")
    assert main(command) == 2 and [path.name for path in tmp_path.iterdir()] == ["t.txt"]
    (tmp_path / "t.txt").write_bytes(b"a\nb\n" * 20 + b"\xff\n")
    capsys.readouterr()
    assert main(command) == 2
    told = capsys.readouterr().err
    assert "line 41: not utf-8" in told.splitlines()[-1] and "rows are kept in o.partial" in told
    assert sorted(path.name for path in tmp_path.iterdir()) == ["o.partial", "o.progress", "t.txt"]
    (tmp_path / "t.txt").write_bytes(b"a\nb\n" * 20 + b"c\n")
    assert main(command) == 0 and sorted(path.name for path in tmp_path.iterdir()) == ["o", "t.txt"]
    assert "rows are there already" in capsys.readouterr().err and len((tmp_path / "o").read_text().splitlines()) == 41


def test_terminated_it_leaves_whole_rows(trained_run: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "nanonet", "predict", "--model", str(trained_run), "--output", str(tmp_path / "o")]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        process.stdin.write(b"a cat\n" * (ROWS_AT_ONCE * (2 * WORKERS + 1) + 1))
        process.stdin.flush()
        progress = tmp_path / "o.progress"
        while not progress.exists() or not progress.stat().st_size:  # the first rows are there, and it waits for more
            assert process.poll() is None
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 143
    assert sorted(path.name for path in tmp_path.iterdir()) == ["o.partial", "o.progress"]
    rows = (tmp_path / "o.partial").read_text()
    assert rows.endswith("}\n") and len(rows.splitlines()) % ROWS_AT_ONCE == 0


def test_the_reader_may_leave(trained_run: Path, tiny_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as pipe:
        monkeypatch.setattr(sys, "stdout", pipe)
        assert main(["predict", str(tiny_data / "train.jsonl"), "--model", str(trained_run)]) == 1


# a blank line; characters that the tokenizer drops; a blank in a table
@pytest.mark.parametrize("name", ["t.txt", "t.jsonl", "t.csv"])
def test_a_text_without_a_word_is_answered_with_null(
    trained_run: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("nanonet.inference.predict.ROWS_AT_ONCE", 2)
    texts = ["a cat", "", " ", "   ", "rain"]
    files = {"t.txt": "".join(f"{text}\n" for text in texts)}
    files["t.jsonl"] = "".join(json.dumps({"text": text or None}) + "\n" for text in texts)
    files["t.csv"] = "text,n\n" + "".join(f"{text},0\n" for text in texts)
    write_files(tmp_path, {name: files[name]})
    assert main(["predict", str(tmp_path / name), "--model", str(trained_run)]) == 0
    captured = capsys.readouterr()
    rows = [json.loads(line) for line in captured.out.splitlines()]
    assert [row["text"] for row in rows] == texts
    assert [row["label"] is None for row in rows] == [False, True, True, True, False]
    assert rows[1] == {"text": "", "label": None, "probability": None, "probabilities": None}
    line = 2 + (name == "t.csv")
    assert "3 of 5 texts have no words: their label is null, the first at " in captured.err
    assert captured.err.rstrip().endswith(f"{name}, line {line}")


def test_a_line_that_is_empty_after_normalisation_is_answered_with_null(
    trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    case = Path(__file__).parents[1] / "data" / "cases" / "p01_predict_empty_after_norm" / "texts.txt"
    model = shutil.copytree(trained_run / "best", tmp_path / "m")
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    # as BERT's: what is invisible is dropped
    tokenizer["normalizer"] = {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True}
    tokenizer["normalizer"] |= {"strip_accents": None, "lowercase": True}
    (model / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert main(["predict", str(case), "--model", str(model), "--no-text"]) == 0
    captured = capsys.readouterr()
    rows = [json.loads(line) for line in captured.out.splitlines()]
    assert len(rows) == 2000 and [n for n, row in enumerate(rows, 1) if row["label"] is None] == [1500]
    assert "texts.txt, line 1500" in captured.err


def test_what_a_terminal_would_obey_is_an_escape(
    trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "cat \x1b[31m \x7f \x9b2J \u202e dog é 漢"
    (tmp_path / "t.txt").write_text(text + "\n")
    assert main(["predict", str(tmp_path / "t.txt"), "--model", str(trained_run)]) == 0
    line = capsys.readouterr().out.rstrip("\n")
    assert line.isprintable() and "é 漢" in line and json.loads(line)["text"] == text


def test_a_line_ends_in_cr_where_no_lf_is(
    trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "t.txt").write_bytes(b"a cat\rrain\r")
    assert main(["predict", str(tmp_path / "t.txt"), "--model", str(trained_run)]) == 0
    assert [json.loads(line)["text"] for line in capsys.readouterr().out.splitlines()] == ["a cat", "rain"]


def test_below_the_threshold_a_text_is_unsure(
    trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_files(tmp_path, {"t.txt": "".join(f"{text}\n" for text in [*TEXTS, ""])})
    words = ["predict", str(tmp_path / "t.txt"), "--model", str(trained_run)]

    def rows(*more: str) -> list[dict]:
        capsys.readouterr()
        assert main([*words, *more]) == 0
        return [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    plain = rows()
    limit = sorted(row["probability"] for row in plain[:-1])[2]
    found = rows("--threshold", str(limit))
    for before, row in zip(plain[:-1], found, strict=False):
        unsure = row["probability"] < limit
        assert row == before | {"label": None if unsure else before["label"], "unsure": unsure}
    assert [row["unsure"] for row in found].count(True) == 2  # the text at the threshold itself has its label
    assert found[-1] == plain[-1] | {"unsure": None} and "unsure" not in plain[0]
    assert main([*words, "--threshold", str(limit)]) == 0
    told = capsys.readouterr().err
    assert "2 of 6 texts are unsure" in told and "1 of 6 texts have no words" in told


@pytest.mark.parametrize("workers", ["1", "3"])
def test_workers_and_chunks_change_no_row_but_by_rounding(
    workers: str,
    trained_run: Path,
    tiny_data: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["predict", str(tiny_data / "train.jsonl"), "--model", str(trained_run)]

    def rows(*more: str) -> list[dict]:
        capsys.readouterr()
        assert main([*words, *more]) == 0
        return [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    whole = rows()
    assert rows("--workers", workers) == whole  # the same chunks and batches
    monkeypatch.setattr("nanonet.inference.predict.ROWS_AT_ONCE", 7)
    for one, other in zip(whole, rows("--workers", workers, "--batch-rows", "3"), strict=True):
        assert one["text"] == other["text"]
        for name, p in one["probabilities"].items():
            assert p == pytest.approx(other["probabilities"][name], abs=2e-6)


@pytest.mark.parametrize("workers", ["0", "-1", "257"])
def test_workers_are_some_threads(workers: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", "--model", "nowhere", f"--workers={workers}"]) == 2
    assert "--workers" in capsys.readouterr().err


@pytest.mark.slow
def test_memory_is_flat(trained_run: Path, tmp_path: Path) -> None:
    """A hundred thousand texts take hardly more memory than ten thousand."""

    def peak_mb(rows: int) -> float:
        (tmp_path / "t.txt").write_text("".join(f"the cat was near {n} dogs\n" for n in range(rows)))
        words = ["predict", str(tmp_path / "t.txt"), "--model", str(trained_run), "--output", str(tmp_path / "o")]
        code = "import resource, sys; from nanonet.cli.main import main; assert main(sys.argv[1:]) == 0\n"
        code += "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3)"
        command = [sys.executable, "-c", code, *words, "--overwrite"]
        return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    assert peak_mb(100_000) < peak_mb(10_000) + 50


@pytest.mark.parametrize("threshold", ["-0.1", "1.5", "nan"])
def test_a_threshold_is_a_probability(threshold: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", "--model", "nowhere", f"--threshold={threshold}"]) == 2
    assert "threshold" in capsys.readouterr().err
