"""Where soft labels come from: an encoder and a rule over its embeddings, the head of a trained classifier, or files.

The three meet in the `FrozenTeacher` that each of them makes, and in the logits of the validation and test rows.
N rows, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from nanonet.config.settings import TeacherSettings
from nanonet.data.batches import Encoded
from nanonet.data.dataset import Split, one_line
from nanonet.data.prepare import RunData, RunTexts
from nanonet.data.soft_label_files import FLOOR, SoftLabelFiles
from nanonet.inference.forward import logits_of, run
from nanonet.progress import Progress
from nanonet.teacher import cache
from nanonet.teacher.encoder import Encoder

Part = Literal["rows", "validation", "test"]


@dataclass(frozen=True, eq=False)
class EncoderSource:
    """An encoder that is tuned on the labels, or not, and a rule. data: the run's rows in its tokens."""

    name: str
    key: str
    encoder: Encoder
    tokenizer: Any
    data: RunData

    @property
    def parameters(self) -> int | None:
        return sum(p.numel() for p in self.encoder.model.parameters())


@dataclass(frozen=True, eq=False)
class LogitSource:
    """Logits that need no training: a trained head's, or a file's.

    rule: what the report calls them; key: fingerprint of all that decides them; parameters: None where not known
    own: (N,) bool, the training rows whose logits are the source's, not their labels
    logits: (N,C) float32 of a part of the rows, for a stage of the run; NaN where a test row has none
    """

    name: str
    key: str
    rule: Literal["head", "files"]
    parameters: int | None
    own: Tensor
    logits: Callable[[Part, str], Tensor]


Source = EncoderSource | LogitSource


def head_source(
    order: Sequence[int],
    encoder: Encoder,
    data: RunData,
    settings: TeacherSettings,
    progress: Progress,
    name: str,
) -> LogitSource:
    """The logits of a trained classifier.

    order: where each class of the data stands among the classifier's
    encoder: the classifier with its device, padding and autocast; data: the run's rows in its tokens
    """
    model = encoder.model
    key = cache.fingerprint(settings, data.rows, data.label, model, f"head {list(order)}")
    own = torch.ones(len(data.rows), dtype=torch.bool)
    parameters = sum(p.numel() for p in model.parameters())
    return LogitSource(name, key, "head", parameters, own, partial(_head_logits, encoder, list(order), data, progress))


def _head_logits(
    encoder: Encoder, order: list[int], data: RunData, progress: Progress, part: Part, stage: str
) -> Tensor:
    rows: Encoded = getattr(data, part)
    with progress.stage(stage, len(rows)) as tick, encoder.autocast():
        forward = logits_of(encoder.model.eval().to(encoder.device))  # type: ignore[arg-type]
        logits = run(forward, rows, encoder.pad_id, encoder.device, done=tick, processes=encoder.processes)
        return logits[:, order].clone()


def file_source(files: SoftLabelFiles, texts: RunTexts, settings: TeacherSettings) -> LogitSource:
    """The soft labels that files give. A labelled row that they do not hold has its label instead.

    Raises:
        InputError: the files have other classes than the data.
    """
    known, C = files.by_text(texts.classes), len(texts.classes)

    def look_up(part: Split) -> Tensor:
        none = torch.full((C,), torch.nan)
        return torch.stack([none, *(known.get(one_line(text), none) for text in part.texts)])[1:]

    logits = look_up(texts.rows)
    own = ~logits.isnan().any(-1)
    label = torch.nn.functional.one_hot(texts.label.clamp(min=0), C).float()
    logits = torch.where(own[:, None], logits, label.clamp(min=FLOOR).log())
    parts: dict[Part, Tensor] = {"rows": logits, "validation": look_up(texts.validation), "test": look_up(texts.test)}
    key = cache.fingerprint_of_logits(settings, {"rows": logits, "validation": parts["validation"], "own": own})
    name = " ".join(files.settings.soft_labels)
    return LogitSource(name, key, "files", None, own, lambda part, stage: parts[part])
