"""What a training trains on: the rows, and the online teacher beside the students."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from nanonet.cohort.model import Cohort
from nanonet.config.settings import BatchSettings
from nanonet.data.batches import Encoded
from nanonet.errors import InputError
from nanonet.training.backbone import BackboneFeatures


@dataclass(frozen=True, eq=False)
class TrainingSet:
    """N training rows, the labelled ones first.

    encoded: token ids of N rows; label: (N,) int64, -100 where unlabelled
    soft_labels: (N,C) logits of the frozen teacher, which teach the students, or their online teacher
    embedding: (N,D) of that teacher, or None without a relation loss
    backbone: cached input of the students' heads, if the heads are all that is trained
    """

    encoded: Encoded
    label: Tensor
    soft_labels: Tensor
    pad_id: int
    embedding: Tensor | None = None
    backbone: BackboneFeatures | None = None

    @property
    def labelled(self) -> int:
        return int((self.label >= 0).sum())


@dataclass(frozen=True, eq=False)
class OnlineTeacher:
    """A teacher that trains beside its students, on the labels and the frozen teacher's soft labels.

    cv_accuracy: the cross-validated accuracy; the mean confidence of the soft labels is set to it
    backbone: cached input of its head, if the head is all that is trained
    """

    model: Cohort
    cv_accuracy: float | None
    backbone: BackboneFeatures | None = None


def check_parts(batches: BatchSettings, relation_weight: float, labelled: int, unlabelled: int, world: int) -> None:
    """Refuse steps of fewer rows than processes times micro-batches, and a relation loss over several of these parts.

    Raises:
        InputError: names the numbers and the flags.
    """
    parts = world * batches.gradient_accumulation
    if relation_weight and parts > 1:
        raise InputError(
            f"--relation-weight {relation_weight}: it compares all rows of a step, which {world} x"
            f" {batches.gradient_accumulation} parts would keep apart; use one process and --gradient-accumulation 1"
        )
    sides = ((labelled, batches.labelled_batch), (unlabelled, batches.unlabelled_batch))
    fewest = sum(n // -(-n // size) for n, size in sides if n)  # the batches of an epoch differ by one row at most
    if fewest < parts:
        raise InputError(
            f"--gradient-accumulation {batches.gradient_accumulation}: a step of {fewest} rows cannot be cut into"
            f" {world} x {batches.gradient_accumulation} parts; lower it or raise --unlabelled-batch"
        )
