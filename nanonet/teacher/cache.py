"""Frozen teachers that are kept between runs, so that many cohorts can be tried under one; and frozen layers' outputs.

An entry is a folder named by a hash of all that decides a teacher: the texts' token ids, the labels, the encoder's
weights, configuration and pooling, and the settings. Whatever is changed makes another entry. What a cohort's frozen
layers make of the texts (backbone.py) is a file beside them, named likewise.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

from torch import Tensor
from transformers import PreTrainedModel

from nanonet.cohort.model import Cohort
from nanonet.config.train import TrainConfig
from nanonet.data.batches import Encoded
from nanonet.errors import InputError
from nanonet.files import atomic_write

VERSION = 7  # of how a teacher is made: raised where a change makes other soft targets of the same input
SETTINGS = ("targets", "teacher_mode", "teacher_steps", "uniform_prior", "sharpen", "precision", "seed")


def fingerprint(config: TrainConfig, rows: Encoded, label: Tensor, encoder: PreTrainedModel, pooling: str) -> str:
    """The name of the entry, 32 hexadecimal digits."""
    facts = [pooling, config.relation_weight > 0, *(getattr(config, name) for name in SETTINGS)]
    return _hash(facts, encoder, rows, {"label": label, **encoder.state_dict()})


def backbone_features_name(config: TrainConfig, cohort: Cohort, rows: Encoded) -> str:
    """The name of the file of what a cohort's layers make of the rows. Its heads do not matter."""
    body = {name: t for name, t in cohort.model.state_dict().items() if cohort.parts.of(name) != "head"}
    return f"backbone-{_hash([cohort.students, config.precision], cohort.model, rows, body)}.safetensors"


def _hash(facts: list, model: PreTrainedModel, rows: Encoded, tensors: dict[str, Tensor]) -> str:
    built = model.config.to_dict() | {"_name_or_path": "", "transformers_version": ""}  # not where it lies
    digest = hashlib.sha256(json.dumps([VERSION, built, *facts], sort_keys=True, default=str).encode())
    for name, tensor in {"ids": rows.ids, "offsets": rows.offsets, **tensors}.items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().data)
    return digest.hexdigest()[:32]


def ensure_writable(cache: Path) -> None:
    """Make the cache, where there is none.

    Raises:
        InputError: it cannot be written to; better known before a teacher is made than after.
    """
    try:
        cache.mkdir(parents=True, exist_ok=True)
        Path(tempfile.mkdtemp(prefix=".", dir=cache)).rmdir()
    except OSError as error:
        raise InputError(f"--teacher-cache {cache}: {error.strerror}; give a folder that can be written to") from error


def restore(cache: Path, key: str, folder: Path) -> bool:
    """Copy the entry's files into `folder`, if there is such an entry."""
    entry = cache / key
    if not entry.is_dir():
        return False
    # folders first: once the file stands in `folder`, by a rename, all of the teacher does
    for path in sorted(entry.iterdir(), key=Path.is_file):
        if path.is_dir():
            shutil.copytree(path, folder / path.name, dirs_exist_ok=True)
        else:
            with atomic_write(folder / path.name) as temporary:
                shutil.copy(path, temporary)
    return True


def store(cache: Path, key: str, made: list[Path]) -> None:
    """Make an entry of these files and folders, whole or not at all."""
    temporary = Path(tempfile.mkdtemp(prefix=f".{key}.", dir=cache))
    try:
        for path in made:
            (shutil.copytree if path.is_dir() else shutil.copy)(path, temporary / path.name)
        with suppress(OSError):  # a run beside this one may have been first
            temporary.rename(cache / key)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
