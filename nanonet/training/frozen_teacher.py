"""The teacher stage of a run: its frozen teacher, from the run's folder, from the cache, or made."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

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
    teacher_of_logits,
)
from nanonet.teacher.make import embed, make_frozen_teacher
from nanonet.teacher.source import EncoderSource, LogitSource, Part, Source
from nanonet.training.run import Run

PROBE_ROWS = 2000  # test rows, drawn at random, of the linear probe, for which alone they are embedded


@dataclass(frozen=True, eq=False)
class Teacher:
    """A frozen teacher, and what gives other rows their logits: `encoder` is the pretrained one or the tuned one, None
    where the logits need no embeddings."""

    frozen: FrozenTeacher
    source: Source
    encoder: Encoder | None

    def logits(self, run: Run, part: Part, stage: str) -> Tensor:
        """(N,C) of a part of the rows, NaN where a file has none."""
        if isinstance(self.source, LogitSource):
            return self.source.logits(part, stage)
        assert self.encoder is not None
        return self.frozen.logits(embed(run.progress, self.encoder, getattr(self.source.data, part), stage))

    def test_logits(self, run: Run) -> dict[str, Tensor]:
        """`teacher`, the online one if there is one, and `linear_probe` (N,C) of the test rows, where each can be had
        of all; the probe's are NaN in all but PROBE_ROWS of them."""
        if isinstance(self.source, LogitSource):
            logits = self.logits(run, "test", "testing the teacher")
            return {} if logits.isnan().any() else {"teacher": logits}
        own, test = self.encoder is self.source.encoder and run.online is None, self.source.data.test
        probed = torch.randperm(len(test), generator=torch.Generator().manual_seed(0))[:PROBE_ROWS].sort().values
        rows = test if own else test[probed.tolist()]
        embedding = embed(run.progress, self.source.encoder, rows, "testing the linear probe")
        if run.online is not None:
            logits = run.logits(run.online, run.data.test, "testing the teacher")[0]
        else:
            logits = self.frozen.logits(embedding) if own else self.logits(run, "test", "testing the teacher")
        probe = torch.full_like(logits, torch.nan)
        probe[probed] = self.frozen.linear_probe(embedding[probed] if own else embedding)
        return {"teacher": logits, "linear_probe": probe}


def check_cached_teacher(run: Run) -> None:
    """Read this run's entry of the cache, if there is one: a damaged one is found before a run is overwritten for it.

    Raises:
        InputError: it is damaged.
    """
    if run.cache and (run.cache / run.source.key).exists():
        entry = run.cache / run.source.key
        teacher = load_teacher(entry, run.source.key)
        if isinstance(run.source, EncoderSource) and run.settings.teacher.tuned:
            load_tuned_encoder(entry, teacher, run.source.encoder)


def ensure_teacher(run: Run) -> None:
    """Put the frozen teacher into the run's folder, unless the resumed run has it there: all processes make it, the
    first one writes."""
    source = run.source
    if run.processes.from_first(lambda: _is_there(run)):
        return
    teacher: FrozenTeacher | None
    if isinstance(source, LogitSource):
        logits = source.logits("rows", "the teacher's logits")
        teacher = teacher_of_logits(run.settings.teacher, source.rule, logits, run.data.label, source.own)
        encoder = None
    else:
        teacher, encoder = make_frozen_teacher(run.settings.teacher, source.encoder, source.data, run.progress)
    if teacher is None or not run.processes.is_first:
        return
    run.ensure_ours()
    if encoder is not None and run.settings.teacher.tuned:
        save_tuned_encoder(run.folder, encoder)
    save_teacher(run.folder, teacher, source.key)
    if run.cache:
        paths = [path for path in (run.folder / NAME, run.folder / TUNED_ENCODER) if path.exists()]
        teacher_cache.store(run.cache, source.key, paths)


def _is_there(run: Run) -> bool:
    """Whether the frozen teacher is in the run's folder, if need be copied from the cache."""
    there = (run.folder / NAME).exists()
    return there or run.cache is not None and teacher_cache.restore(run.cache, run.source.key, run.folder)


def load(run: Run) -> Teacher:
    """The teacher that `ensure_teacher` put into the run's folder.

    Raises:
        InputError: it is damaged, or was made of other texts, labels or weights.
    """
    source, frozen = run.source, load_teacher(run.folder, run.source.key)
    if isinstance(source, LogitSource):
        return Teacher(frozen, source, None)
    tuned = run.settings.teacher.tuned
    return Teacher(frozen, source, load_tuned_encoder(run.folder, frozen, source.encoder) if tuned else source.encoder)
