"""The output folder of a run: who may write into it."""

from __future__ import annotations

import dataclasses
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import yaml

from nanonet.config.train import RUN_CONFIG, TrainConfig
from nanonet.errors import InputError
from nanonet.files import empty, lies_in, write
from nanonet.training.checkpoint import changes


def check_folder(config: TrainConfig) -> Path:
    """The output folder, untouched; refuses one that holds something else than a run to go on with.

    Raises:
        InputError: names the folder and the flag that says what to do with it.
    """
    folder = Path(config.output).expanduser()
    if any(parent.is_file() for parent in (folder, *folder.parents)):
        raise InputError(f"--output {folder}: a file is in the way; give a folder")
    nearest = next(parent for parent in (folder, *folder.parents) if parent.exists())
    if not os.access(nearest, os.W_OK):
        raise InputError(f"--output {folder}: {nearest} cannot be written to; give another folder")
    full, settings = folder.is_dir() and any(folder.iterdir()), _settings(folder)
    if config.overwrite and full and not settings:
        raise InputError(
            f"--overwrite: {folder} was not made by nanonet train (it has no {RUN_CONFIG} of one); empty it yourself"
        )
    for name in ("data", "unlabelled", "teacher", "teacher_cache") if config.overwrite and full else ():
        if lies_in(getattr(config, name) or "", folder):
            flag = f"--{name.replace('_', '-')} {getattr(config, name)}"
            raise InputError(f"--overwrite: {flag} lies in {folder}, which would be emptied; give another --output")
    if config.resume and not (folder / RUN_CONFIG).exists():
        raise InputError(f"--resume: {folder} holds no run to go on with; leave --resume out to start one")
    if full and not config.resume and not config.overwrite:
        raise InputError(f"--output {folder} is not empty: give --resume to go on, or --overwrite to replace it")
    if config.resume:
        if not settings:
            raise InputError(f"--resume: {folder / RUN_CONFIG} is damaged; empty the folder to start again")
        changed = changes(settings, config)
        if changed:
            raise InputError(f"--resume: {folder} was begun with other settings ({changed}); give the same ones")
        if (folder / "report.json").exists():
            raise InputError(f"--resume: the run in {folder} is finished; give --overwrite to run it again")
    return folder


def _settings(folder: Path) -> dict:
    """What the folder's run was told; empty where no run of ours made it."""
    try:
        found = yaml.safe_load((folder / RUN_CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError):  # somebody else's
        return {}
    known = {field.name for field in dataclasses.fields(TrainConfig)}
    return found if isinstance(found, dict) and found.keys() <= known else {}


@contextmanager
def open_folder(config: TrainConfig, folder: Path) -> Iterator[None]:
    """Make the folder that `check_folder` let pass, emptied where it is overwritten, and mark it as ours. Within the
    block no other run can open it.

    Raises:
        InputError: it cannot be made, or another run has it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        held = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise InputError(f"--output {folder}: cannot be made ({error.strerror}); give another folder") from error
    try:
        with suppress(OSError):  # a file system without locks
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                what = "another run is writing there; wait for it, or give another folder"
                raise InputError(f"--output {folder}: {what}") from None
        check_folder(config)  # another run may have been there since
        if config.overwrite:
            empty(folder, last=RUN_CONFIG)
        # what to train, not how this folder was opened: --config with another --output has to work
        kept = dataclasses.replace(config, resume=False, overwrite=False)
        write(folder / RUN_CONFIG, yaml.safe_dump(dataclasses.asdict(kept), sort_keys=False))
        yield
    finally:
        os.close(held)
