"""Recipe: two processes (gloo) train as one does, by a plain loop with DDP or FSDP2, and by Trainer."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

TESTS = Path(__file__).parents[1]


def run(folder, world):
    """The results of each of so many processes."""
    folder.mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {"PYTHONPATH": str(TESTS), "OMP_NUM_THREADS": "1"}
    if world > 1:
        common |= {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    command = [sys.executable, str(TESTS / "support" / "processes.py"), str(folder)]
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


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Of the only process, and of each of two."""
    folder = tmp_path_factory.mktemp("processes")
    return *run(folder / "one", 1), *run(folder / "two", 2)


@pytest.mark.parametrize("recipe", ["plain", "fsdp", "trainer"])
def test_two_processes_equal_one(recipe, results):
    alone, first, second = (result[recipe] for result in results)
    assert len(alone["losses"]) == 3 and alone["losses"][-1] < alone["losses"][0]
    assert first["losses"] == pytest.approx(alone["losses"], rel=1e-4)
    torch.testing.assert_close(first["parameters"], second["parameters"], rtol=0, atol=0)
    torch.testing.assert_close(first["parameters"], alone["parameters"], rtol=1e-4, atol=1e-5)
