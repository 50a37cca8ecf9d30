"""Places that nothing may be written to."""

from __future__ import annotations

import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from nanonet.cli.main import main
from nanonet.config.train import TrainConfig
from nanonet.errors import InputError
from nanonet.training.output_folder import OutputFolder

# files in the working folder, arguments (see conftest.py), fragments of the message
Case = tuple[dict[str, str | bytes], str, list[str]]

TWO = '{"text": "cat", "label": "a"}\n{"text": "rain", "label": "b"}\n'

OUTPUT: dict[str, Case] = {
    "not empty": ({"out/a": "x"}, "train  {shared}", ["not empty", "--resume", "--overwrite"]),
    "a file in the way": ({"out": "x"}, "train  {shared}", ["a file is in the way", "give a folder"]),
    "a file for a parent": ({"f": "x"}, "train --output {here}/f/g", ["a file is in the way"]),
    "somebody else's": (
        {"out/a": "x"},
        "train --overwrite {shared}",
        ["was not made by nanonet", "empty it yourself"],
    ),
    "somebody else's settings": (
        {"out/config.yaml": "site: mine\n", "out/src/a": "x"},
        "train --overwrite {shared}",
        ["was not made by nanonet", "empty it yourself"],
    ),
    "a thesis beside a run's settings": (
        {"out/config.yaml": "steps: 2\n", "out/thesis.tex": "x"},
        "train --overwrite {shared}",
        ["holds thesis.tex", "did not write", "another --output"],
    ),
    "texts in what is emptied": (
        {"out/config.yaml": "steps: 2\n", "out/d/train.jsonl": TWO},
        "train --overwrite {shared} --data {out}/d",
        ["--data", "would be emptied", "another --output"],
    ),
    "a cache in what is emptied": (
        {"out/config.yaml": "steps: 2\n", "out/c/a": "x"},
        "train --overwrite {shared} --teacher-cache {out}/c",
        ["--teacher-cache", "would be emptied"],
    ),
    "a tokenizer of more words than the teacher has": (
        {"out/config.yaml": "steps: 2\n"},
        "train --overwrite {shared} --teacher {small}",
        ["knows more tokens than the model (20)"],
    ),
    "nothing to resume": ({}, "train --resume {shared}", ["no run to go on with", "leave --resume out"]),
    "predictions into a folder": (
        {"t.txt": "a\n"},
        "predict {here}/t.txt --model {run} --output {here}",
        ["is a folder"],
    ),
    "predictions over others": (
        {"t.txt": "a\n", "p": "x"},
        "predict {here}/t.txt --model {run} --output {here}/p",
        ["there already", "--overwrite"],
    ),
    "cache that is a file": (
        {"c": "x", "out/config.yaml": "steps: 2\n"},
        "train --overwrite --teacher-cache {here}/c {shared}",
        ["--teacher-cache", "give a folder"],
    ),
    "no class with two labels": (
        {"d/train.jsonl": TWO, "out/config.yaml": "steps: 2\n"},
        "train --data {here}/d --teacher {encoder} --overwrite --output {out} --labels-per-class 0 --max-tokens 32",
        ["no class has two", "add labelled rows"],
    ),
    "figure into nowhere": ({}, "bench --plot {here}/n/x.png", ["--plot", "there is no folder"]),
    "predictions into nowhere": (
        {"t.txt": "a\n"},
        "predict {here}/t.txt --model {run} --output {here}/n/p",
        ["cannot be"],
    ),
    "predictions over the texts": (
        {"t.txt": "a\n"},
        "predict {here}/t.txt --model {run} --output {here}/t.txt",
        ["is the input itself", "another file"],
    ),
    "export over a file": (
        {"m.onnx": "x"},
        "export --model {run} --output {here}/m.onnx",
        ["there already", "--overwrite"],
    ),
    "export to nowhere": ({}, "export --model {run}", ["--output is missing", "model.onnx"]),
    "export to a missing folder": ({}, "export --model {run} --output {here}/n/m.onnx", ["there is no folder"]),
    "export over somebody's": (
        {"d/a": "x"},
        "export --model {run} --format huggingface --overwrite --output {here}/d",
        ["no model's folder", "empty it yourself"],
    ),
    "export over some program's settings": (
        {"d/config.json": '{"port": 80}'},
        "export --model {run} --format huggingface --overwrite --output {here}/d",
        ["no model's folder", "empty it yourself"],
    ),
    "export over somebody's model": (
        {"d/config.json": '{"model_type": "bert"}', "d/README.md": "x"},
        "export --model {run} --format huggingface --overwrite --output {here}/d",
        ["holds README.md", "move it away"],
    ),
    "predictions over the texts by another name": (
        {"t.txt": "a\n", "s/b": ""},
        "predict {here}/t.txt --model {run} --overwrite --output {here}/s/../t.txt",
        ["is the input itself"],
    ),
    "a name of 300 letters": ({}, "predict " + 300 * "a" + " --model {run}", ["name too long"]),
    "a figure that is a folder": ({"x.png/a": ""}, "bench --plot {here}/x.png", ["--plot", "is a folder"]),
    "texts over the data": (
        {"d/train.jsonl": TWO},
        "generate --model {run} --labelled {here}/d --overwrite --output {here}/d/train.jsonl",
        ["would be read as data of --labelled", "another name"],
    ),
    "export into the model": (
        {},
        "export --model {run}/best --format huggingface --output {run}/best/copy",
        ["lies in the model's own folder", "another place"],
    ),
    "export over a device": (
        {},
        "export --model {run} --format onnx --overwrite --output /dev/null",
        ["/dev/null is no file"],
    ),
    "export of a folder over a device": (
        {},
        "export --model {run} --overwrite --output /dev/null",
        ["a file is in the way", "give a folder"],
    ),
    "export of a folder over somebody's model": (
        {"d/config.json": '{"model_type": "bert"}', "d/README.md": "x"},
        "export --model {run} --overwrite --output {here}/d",
        ["holds README.md", "move it away"],
    ),
    "export of a folder over another file of an export": (
        {"d/config.json": '{"model_type": "bert", "nanonet_version": "0"}', "d/onnx/mine.txt": "x"},
        "export --model {run} --overwrite --output {here}/d",
        ["holds onnx/mine.txt", "move it away"],
    ),
    "8 bits of a folder that has both": ({}, "export --model {run} --int8 --output {out}", ["--int8", "holds both"]),
    "a licence that is none": (
        {},
        "export --model {run} --license mine:all --output {out}",
        ["--license mine:all", "apache-2.0"],
    ),
    "a licence of a file": (
        {},
        "export --model {run} --license mit --output {out}.onnx",
        ["--license goes with --format folder"],
    ),
    "output that cannot be made": (
        {},
        "train --output /proc/nanonet --data {data} --teacher {encoder} --max-tokens 32 --targets classifier",
        ["--output /proc/nanonet", "give another folder"],
    ),
    "8 bits of a folder": ({}, "export --model {run} --format huggingface --int8 --output {out}", ["--int8", "onnx"]),
    "no such student": ({}, "export --model {run} --student 7 --output {here}/m.onnx", ["no student-7", "student-0"]),
    "student of no run": (
        {},
        "export --model {encoder} --student 0 --output {here}/m.onnx",
        ["--student 0", "nanonet train"],
    ),
}


