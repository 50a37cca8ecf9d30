"""A training that is killed or terminated goes on where it was, and only as itself."""

from __future__ import annotations

import dataclasses
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.runs import distance, environment, flags_of, records, run, weights

from nanonet.config.train import TrainConfig
from nanonet.errors import InputError
from nanonet.training.checkpoint import save
from nanonet.training.pipeline import train


def test_a_killed_run_resumes_to_the_same_weights(config: TrainConfig) -> None:
    config = dataclasses.replace(
        config, steps=120, save_every=7, views="dropout,shuffle", tuning="lora", lora_dropout=0.1
    )
    _, uninterrupted = run(config, "uninterrupted")
    folder = Path(config.output).with_name("killed")
    killed = dataclasses.replace(config, output=str(folder))
    process = subprocess.Popen([sys.executable, "-m", "nanonet", "train", *flags_of(killed)], env=environment())
    deadline = time.monotonic() + 120
    while not (folder / "checkpoint.safetensors").exists() and time.monotonic() < deadline:
        assert process.poll() is None, "the run ended before it could be killed"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (folder / "report.json").exists() and (folder / "checkpoint.safetensors").exists()
    with pytest.raises(InputError, match="seed 0 -> 1"):
        train(dataclasses.replace(killed, resume=True, seed=1))
    train(dataclasses.replace(killed, resume=True))
    assert distance(uninterrupted, weights(folder)) == 0
    assert [r["step"] for r in records(config, "killed")] == list(range(120))
    assert not (folder / "checkpoint.safetensors").exists()


@pytest.mark.parametrize(
    ("save_every", "advice"), [(1, "with --resume and without --overwrite"), (0, "--save-every 50")]
)
def test_a_terminated_run_says_how_to_resume(config: TrainConfig, save_every: int, advice: str) -> None:
    config = dataclasses.replace(config, steps=4000, save_every=save_every)
    command = [sys.executable, "-m", "nanonet", "train", *flags_of(config)]
    process = subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (Path(config.output) / "metrics.jsonl").exists() and time.monotonic() < deadline:
        assert process.poll() is None, "the run ended before it could be terminated"
        time.sleep(0.01)
    process.terminate()
    _, errors = process.communicate(timeout=60)
    *_, last = errors.splitlines()
    assert process.returncode == 143 and last.startswith("nanonet: terminated; ") and advice in last
    assert not list(Path(config.output).glob(".*")) and "Traceback" not in errors


def test_a_run_of_other_texts_is_not_resumed(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, out = tmp_path / "own", tmp_path / "stopped"
    shutil.copytree(config.data, data)
    config = dataclasses.replace(config, data=str(data), output=str(out), steps=6, save_every=3)

    def save_and_stop(*arguments) -> None:
        save(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr("nanonet.training.loop.save", save_and_stop)
    with pytest.raises(KeyboardInterrupt):
        train(config)
    lines = (data / "train.jsonl").read_text().splitlines(keepends=True)
    (data / "train.jsonl").write_text("".join(reversed(lines)))
    with pytest.raises(InputError, match="was begun with other texts"):
        train(dataclasses.replace(config, resume=True))
    (data / "train.jsonl").write_text("".join(lines))
    with (out / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "lo')  # truncated by a full disk
        file.write('\n5\n{}\n{"step": "a"}\n')  # not records
    train(dataclasses.replace(config, resume=True))
    assert [r["step"] for r in records(config, "stopped")] == list(range(6))


# the parameters of an encoder's layers that each tuning trains; the head is always trained, the embeddings never
