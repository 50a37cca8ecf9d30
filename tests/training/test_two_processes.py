"""Two processes that torchrun starts make what one makes, and end together."""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.grids import slow
from support.runs import MODES, distance, environment, flags_of, records, run, weights

from nanonet.config.train import TrainConfig


def run_two(config: TrainConfig) -> subprocess.CompletedProcess:
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "nanonet"]
    env = environment() | {"CUDA_VISIBLE_DEVICES": ""}
    where = Path(config.output).parent
    command = [*launch, "train", *flags_of(config)]
    return subprocess.run(command, capture_output=True, text=True, env=env, cwd=where, timeout=600)


# cached: both have the teacher that one process has made
@pytest.mark.parametrize("mode", ["frozen", slow("cached"), slow("online"), slow("head")])
def test_two_processes_make_the_same_weights_as_one(config: TrainConfig, mode: str) -> None:
    cache = str(Path(config.output).with_name("cache")) if mode == "cached" else ""
    config = dataclasses.replace(config, teacher_cache=cache, **MODES.get(mode, {}))
    config = dataclasses.replace(config, **({} if mode == "head" else {"steps": 6, "views": "cutoff"}))
    alone, one = run(config, "one")
    folder = Path(config.output).with_name("two")
    # once with a tracker, whose end is not that of the processes
    done = run_two(dataclasses.replace(config, output=str(folder), tensorboard=mode == "online"))
    assert done.returncode == 0, done.stderr[-2000:]
    report = json.loads((folder / "report.json").read_text())
    assert report["versions"]["processes"] == 2
    # a logistic regression stops at 1e-4 of its gradient, and so makes other soft labels of the same embeddings
    assert distance(one, weights(folder)) < (2e-3 if mode == "frozen" else 1e-4)
    if mode in ("frozen", "cached"):
        soft_labels = [
            load_file(folder.with_name(name) / "targets.safetensors")["soft_labels"] for name in ("one", "two")
        ]
        torch.testing.assert_close(*soft_labels, rtol=0, atol=0.03 if mode == "frozen" else 0)
    assert len(records(config, "two")) == config.steps
    for what in ("teacher", "linear_probe", "ensemble"):
        assert report[what]["accuracy"] == alone[what]["accuracy"]
    for what in ("targets", "cross_validation"):
        assert report["teacher"][what] == alone["teacher"][what]
    assert [s["accuracy"] for s in report["students"]] == [s["accuracy"] for s in alone["students"]]


@pytest.mark.slow
def test_a_process_that_fails_ends_the_others(config: TrainConfig) -> None:
    folder = Path(config.output)
    folder.mkdir()
    held = os.open(folder, os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    done = run_two(config)
    os.close(held)
    lines = [line for line in done.stderr.splitlines() if line.startswith("nanonet: error:")]
    said = f"nanonet: error: --output {folder}: another run is writing there; wait for it, or give another folder"
    assert done.returncode != 0 and lines.count(said) == 1
    # the other process is told by its connection, or ended by torchrun
    assert {line for line in lines if line != said} <= {
        "nanonet: error: another process of this run has ended; what it says is the reason"
    }
    assert "/nanonet/" not in done.stderr.replace(str(folder), "")  # no traceback of ours
    assert not list(folder.iterdir())
