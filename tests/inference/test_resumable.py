"""A killed predict goes on after its last whole chunk and ends with the same bytes; not over other texts or models."""

from __future__ import annotations

import fcntl
import json
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nanonet.cli.main import main
from nanonet.inference.resumable import Done, Resumable, resumable


def command(texts: Path, model: Path, out: Path, *more: str) -> list[str]:
    return ["predict", str(texts), "--model", str(model), "--output", str(out), *more]


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    rng = random.Random(0)
    words = "cat dog bread soup rain snow a the 漢".split()
    rows = [" ".join(rng.choices(words, k=rng.randint(0, 9))) for _ in range(95)]
    (tmp_path / "t.txt").write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")
    return tmp_path / "t.txt"


def interrupt(argv: list[str], chunks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run until so many chunks are written; the next one is half-written when the program dies."""

    def write(output, texts, rows, done):
        if done.rows > chunks * 10:
            output.partial.write(rows.encode()[:20])
            output.progress.write(b'{"settings": "ab')
            raise KeyboardInterrupt
        whole(output, texts, rows, done)

    whole = Resumable.write
    with monkeypatch.context() as patch:
        patch.setattr("nanonet.inference.resumable.Resumable.write", write)
        assert main(argv) == 130


@pytest.mark.parametrize("chunks", [0, 1, 4, 9])
def test_an_interrupted_call_goes_on(
    chunks: int,
    trained_run: Path,
    texts: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("nanonet.inference.predict.ROWS_AT_ONCE", 10)
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert main(command(texts, trained_run, whole, "--workers", "1", "--threshold", "0.5")) == 0
    said = capsys.readouterr().err
    argv = command(texts, trained_run, out, "--threshold", "0.5")
    interrupt(argv, chunks, monkeypatch)
    assert not out.exists()
    assert sorted(path.name for path in tmp_path.glob("out*")) == ["out.partial", "out.progress"][: 2 * bool(chunks)]
    capsys.readouterr()
    assert main(argv) == 0
    told = capsys.readouterr().err
    assert out.read_bytes() == whole.read_bytes() and not list(tmp_path.glob("out.*"))
    assert (f"{10 * chunks} rows are there already" in told) == bool(chunks)
    # the counts are those of all rows
    assert [line for line in told.splitlines() if " of 95 " in line] == [
        line for line in said.splitlines() if " of 95 " in line
    ]


def test_killed_in_a_process_it_goes_on(trained_run: Path, texts: Path, tmp_path: Path) -> None:
    texts.write_text(texts.read_text(encoding="utf-8") * 30, encoding="utf-8")
    argv = command(texts, trained_run, tmp_path / "out", "--batch-rows", "2")
    with subprocess.Popen([sys.executable, "-m", "nanonet", *argv]) as process:
        while not (tmp_path / "out.progress").exists() or not (tmp_path / "out.progress").stat().st_size:
            assert process.poll() is None
            time.sleep(0.01)
        process.kill()
    assert process.returncode == -9 and not (tmp_path / "out").exists()
    assert main(argv) == 0
    assert main(command(texts, trained_run, tmp_path / "whole", "--batch-rows", "2")) == 0
    assert (tmp_path / "out").read_bytes() == (tmp_path / "whole").read_bytes()


def damage(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b"label", b"lebal", 1))


# what was changed after the interruption: the error
CHANGES = {
    "settings": "another model or other settings",
    "model": "another model or other settings",
    "texts": "other texts",
    "fewer texts": "other texts",
    "rows": "out.partial is damaged",
    "shorter": "out.partial is damaged",
    "progress": "out.progress is damaged",
    "another run": "another run is writing out.partial",
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_was_changed_is_refused_and_stays(
    change: str,
    trained_run: Path,
    texts: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("nanonet.inference.predict.ROWS_AT_ONCE", 10)
    model = shutil.copytree(trained_run / "best", tmp_path / "model")
    argv = command(texts, model, tmp_path / "out")
    interrupt(argv, 3, monkeypatch)
    partial, progress = tmp_path / "out.partial", tmp_path / "out.progress"
    if change == "settings":
        argv += ["--no-text"]
    elif change == "model":
        config = json.loads((model / "config.json").read_text())
        (model / "config.json").write_text(json.dumps(config | {"note": 1}))
    elif change == "texts":
        texts.write_text("x" + texts.read_text(encoding="utf-8"), encoding="utf-8")
    elif change == "fewer texts":
        texts.write_text("".join(texts.read_text(encoding="utf-8").splitlines(True)[:25]), encoding="utf-8")
    elif change == "rows":
        damage(partial)
    elif change == "shorter":
        partial.write_bytes(partial.read_bytes()[:50])
    elif change == "progress":
        progress.write_bytes(b"[]\n")
    before = (partial.read_bytes(), progress.read_bytes().rpartition(b"\n")[0])
    capsys.readouterr()
    with partial.open("ab") as held:
        if change == "another run":
            fcntl.flock(held, fcntl.LOCK_EX)
        assert main(argv) == 2
    lines = capsys.readouterr().err.splitlines()
    assert CHANGES[change] in lines[-1] and "delete" in lines[-1] or change == "another run", lines
    # as it was, but for the chunk that was half-written
    assert before[0].startswith(partial.read_bytes()) and partial.stat().st_size >= 50
    assert progress.read_bytes().rpartition(b"\n")[0] == before[1] and not (tmp_path / "out").exists()
    partial.unlink()  # the cure
    progress.unlink()
    assert main(argv) == 0 and (tmp_path / "out").exists()


def test_a_finished_partial_only_gets_its_name(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), resumable(tmp_path / "o", "s") as output:
        output.write([{"text": "a"}, {"text": "b"}], "1\n2\n", Done(rows=2))
        raise KeyboardInterrupt
    with resumable(tmp_path / "o", "s") as output:
        assert output.done.rows == 2 and not list(output.rest([[("", {"text": "a"}), ("", {"text": "b"})]]))
    assert (tmp_path / "o").read_text() == "1\n2\n" and len(list(tmp_path.iterdir())) == 1
