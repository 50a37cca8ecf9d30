"""A run's inputs, read and checked before the output folder is touched: data, source of soft labels, students."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import PreTrainedModel

from nanonet.cohort.cnn import build_cnn_cohort
from nanonet.cohort.mapping import choose_layers
from nanonet.cohort.model import Cohort, Lora
from nanonet.cohort.stack import build_cohort, stack
from nanonet.cohort.static import build_static_cohort
from nanonet.cohort.views import parse_views
from nanonet.config.settings import StageSettings
from nanonet.data.batches import Encoded
from nanonet.data.dataset import Dataset
from nanonet.data.prepare import RunData, draw
from nanonet.data.soft_label_files import SoftLabelFiles
from nanonet.errors import InputError
from nanonet.inference.forward import run
from nanonet.models.checks import check_encoder
from nanonet.models.pooled import pooled_classifier
from nanonet.processes import Processes
from nanonet.progress import Progress
from nanonet.teacher import cache as teacher_cache
from nanonet.teacher.source import Source
from nanonet.training.launch import processes_of
from nanonet.training.pretrained import STUDENT, TEACHER, load_pretrained
from nanonet.training.teacher_source import find_known_classes, make_source
from nanonet.training.training_set import check_parts
from nanonet.training.vocabulary import Vocabulary, fit_vocabulary


@dataclass(frozen=True, eq=False)
class Run:
    """What the stages of a run share.

    source: where the soft labels come from; it may have other tokens than the students. make_source: makes it anew, for
        another precision
    tokenizer, data: the students' tokenizer, and all rows in its tokens; student_key: fingerprint of their encoder,
        "" where it is the source's
    vocabulary: word pieces of that encoder, and of the students
    views, mapping: view of each student, and the layers that it starts from
    online: the teacher that trains beside its students, in the online mode, once the frozen one is made
    ensure_ours: raises if another run has replaced the output folder
    """

    settings: StageSettings
    folder: Path
    accelerator: Accelerator
    progress: Progress
    tokenizer: Any
    data: RunData
    student_key: str
    vocabulary: Vocabulary
    source: Source
    make_source: Callable[[StageSettings, Accelerator], Source]
    views: list[str]
    mapping: list[list[int]]
    cohort: Cohort
    online: Cohort | None = None
    ensure_ours: Callable[[], None] = lambda: None

    @property
    def device(self) -> torch.device:
        return self.accelerator.device

    @property
    def processes(self) -> Processes:
        return processes_of(self.accelerator)

    @property
    def pad_id(self) -> int:
        pad_id: int = self.tokenizer.pad_token_id
        return pad_id

    @property
    def cache(self) -> Path | None:
        """The teacher cache, if the user names one."""
        return Path(self.settings.general.teacher_cache).expanduser() if self.settings.general.teacher_cache else None

    @property
    def digest(self) -> str:
        """Hash of everything that decides the result: settings, texts, labels and the encoders' weights."""
        facts = f"{self.settings.general.digest} {self.source.key} {self.student_key}"
        return hashlib.sha256(facts.encode()).hexdigest()

    def logits(self, model: Cohort, rows: Encoded, stage: str) -> Tensor:
        """Logits (K,N,C) of a cohort in eval mode, on the CPU. All processes call it, and divide the rows.

        Students are in float32, as they are exported, whatever the precision of the run.
        """
        autocast = nullcontext if model is self.cohort else self.accelerator.autocast
        with self.progress.stage(stage, len(rows)) as tick, autocast():
            model.to(self.device).eval()

            def forward(ids: Tensor, mask: Tensor) -> Tensor:
                logits: Tensor = model(ids, mask).logits
                return logits

            return run(forward, rows, self.pad_id, self.device, done=tick, processes=self.processes)


