"""The output folder of a run: who may write into it, what in it is a run's, and what becomes of the run before."""

from __future__ import annotations

import dataclasses
import fcntl
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from nanonet.config.settings import changes
from nanonet.config.train import RUN_CONFIG, TrainConfig
from nanonet.errors import InputError
from nanonet.files import lies_in, read_small, remove, write
from nanonet.teacher import frozen
from nanonet.training import checkpoint

REPORT = "report.json"  # written last: a run that has it is finished
LABEL_TYPE = "label_type.json"  # of a run on labels in memory: what type they had
REPLACED = ".replaced"  # folder of the run that --overwrite replaces, until the new one is finished
UNFINISHED = (checkpoint.NAME, frozen.TUNED_ENCODER, REPLACED)  # what a finished run no longer needs
OURS = re.compile(
    r"(config\.yaml|label_type\.json|metrics\.jsonl|report\.json|report\.html|tensorboard|best|teacher-classifier|student-\d+(-adapter)?"
    rf"|{re.escape(checkpoint.NAME)}|{re.escape(frozen.NAME)}|{frozen.TUNED_ENCODER})"
)
# what `atomic_write` and `save_student` leave behind when they are killed
TEMPORARY = re.compile(rf"\.{OURS.pattern}\.(new-|old-)?\d+")


@dataclass(frozen=True)
class OutputFolder:
    """The output folder of the run that `config` describes."""

    config: TrainConfig

    @property
    def path(self) -> Path:
        return Path(self.config.output).expanduser()

    def check(self) -> None:
        """Refuse a folder whose content is neither to be continued nor to be replaced; nothing is changed.

        Raises:
            InputError: names the folder and the flag that says what to do with it.
        """
        config, path = self.config, self.path
        if any(parent.is_file() for parent in (path, *path.parents)):
            raise InputError(f"--output {path}: a file is in the way; give a folder")
        nearest = next(parent for parent in (path, *path.parents) if parent.exists())
        if not os.access(nearest, os.W_OK):
            raise InputError(f"--output {path}: {nearest} cannot be written to; give another folder")
        full = path.is_dir() and not all(TEMPORARY.fullmatch(file.name) for file in path.iterdir())
        if config.resume:
            _check_resume(config, path)
        elif full and config.overwrite:
            _check_overwrite(config, path)
        elif full:
            raise InputError(f"--output {path} is not empty: give --resume to go on, or --overwrite to replace it")

    def lacks_last_files(self) -> bool:
        """Whether the run that is resumed has its report, but was killed before its folder was complete."""
        return self.config.resume and _is_incomplete(self.path)

    def stored_precision(self) -> Any:
        """The precision of the run that is resumed, which `auto` chose when it began."""
        return _settings(self.path).get("precision", "float32")

    @contextmanager
    def open(self) -> Iterator[Callable[[], None]]:
        """Make the folder that `check` accepted and lock it against other runs; yields a function that raises if the
        path no longer leads to the locked folder.

        What --overwrite replaces is moved aside; it is deleted at the end of the block, or moved back if the block
        fails and the run has no checkpoints to be resumed from.

        Raises:
            InputError: it cannot be made, or another run has it.
        """
        path = self.path
        try:
            path.mkdir(parents=True, exist_ok=True)
            locked = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise InputError(f"--output {path}: cannot be made ({error.strerror}); give another folder") from error
        try:
            _lock(path, locked)
            _ensure_ours(path, locked)  # it may have been replaced before it was locked
            self.check()  # again, now that no other run can change it
            _sweep(path)
            if self.config.overwrite:
                _move_aside(path)
            # what to train, not how this folder was opened: --config with another --output has to work
            stored = dataclasses.replace(self.config, resume=False, overwrite=False)
            write(path / RUN_CONFIG, yaml.safe_dump(dataclasses.asdict(stored), sort_keys=False))
            try:
                yield lambda: _ensure_ours(path, locked)
            except BaseException:
                if _is_ours(path, locked) and not self.config.save_every:
                    _move_back(path)
                raise
            _ensure_ours(path, locked)
            remove(path / REPLACED)
        finally:
            os.close(locked)


def _check_resume(config: TrainConfig, folder: Path) -> None:
    if not (folder / RUN_CONFIG).exists():
        raise InputError(f"--resume: {folder} holds no run to go on with; leave --resume out to start one")
    settings = _settings(folder)
    if not settings:
        raise InputError(f"--resume: {folder / RUN_CONFIG} is damaged; empty the folder to start again")
    changed = changes(settings, config)
    if changed:
        raise InputError(f"--resume: {folder} was begun with other settings ({changed}); give the same ones")
    if (folder / REPORT).exists() and not _is_incomplete(folder):
        raise InputError(f"--resume: the run in {folder} is finished; give --overwrite to run it again")