def test_what_an_output_leads_to_is_emptied_and_not_the_link(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "real")
    (tmp_path / "link").symlink_to("real")
    shutil.rmtree(tmp_path / "real" / "student-1")
    (tmp_path / "real" / "student-1").symlink_to(run)
    words = ["train", "--config", str(run / "config.yaml"), "--output", str(tmp_path / "link"), "--overwrite"]
    assert main(words) == 0
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real" / "report.json").exists()
    assert not (tmp_path / "real" / "student-1").is_symlink() and (run / "report.json").exists()


def test_an_export_that_cannot_be_put_in_place_leaves_what_was_there(
    run: Path, tmp_path: Path, snapshot: Callable[[Path], dict[str, bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    output, rename = tmp_path / "copy", Path.rename
    words = ["export", "--model", str(run), "--format", "huggingface", "--output", str(output)]
    assert main(words) == 0
    before = snapshot(tmp_path)

    def refused(path: Path, target: Path) -> Path:
        if path.name == "written" and Path(target) == output and not output.exists():
            raise OSError(28, "No space left on device", str(target))
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", refused)
    assert main([*words, "--overwrite"]) == 2
    assert snapshot(tmp_path) == before
    monkeypatch.undo()
    assert main([*words, "--overwrite"]) == 0 and snapshot(tmp_path).keys() == before.keys()


def test_two_runs_into_one_folder(run: Path, tmp_path: Path) -> None:
    config = TrainConfig(output=str(tmp_path / "out"))
    with OutputFolder(config).open(), pytest.raises(InputError, match="another run is writing there"):
        with OutputFolder(config).open():
            pass
    with pytest.raises(InputError, match="not empty"), OutputFolder(config).open():
        pass


def test_a_disk_that_is_full(fill: Callable[[str], list[str]], tmp_path: Path) -> None:
    def small_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))

    words = [sys.executable, "-m", "nanonet", *fill("train {shared} --targets classifier")]
    done = subprocess.run(words, capture_output=True, text=True, preexec_fn=small_files, timeout=120)
    *_, last = done.stderr.splitlines()
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert last.startswith("nanonet: error: ") and "give another path, or make room there" in last
    assert not list(tmp_path.rglob("report.json")) and not list(tmp_path.rglob(".*"))


@pytest.mark.parametrize("case", OUTPUT.values(), ids=OUTPUT)
def test_bad_output(case: Case, refuses: Callable[..., None]) -> None:
    refuses(*case)


def test_resuming_under_other_settings(
    run: Path, tmp_path: Path, snapshot: Callable[[Path], dict[str, bytes]], capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    before = snapshot(copy)
    words = ["train", "--config", str(run / "config.yaml"), "--output", str(copy), "--resume", "--seed", "5"]
    assert main(words) == 2
    assert "seed 0 -> 5" in capsys.readouterr().err
    assert main([*words[:-1], "0"]) == 2
    assert "is finished; give --overwrite" in capsys.readouterr().err
    assert snapshot(copy) == before
