"""Recipe: two processes (gloo) train as one does, by a plain loop and by Trainer."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

TESTS = Path(__file__).parents[1]


def run(recipe, folder, world):
    """The results of each of so many processes."""
    folder.mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {"PYTHONPATH": str(TESTS), "OMP_NUM_THREADS": "1"}
    if world > 1:
        common |= {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    command = [sys.executable, str(TESTS / "support" / "processes.py"), recipe, str(folder)]
    started = [
        subprocess.Popen(
            command,
            env=os.environ | common | ({"RANK": str(rank), "LOCAL_RANK": str(rank)} if world > 1 else {}),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world)
    ]
    for process in started:
        _, errors = process.communicate(timeout=240)
        assert process.returncode == 0, errors[-2000:]
    return [torch.load(folder / f"{rank}.pt") for rank in range(world)]


@pytest.mark.parametrize("recipe", ["plain", "trainer"])
def test_two_processes_equal_one(recipe, tmp_path):
    (alone,) = run(recipe, tmp_path / "one", 1)
    first, second = run(recipe, tmp_path / "two", 2)
    assert len(alone["losses"]) == 3 and alone["losses"][-1] < alone["losses"][0]
    assert first["losses"] == pytest.approx(alone["losses"], rel=1e-4)
    torch.testing.assert_close(first["parameters"], second["parameters"], rtol=0, atol=0)
    torch.testing.assert_close(first["parameters"], alone["parameters"], rtol=1e-4, atol=1e-5)
