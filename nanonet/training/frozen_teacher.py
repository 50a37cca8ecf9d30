"""The teacher stage of a run: its frozen teacher, from the run's folder, from the cache, or made."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from nanonet.data.batches import Encoded
from nanonet.teacher import cache as teacher_cache
from nanonet.teacher.encoder import Encoder
from nanonet.teacher.frozen import (
    NAME,
    TUNED_ENCODER,
    FrozenTeacher,
    load_teacher,
    load_tuned_encoder,
    save_teacher,
    save_tuned_encoder,
)
from nanonet.teacher.make import embed, make_frozen_teacher
from nanonet.training.run import Run


@dataclass(frozen=True, eq=False)
class Teacher:
    """A frozen teacher and its encoder: the pretrained one, or the tuned one."""

    frozen: FrozenTeacher
    encoder: Encoder

    def logits(self, run: Run, rows: Encoded, stage: str) -> Tensor:
        """(N,C)"""
        return self.frozen.logits(embed(run.progress, self.encoder, rows, stage))


def check_cached_teacher(run: Run) -> None:
    """Read this run's entry of the cache, if there is one: a damaged one is found before a run is overwritten for it.

    Raises:
        InputError: it is damaged.
    """
    if run.cache and (run.cache / run.teacher_key).exists():
        entry = run.cache / run.teacher_key
        teacher = load_teacher(entry, run.teacher_key)
        if run.settings.teacher.tuned:
            load_tuned_encoder(entry, teacher, run.pretrained)


def ensure_teacher(run: Run) -> None:
    """Put the frozen teacher into the run's folder, unless the resumed run has it there."""
    if (run.folder / NAME).exists() or (run.cache and teacher_cache.restore(run.cache, run.teacher_key, run.folder)):
        return
    teacher, encoder = make_frozen_teacher(run.settings.teacher, run.pretrained, run.data, run.progress)
    run.ensure_ours()
    if run.settings.teacher.tuned:
        save_tuned_encoder(run.folder, encoder)
    save_teacher(run.folder, teacher, run.teacher_key)
    if run.cache:
        paths = [path for path in (run.folder / NAME, run.folder / TUNED_ENCODER) if path.exists()]
        teacher_cache.store(run.cache, run.teacher_key, paths)


def load(run: Run) -> Teacher:
    """The teacher that `ensure_teacher` put into the run's folder.

    Raises:
        InputError: it is damaged, or was made of other texts, labels or weights.
    """
    frozen = load_teacher(run.folder, run.teacher_key)
    tuned = run.settings.teacher.tuned
    return Teacher(frozen, load_tuned_encoder(run.folder, frozen, run.pretrained) if tuned else run.pretrained)
