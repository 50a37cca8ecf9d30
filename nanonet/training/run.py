"""A run's inputs, read and checked before the output folder is touched: data, encoder, students."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import PreTrainedModel

from nanonet.cohort.cnn import build_cnn_cohort
from nanonet.cohort.mapping import choose_layers
from nanonet.cohort.model import Cohort, Lora
from nanonet.cohort.stack import build_cohort
from nanonet.cohort.views import parse_views
from nanonet.config.settings import StageSettings
from nanonet.data.batches import Encoded
from nanonet.data.dataset import Dataset
from nanonet.data.prepare import RunData, prepare
from nanonet.inference.classifier import check_tokens, most_tokens
from nanonet.inference.forward import run
from nanonet.models.checks import check_encoder
from nanonet.models.load import check_vocabulary, find_model, load_encoder, load_tokenizer
from nanonet.models.pooling import pooling_of
from nanonet.progress import Progress
from nanonet.teacher import cache as teacher_cache
from nanonet.teacher.encoder import Encoder
from nanonet.teacher.selection import check_labels
from nanonet.training.training_set import check_parts


@dataclass(frozen=True, eq=False)
class Run:
    """What the stages of a run share.

    pretrained: the teacher's encoder, which makes embeddings; teacher_key: fingerprint of the frozen teacher's input
    views, mapping: view and teacher layers of each student
    online: the teacher that trains beside its students, in the online mode
    ensure_ours: raises if another run has replaced the output folder
    """

    settings: StageSettings
    folder: Path
    accelerator: Accelerator
    progress: Progress
    tokenizer: Any
    data: RunData
    pretrained: Encoder
    teacher_key: str
    views: list[str]
    mapping: list[list[int]]
    cohort: Cohort
    online: Cohort | None
    ensure_ours: Callable[[], None] = lambda: None

    @property
    def device(self) -> torch.device:
        return self.accelerator.device

    @property
    def pad_id(self) -> int:
        return self.pretrained.pad_id

    @property
    def cache(self) -> Path | None:
        """The teacher cache, if the user names one."""
        return Path(self.settings.general.teacher_cache).expanduser() if self.settings.general.teacher_cache else None

    @property
    def digest(self) -> str:
        """Hash of everything that decides the result: settings, texts, labels and the encoder's weights."""
        return hashlib.sha256(f"{self.settings.general.digest} {self.teacher_key}".encode()).hexdigest()

    def logits(self, model: Cohort, rows: Encoded, stage: str) -> Tensor:
        """Logits (K,N,C) of a cohort in eval mode, on the CPU."""
        with self.progress.stage(stage, len(rows)) as tick, self.accelerator.autocast():
            model.to(self.device).eval()
            return run(lambda ids, mask: model(ids, mask).logits, rows, self.pad_id, self.device, done=tick)


def prepare_run(settings: StageSettings, folder: Path, accelerator: Accelerator, dataset: Dataset | None = None) -> Run:
    """Read the data, unless `dataset` holds it, and the encoder, and build the cohort.

    Raises:
        InputError: any bad input.
    """
    tokenizer, encoder = load_tokenizer(settings.general.encoder), load_encoder(settings.general.encoder)
    views = parse_views(settings.cohort.views, settings.cohort.students)
    mapping = _mapping(settings, encoder)
    data = _read_data(settings, tokenizer, encoder, dataset)
    settings = settings.with_steps(len(data.classes))
    labelled = int((data.label >= 0).sum())
    check_encoder(encoder, layers=settings.teacher.tuned or settings.cohort.student != "cnn")
    check_labels(data.label)
    if settings.general.teacher_cache:
        teacher_cache.ensure_writable(Path(settings.general.teacher_cache).expanduser())
    unlabelled = len(data.rows) - labelled
    check_parts(settings.batches, settings.loss.relation_weight, labelled, unlabelled, accelerator.num_processes)
    cohort, online = _build_models(settings, encoder, mapping, data.classes)
    # the tuning of the teacher has no gradient scaler, which float16 would need
    autocast = nullcontext if settings.general.precision == "float16" else accelerator.autocast
    pooling = pooling_of(*find_model(settings.general.encoder))
    pretrained = Encoder(encoder, pooling, tokenizer.pad_token_id, accelerator.device, autocast)
    return Run(
        settings=settings,
        folder=folder,
        accelerator=accelerator,
        progress=Progress(accelerator.is_main_process),
        tokenizer=tokenizer,
        data=data,
        pretrained=pretrained,
        teacher_key=teacher_cache.fingerprint(settings.teacher, data.rows, data.label, encoder, pooling),
        views=views,
        mapping=mapping,
        cohort=cohort,
        online=online,
    )


def _mapping(settings: StageSettings, encoder: PreTrainedModel) -> list[list[int]]:
    """The teacher layers of each student; none for students that are built from scratch."""
    wanted = settings.cohort
    if wanted.student == "cnn":
        return [[] for _ in range(wanted.students)]
    return choose_layers(wanted.layer_mapping, wanted.students, wanted.student_layers, encoder)


def _read_data(settings: StageSettings, tokenizer: Any, encoder: PreTrainedModel, dataset: Dataset | None) -> RunData:
    """The run's data, whose token ids the encoder has embeddings for."""
    check_tokens(settings.data.max_tokens, most_tokens(encoder))
    data = prepare(settings.data, tokenizer, dataset)
    largest = max(int(part.ids.max()) for part in (data.rows, data.validation, data.test) if len(part.ids))
    check_vocabulary(max(largest, tokenizer.pad_token_id), encoder, f"--teacher {settings.general.encoder}")
    return data


def _build_models(
    settings: StageSettings, encoder: PreTrainedModel, mapping: list[list[int]], classes: list[str]
) -> tuple[Cohort, Cohort | None]:
    """The students and, in the online mode, the teacher that trains beside them: a cohort of one with all layers."""
    wanted, seed = settings.cohort, settings.cohort.seed
    lora = Lora(wanted.lora_rank, wanted.lora_alpha, wanted.lora_dropout)
    if wanted.student == "cnn":
        cohort = build_cnn_cohort(encoder, classes, wanted.students, wanted.embedding_width, seed)
    else:
        cohort = build_cohort(encoder, mapping, classes, wanted.tuning, lora=lora, seed=seed)
    cohort.checkpointing = wanted.gradient_checkpointing
    online = None
    if settings.teacher.online:
        all_layers = [list(range(encoder.config.num_hidden_layers))]
        online = build_cohort(encoder, all_layers, classes, wanted.tuning, lora=lora, seed=seed + 1)
    return cohort, online
