"""The output folder of a run: who may write into it."""

from __future__ import annotations

import dataclasses
import os
import shutil
from pathlib import Path

import yaml

from nanonet.checkpoint import changes
from nanonet.config import InputError, TrainConfig
from nanonet.files import write

MARK = "config.yaml"  # what tells a folder of ours from any other


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
    full, ours = folder.is_dir() and any(folder.iterdir()), (folder / MARK).exists()
    if config.overwrite and full and not ours:
        raise InputError(f"--overwrite: {folder} was not made by nanonet train (it has no {MARK}); empty it yourself")
    if config.resume and not ours:
        raise InputError(f"--resume: {folder} holds no run to go on with; leave --resume out to start one")
    if full and not config.resume and not config.overwrite:
        raise InputError(f"--output {folder} is not empty: give --resume to go on, or --overwrite to replace it")
    if config.resume:
        try:
            changed = changes(yaml.safe_load((folder / MARK).read_text(encoding="utf-8")), config)
        except (yaml.YAMLError, AttributeError, UnicodeDecodeError) as error:
            raise InputError(f"--resume: {folder / MARK} is damaged; give --overwrite to start again") from error
        if changed:
            raise InputError(f"--resume: {folder} was begun with other settings ({changed}); give the same ones")
        if (folder / "report.json").exists():
            raise InputError(f"--resume: the run in {folder} is finished; give --overwrite to run it again")
    return folder


def open_folder(config: TrainConfig, folder: Path) -> None:
    """Make the folder that `check_folder` let pass, emptied where it is overwritten, and mark it as ours."""
    if config.overwrite and folder.exists():
        shutil.rmtree(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--output {folder}: cannot be made ({error.strerror}); give another folder") from error
    # what to train, not how this folder was opened: --config with another --output has to work
    kept = dataclasses.replace(config, resume=False, overwrite=False)
    write(folder / MARK, yaml.safe_dump(dataclasses.asdict(kept), sort_keys=False))
