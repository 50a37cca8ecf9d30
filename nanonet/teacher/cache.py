"""The teacher cache: frozen teachers and backbone features that several runs share.

An entry is a folder named by a hash of everything that decides a teacher: the texts' token ids, the labels, the
encoder's weights, configuration and pooling, and the settings. A change of any of them makes another entry. The
backbone features of a cohort (training/backbone.py) are a file beside them, named likewise.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import shutil
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from torch import Tensor
from transformers import PreTrainedModel

from nanonet.cohort.model import Cohort
from nanonet.config.settings import TeacherSettings
from nanonet.data.batches import Encoded
from nanonet.errors import InputError
from nanonet.files import atomic_write, remove
from nanonet.teacher.frozen import VERSION

# temporary files and folders of `store` and `save_tensors`; other runs may be writing them, but not for a day
LEFTOVER = re.compile(r"\.([0-9a-f]{32}\.\w+|backbone-[0-9a-f]{32}\.safetensors\.\d+)")
LEFTOVER_AGE_S = 24 * 3600


def fingerprint(settings: TeacherSettings, rows: Encoded, label: Tensor, encoder: PreTrainedModel, pooling: str) -> str:
    """The name of a teacher's entry, 32 hexadecimal digits. pooling: how the encoder's output is used.

    An online teacher begins as the frozen one of the same settings."""
    facts = [pooling, dataclasses.asdict(dataclasses.replace(settings, online=False))]
    return _hash(facts, encoder, rows, {"label": label, **encoder.state_dict()})


def fingerprint_of_logits(settings: TeacherSettings, tensors: dict[str, Tensor]) -> str:
    """The name of the entry of a teacher without a model, which is all in these tensors."""
    return _digest([dataclasses.asdict(settings)], tensors)


def fingerprint_of_encoder(encoder: PreTrainedModel, rows: Encoded) -> str:
    """What students of this encoder start from: its weights and the rows in its tokens."""
    return _hash([], encoder, rows, encoder.state_dict())


def backbone_features_name(cohort: Cohort, rows: Encoded, precision: str) -> str:
    """The name of the file of a cohort's backbone features of the rows. Its heads do not matter."""
    backbone = {name: t for name, t in cohort.model.state_dict().items() if cohort.parts.of(name) != "head"}
    return f"backbone-{_hash([cohort.students, precision], cohort.model, rows, backbone)}.safetensors"


def _hash(facts: list, model: PreTrainedModel, rows: Encoded, tensors: dict[str, Tensor]) -> str:
    # without the model's place, and the version that saved it
    config = model.config.to_dict() | {"_name_or_path": "", "transformers_version": ""}
    return _digest([config, *facts], {"ids": rows.ids, "offsets": rows.offsets, **tensors})


def _digest(facts: list, tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256(json.dumps([VERSION, *facts], sort_keys=True, default=str).encode())
    for name, tensor in tensors.items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().data)
    return digest.hexdigest()[:32]


def ensure_writable(cache: Path) -> None:
    """Make the cache if there is none; delete what killed runs have left there.

    Raises:
        InputError: it cannot be written to; found before a teacher is made, not after.
    """
    try:
        cache.mkdir(parents=True, exist_ok=True)
        Path(tempfile.mkdtemp(prefix=".", dir=cache)).rmdir()
        for path in cache.iterdir():
            if LEFTOVER.fullmatch(path.name) and time.time() - path.lstat().st_mtime > LEFTOVER_AGE_S:
                remove(path)
    except OSError as error:
        raise InputError(f"--teacher-cache {cache}: {error.strerror}; give a folder that can be written to") from error


def restore(cache: Path, key: str, folder: Path) -> bool:
    """Copy the entry's files into `folder`; False if there is no such entry."""
    entry = cache / key
    if not entry.is_dir():
        return False
    # folders first: the teacher's file, which is renamed into place last, marks the copy as complete
    for path in sorted(entry.iterdir(), key=Path.is_file):
        if path.is_dir():
            shutil.copytree(path, folder / path.name, dirs_exist_ok=True)
        else:
            with atomic_write(folder / path.name) as temporary:
                shutil.copy(path, temporary)
    return True


def store(cache: Path, key: str, paths: list[Path]) -> None:
    """Make an entry of these files and folders, atomically."""
    temporary = Path(tempfile.mkdtemp(prefix=f".{key}.", dir=cache))
    try:
        for path in paths:
            (shutil.copytree if path.is_dir() else shutil.copy)(path, temporary / path.name)
        with suppress(OSError):  # another run may have been first
            temporary.rename(cache / key)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
