"""How a run's frozen teacher is made: tuned on the labels, its rule chosen inside them, tuned on its surest guesses.

N rows, D features.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from nanonet.config.train import TrainConfig
from nanonet.data.batches import Encoded
from nanonet.data.prepare import Material
from nanonet.errors import InputError
from nanonet.models.load import load_encoder, quiet
from nanonet.progress import Progress
from nanonet.teacher.encoder import Encoder, tuning_steps
from nanonet.teacher.frozen import FrozenTeacher, make_teacher, spread, surest
from nanonet.teacher.selection import choose, trial_rows

BODY = "teacher"  # the tuned encoder, until the run is done


def teach(
    config: TrainConfig, pretrained: Encoder, tuned: bool, material: Material, folder: Path, progress: Progress
) -> FrozenTeacher:
    """Make the frozen teacher; its body is left in `folder`/BODY where it is tuned.

    Tuned first on the labels, then on what it is surest of, each class by itself. An online teacher is cross-validated
    alone: of the rows, that needs some.
    """
    rows, label, classes = material.rows, material.label, len(material.classes)
    if config.teacher_mode == "online":
        seen = int((label >= 0).sum()) + trial_rows(classes, tuned)
        rows, label = rows[range(min(seen, len(rows)))], label[:seen]

    def tune(encoder: Encoder, label: Tensor, steps: int, what: str) -> Encoder:
        known = (label >= 0).nonzero()[:, 0]
        with progress.stage(what, steps) as tick:
            return encoder.tuned(rows[known.tolist()], label[known], steps, config.seed, tick)

    def retune(hidden: NDArray[np.int64], of: NDArray[np.int64]) -> Tensor:
        known = torch.full_like(label, -100)
        known[of] = torch.from_numpy(hidden)
        steps = tuning_steps(config.teacher_steps, int((known >= 0).sum()))
        return tune(pretrained, known, steps, "tuning for a fold").embed(rows[of.tolist()])

    few, body = rows[range(int((label >= 0).sum()))], pretrained
    if tuned:
        body = tune(body, label, tuning_steps(config.teacher_steps, len(few)), "tuning on the labels")
    embedding = embed(progress, body, rows, "embedding the texts")
    with progress.stage("choosing soft targets", 1) as tick:
        y, again = label.numpy(), retune if tuned else None
        x = embedding.double().numpy()
        choice = choose(x, y, classes, config.targets, config.seed, config.uniform_prior, again)
        tick(1, choice.rule)
    if tuned and (label < 0).any():
        sure = torch.from_numpy(surest(spread(config, choice, x, y, classes)[0], y))
        body = tune(body, sure, -(-config.teacher_steps // 2), "tuning on its guesses")
        embedding = embed(progress, body, rows, "embedding them again")
    if tuned:
        with quiet():
            body.model.save_pretrained(folder / BODY)
    plain = pretrained.embed(few) if tuned else embedding[label >= 0]
    return make_teacher(config, choice, embedding, label, classes, plain)


def load_body(folder: Path) -> PreTrainedModel:
    """The tuned encoder that `teach` left in `folder`.

    Raises:
        InputError: it is gone, or damaged.
    """
    body = folder / BODY
    if not (body / "config.json").is_file():
        raise InputError(f"{body}: the tuned teacher is gone; delete {folder}, a run or an entry of --teacher-cache")
    return load_encoder(str(body))


def embed(progress: Progress, encoder: Encoder, rows: Encoded, what: str) -> Tensor:
    """(N,D), a stage of its own"""
    with progress.stage(what, len(rows)) as tick:
        return encoder.embed(rows, tick)
