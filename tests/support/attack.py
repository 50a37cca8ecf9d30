"""nanonet's commands in processes of their own, which may be killed; forked, so that torch is imported once."""

from __future__ import annotations

import multiprocessing
import os
import resource
import sys
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import NamedTuple

from safetensors.torch import load_file

TIMEOUT = 120  # seconds that a command may take
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    ["torch", "nanonet.cli.main", "nanonet.training.pipeline", "nanonet.inference.export", "nanonet.api"]
)


class Answer(NamedTuple):
    code: int | None
    lines: list[str]  # of standard error
    peak: int  # largest memory of the process [bytes]


def command(words: list[str], folder: Path, out: Path | None) -> None:
    """Runs in the child: nanonet with these arguments; what it says and its memory go into files of `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    for place, stream in ((out or folder / "out", 1), (folder / "err", 2)):
        os.dup2(os.open(place, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
    import torch

    from nanonet.cli.main import main

    torch.set_num_threads(1)
    code = 1
    try:
        code = in_python(*words) if "." in words[0] else main(words)
    finally:
        sys.stderr.flush()
        (folder / "peak").write_text(str(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024))
    sys.exit(code)


def in_python(name: str, folder: str) -> int:
    """nanonet.load or Distiller.load of a folder, as a command: its InputError is the line and the code 2."""
    import nanonet

    try:
        {"nanonet.load": nanonet.load, "Distiller.load": nanonet.Distiller.load}[name](folder)
    except nanonet.errors.InputError as error:
        print(f"nanonet: error: {error}", file=sys.stderr)
        return 2
    return 0


def start(words: list[str], folder: Path, out: Path | None = None) -> BaseProcess:
    process = CONTEXT.Process(target=command, args=(words, folder, out))
    process.start()
    return process


def answer(words: list[str], folder: Path, out: Path | None = None) -> Answer:
    """out: where standard output goes, by default a file of `folder`."""
    process = start(words, folder, out)
    process.join(TIMEOUT)
    if process.exitcode is None:
        process.kill()
        process.join()
        raise TimeoutError(f"no answer after {TIMEOUT} s: {' '.join(words)}")
    peak = int((folder / "peak").read_text()) if (folder / "peak").exists() else 0
    return Answer(process.exitcode, (folder / "err").read_bytes().decode(errors="replace").split("\n")[:-1], peak)


def weights(run: Path) -> dict[str, bytes]:
    """Every weight of the students of a run."""
    files = sorted(run.glob("student-*/model.safetensors"))
    return {f"{f.parent.name}/{k}": v.numpy().tobytes() for f in files for k, v in load_file(f).items()}