def prepare_run(
    settings: StageSettings,
    folder: Path,
    accelerator: Accelerator,
    dataset: Dataset | None = None,
    soft_labels: SoftLabelFiles | None = None,
) -> Run:
    """Read the data and the soft labels, unless they are given, and the encoder, and build the cohort.

    Raises:
        InputError: any bad input.
    """
    known, settings = find_known_classes(settings, soft_labels)
    wanted, progress = settings.cohort, Progress(accelerator.is_main_process)
    flag = STUDENT if wanted.student_model else TEACHER
    students = load_pretrained(wanted.student_model or settings.general.encoder, flag)
    views = parse_views(wanted.views, wanted.students)
    with students.named():
        mapping = _mapping(settings, students.model)
    texts = draw(settings.data, known.names, known.files, dataset)
    data = students.tokenise(texts, settings.data.max_tokens)
    settings = settings.with_steps(len(data.classes))
    if settings.general.keep_teacher and known.names:
        raise InputError("--keep-teacher: nothing is trained there that could be kept; leave it out")
    remake = partial(make_source, known=known, texts=texts, students=students, data=data, progress=progress)
    source = remake(settings, accelerator)
    if settings.general.teacher_cache:
        teacher_cache.ensure_writable(Path(settings.general.teacher_cache).expanduser())
    labelled = int((data.label >= 0).sum())
    unlabelled = len(data.rows) - labelled
    check_parts(settings.batches, settings.loss.relation_weight, labelled, unlabelled, accelerator.num_processes)
    with students.named():
        check_encoder(students.model, layers=wanted.student == "encoder")
        cohort = build_students(settings, students.model, mapping, data.classes)
        max_tokens = settings.data.max_tokens
        # last: what it says does not come before an error
        tokenizer, own, vocabulary = fit_vocabulary(students, texts, data, wanted.vocabulary, max_tokens)
    vocabulary.cut(cohort)
    teacher_is_base = flag == TEACHER and not known.files  # and in the fingerprint of the source
    return Run(
        settings=settings,
        folder=folder,
        accelerator=accelerator,
        progress=progress,
        tokenizer=tokenizer,
        data=own,
        student_key=teacher_cache.fingerprint_of_encoder(students.model, data.rows) if not teacher_is_base else "",
        vocabulary=vocabulary,
        source=source,
        make_source=remake,
        views=views,
        mapping=mapping,
        cohort=cohort,
    )


def _mapping(settings: StageSettings, encoder: PreTrainedModel) -> list[list[int]]:
    """The layers of the encoder that each student starts from; none for students that are built from scratch."""
    wanted = settings.cohort
    if wanted.student != "encoder":
        return [[] for _ in range(wanted.students)]
    return choose_layers(wanted.layer_mapping, wanted.students, wanted.student_layers, encoder)


def build_students(
    settings: StageSettings, encoder: PreTrainedModel, mapping: list[list[int]], classes: list[str]
) -> Cohort:
    """The students, with all word pieces: from layers of an encoder, or from scratch on its word embeddings."""
    wanted, seed = settings.cohort, settings.cohort.seed
    if wanted.student == "cnn":
        cohort = build_cnn_cohort(encoder, classes, wanted.students, wanted.embedding_width, seed)
    elif wanted.student == "static":
        cohort = build_static_cohort(encoder, classes, wanted.students, wanted.embedding_width, seed)
    else:
        cohort = build_cohort(encoder, mapping, classes, wanted.tuning, lora=_lora(settings), seed=seed)
    cohort.checkpointing = wanted.gradient_checkpointing
    return cohort


def build_online(
    settings: StageSettings, encoder: PreTrainedModel, pooling: str, weight: Tensor, bias: Tensor, classes: list[str]
) -> Cohort:
    """The teacher that trains beside the students, with all word pieces: a cohort of one, which begins as the frozen
    teacher's encoder, pooling and head, weight (C,D) and bias (C,)."""
    wanted = settings.cohort
    model = pooled_classifier(encoder, pooling, weight, bias, classes, biases=wanted.tuning == "bias")
    cohort = stack([model], wanted.tuning, lora=_lora(settings), seed=wanted.seed + 1)
    if pooler := getattr(cohort.model.base_model, "pooler", None):
        pooler.requires_grad_(False)  # the head does not read it
    return cohort


def _lora(settings: StageSettings) -> Lora:
    wanted = settings.cohort
    return Lora(wanted.lora_rank, wanted.lora_alpha, wanted.lora_dropout)
