"""Trainings killed at random moments of all their stages and resumed end bit for bit as without the kill."""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

from support.attack import answer, start, weights

KILLS = int(os.environ.get("NANONET_ATTACK_KILLS", "10"))


def test_killed_runs_resume_bit_for_bit(tiny_data: Path, tiny_encoder: Path, tmp_path: Path) -> None:
    shared = f"train --data {tiny_data} --teacher {tiny_encoder} --max-tokens 32 --labels-per-class 5 --threads 1"
    shared += " --steps 20 --save-every 5 --teacher-steps 5 --views dropout,shuffle --tuning lora"
    shared += " --labelled-batch 5 --unlabelled-batch 11 --lora-dropout 0.1"
    words = [*shared.split(), "--output"]
    answer([*words, str(tmp_path / "warm")], tmp_path / "said")  # the process that forks imports torch
    began = time.monotonic()
    whole = answer([*words, str(tmp_path / "whole")], tmp_path / "said")
    duration = time.monotonic() - began
    assert whole.code == 0, whole.lines
    expected, rng, killed = weights(tmp_path / "whole"), random.Random(0), 0
    assert expected == weights(tmp_path / "warm") and expected
    for i in range(KILLS):  # one in each of as many equal spans of a run
        run, moment = tmp_path / f"run-{i}", (i + rng.random()) / KILLS * duration
        process = start([*words, str(run)], tmp_path / "said")
        process.join(moment)
        process.kill()
        process.join()
        killed += process.exitcode == -9
        left = sorted(path.name for path in run.glob("*"))
        resumed = answer([*words, str(run), "--resume"], tmp_path / "said")
        if resumed.code == 2 and "no run to go on with" in resumed.lines[-1]:
            resumed = answer([*words, str(run)], tmp_path / "said")
        at = f"killed after {moment:.2f} of {duration:.2f} s, where {left} lay: {resumed.lines[-1:]}"
        finished = resumed.code == 2 and "is finished" in resumed.lines[-1]  # the kill came too late
        assert finished or resumed.code == 0, at
        assert weights(run) == expected, at
        assert (run / "report.json").exists() and not list(run.glob(".*.tmp")), at
        assert not list(run.rglob("checkpoint.safetensors")), at
    assert killed >= KILLS / 2, f"{killed} of {KILLS} were still running when they were to be killed"