def _check_overwrite(config: TrainConfig, folder: Path) -> None:
    if not _settings(folder):
        raise InputError(
            f"--overwrite: {folder} was not made by nanonet train (it has no {RUN_CONFIG} of one); empty it yourself"
        )
    for name in ("data", "unlabelled", "teacher", "student_model", "teacher_cache", "class_map", "soft_labels"):
        value = getattr(config, name) or ""
        found = [path for path in (value if isinstance(value, tuple) else (value,)) if lies_in(path, folder)]
        if found:
            flag = f"--{name.replace('_', '-')} {found[0]}"
            raise InputError(f"--overwrite: {flag} lies in {folder}, which would be emptied; give another --output")
    for path in sorted(folder.iterdir()):
        if not (OURS.fullmatch(path.name) or TEMPORARY.fullmatch(path.name) or path.name == REPLACED):
            raise InputError(
                f"--overwrite: {folder} holds {path.name}, which nanonet train did not write; move it away, or give"
                " another --output"
            )


def _is_incomplete(folder: Path) -> bool:
    missing = not (folder / "report.html").exists() or any((folder / name).exists() for name in UNFINISHED)
    return (folder / REPORT).exists() and missing


def _settings(folder: Path) -> dict:
    """The settings of the run in the folder; empty if there is none of ours."""
    try:
        found = yaml.safe_load(read_small(folder / RUN_CONFIG))
    except (OSError, ValueError, RecursionError, yaml.YAMLError):  # somebody else's
        return {}
    known = {field.name for field in dataclasses.fields(TrainConfig)}
    return found if isinstance(found, dict) and found.keys() <= known else {}


def _lock(folder: Path, opened: int) -> None:
    with suppress(OSError):  # a file system without locks
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            reason = "another run is writing there; wait for it, or give another folder"
            raise InputError(f"--output {folder}: {reason}") from None


def _is_ours(folder: Path, locked: int) -> bool:
    """Whether the path still leads to the locked folder."""
    try:
        there, ours = folder.stat(), os.fstat(locked)
    except OSError:
        return False
    return (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino)


def _ensure_ours(folder: Path, locked: int) -> None:
    if not _is_ours(folder, locked):
        raise InputError(f"--output {folder} was deleted or replaced during this run, which stops; give another folder")


def _sweep(folder: Path) -> None:
    """Delete what killed runs have left: temporary files, and what a finished run no longer needs."""
    for path in list(folder.iterdir()):
        if TEMPORARY.fullmatch(path.name):
            remove(path)
    aside = folder / REPLACED
    if aside.exists() and not (aside / RUN_CONFIG).exists():  # killed while files were moved to or fro
        _empty_aside(folder)
    if (folder / REPORT).exists():
        for name in UNFINISHED:
            remove(folder / name)


def _move_aside(folder: Path) -> None:
    """Move the run in the folder to REPLACED. Its settings are copied, last: they mark both folders as ours.

    If REPLACED is complete, a run that was to replace it was killed: that one is deleted, and REPLACED stays.
    """
    aside = folder / REPLACED
    others = [path for path in folder.iterdir() if path.name not in (REPLACED, RUN_CONFIG)]
    if (aside / RUN_CONFIG).exists():
        for path in others:
            remove(path)
    elif (folder / RUN_CONFIG).exists():
        aside.mkdir(exist_ok=True)
        for path in others:
            path.rename(aside / path.name)
        write(aside / RUN_CONFIG, (folder / RUN_CONFIG).read_text(encoding="utf-8"))


def _move_back(folder: Path) -> None:
    """Put back what `_move_aside` moved, unless the new run is finished."""
    aside = folder / REPLACED
    if not aside.exists() or (folder / REPORT).exists():
        return
    for path in list(folder.iterdir()):
        if path.name not in (REPLACED, RUN_CONFIG):
            remove(path)
    (aside / RUN_CONFIG).rename(folder / RUN_CONFIG)  # first: REPLACED is no longer complete, whatever is in the folder
    _empty_aside(folder)


def _empty_aside(folder: Path) -> None:
    """Move what is in REPLACED to where it was."""
    aside = folder / REPLACED
    for path in list(aside.iterdir()):
        path.rename(folder / path.name)
    aside.rmdir()
