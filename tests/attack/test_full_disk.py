"""A disk that is full at some moment of a command: one line, exit code 2, nothing half-written, what was there stays;
and a training ends, once there is room, bit for bit as if there had always been.

The disk is a tmpfs of a few megabytes, which only root may mount.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors import safe_open
from support.attack import Answer, answer, weights

SIZE = 64 << 20
# share of what a whole training needs that is left of the output's disk, and of the teacher cache's
LEAVES = [(0.0, 1), (0.05, 1), (0.3, 1), (0.6, 1), (0.95, 1), (1, 0.0), (1, 0.2)]
TRAIN = (
    "train --max-tokens 32 --labels-per-class 5 --threads 1 --steps 10 --save-every 2 --teacher-steps 4 --keep-teacher"
)


class Disk:
    def __init__(self, path: Path) -> None:
        self.path, self.ballast = path, path / "ballast"

    def free(self) -> int:
        found = os.statvfs(self.path)
        return found.f_bavail * found.f_frsize

    def leave(self, room: int) -> None:
        """Fill the disk up to so many bytes."""
        self.clear()
        with self.ballast.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, max(self.free() - room, 1))

    def clear(self) -> None:
        self.ballast.unlink(missing_ok=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    path = tmp_path / "disk"
    path.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "none", path], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"a small tmpfs cannot be mounted here: {mounted.stderr.strip()}")
    try:
        yield Disk(path)
    finally:
        subprocess.run(["umount", "-l", path], check=True)


def refused(said: Answer) -> None:
    lines = [line for line in said.lines if "rror" in line or "Traceback" in line]
    assert said.code == 2 and len(lines) == 1 and lines[0].startswith("nanonet: error: "), said
    assert said.lines[-1] == lines[0] and "make room" in lines[0] or "No space left" in lines[0], lines


def whole_files(folder: Path) -> dict[str, bytes]:
    """Every file of a folder, each of them readable to its end, none of them temporary."""
    found = {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}
    for name, content in found.items():
        assert not Path(name).name.startswith("."), found.keys()
        if name.endswith(".json"):
            json.loads(content)
        if name.endswith(".safetensors"):
            with safe_open(folder / name, "pt") as file:
                assert [file.get_tensor(key) for key in file.keys()]
    return found


@pytest.fixture(scope="module")
def whole(tiny_data: Path, tiny_encoder: Path, tmp_path_factory: pytest.TempPathFactory):
    """A training of a disk with room: its words, its weights, and its size with the checkpoints."""
    folder = tmp_path_factory.mktemp("whole")
    words = [*TRAIN.split(), "--data", str(tiny_data), "--teacher", str(tiny_encoder)]
    said = answer([*words, "--output", str(folder / "run")], folder / "said")
    assert said.code == 0, said.lines
    files = [file.stat().st_size for file in (folder / "run").rglob("*") if file.is_file()]
    return words, weights(folder / "run"), sum(files)


@pytest.mark.parametrize(("share", "of_cache"), LEAVES)
def test_a_training(share: float, of_cache: float, whole, disk: Disk, tmp_path: Path) -> None:
    words, expected, size = whole
    run = (disk.path if of_cache == 1 else tmp_path) / "run"
    if of_cache < 1:
        words = [*words, "--teacher-cache", str(disk.path / "cache")]
    disk.leave(int(min(share, of_cache) * size))
    refused(answer([*words, "--output", str(run)], tmp_path / "said"))
    if run.exists():
        whole_files(run)
    for entry in (disk.path / "cache").glob("*"):
        whole_files(entry)
    disk.clear()
    again = answer([*words, "--output", str(run), "--resume"], tmp_path / "said")
    if again.code == 2 and "no run to go on with" in again.lines[-1]:
        again = answer([*words, "--output", str(run)], tmp_path / "said")
    assert again.code == 0, again.lines
    assert weights(run) == expected and (run / "report.html").exists()


@pytest.mark.parametrize(
    ("form", "overwrite", "share"),
    [("onnx", False, 0.5), ("onnx", True, 0.0), ("onnx", True, 0.9)]
    + [("huggingface", False, 0.9), ("huggingface", True, 0.0), ("huggingface", True, 0.5)],
)
def test_an_export(form: str, overwrite: bool, share: float, trained_run: Path, disk: Disk, tmp_path: Path) -> None:
    words = f"export --model {trained_run} --format {form} --output {disk.path}/out"
    assert answer(words.split(), tmp_path / "said").code == 0
    before = whole_files(disk.path)
    size = sum(map(len, before.values()))
    if not overwrite:
        subprocess.run(["rm", "-r", disk.path / "out"], check=True)
        before = {}
    disk.leave(int(share * size))
    refused(answer([*words.split(), *["--overwrite"] * overwrite], tmp_path / "said"))
    disk.clear()
    assert whole_files(disk.path) == before
    assert answer([*words.split(), *["--overwrite"] * overwrite], tmp_path / "said").code == 0


@pytest.mark.parametrize("room", [0, 4096])
def test_predictions(room: int, trained_run: Path, disk: Disk, tmp_path: Path) -> None:
    texts, out = tmp_path / "texts.txt", disk.path / "out.jsonl"
    texts.write_text("a cat\n" * 3000)
    out.write_text("old\n")
    disk.leave(room)
    words = f"predict {texts} --model {trained_run} --output {out} --overwrite"
    refused(answer(words.split(), tmp_path / "said"))
    disk.clear()
    assert whole_files(disk.path) == {"out.jsonl": b"old\n"}


@pytest.mark.parametrize("command", ["evaluate --data {data}", "predict {texts}", "export --output {out}", "info"])
def test_standard_output(command: str, trained_run: Path, tiny_data: Path, tmp_path: Path) -> None:
    texts = tmp_path / "texts.txt"
    texts.write_text("a cat\n" * 3000)
    words = command.format(data=tiny_data, texts=texts, out=tmp_path / "out").split()
    model = [] if command == "info" else ["--model", str(trained_run)]
    refused(answer([*words, *model], tmp_path / "said", out=Path("/dev/full")))
