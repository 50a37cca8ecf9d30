"""The settings of each stage of a training run: the flat TrainConfig is cut into them here, and nowhere else."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from nanonet.config.train import Divergence, Scores, Targets, TeacherTuning, TrainConfig, Tuning

MIN_STEPS, STEPS_PER_CLASS = 200, 10  # of the students, where the user does not say
# so many times as many: few weights move slowly, and a static student starts from single words
MORE_STEPS = {"bias": 3, "lora": 3, "static": 3}
# settings that may differ between a run and its resumption: they do not decide the result
FREE = set("output resume overwrite save_every threads tensorboard max_test teacher_cache keep_teacher".split())
FREE |= {"max_text_bytes", "max_data_bytes"}
Part = TypeVar("Part")


@dataclass(frozen=True)
class DataSettings:
    """Which texts and labels a run reads, and how it draws and cuts them."""

    data: str
    unlabelled: str | None
    text_column: str
    label_column: str
    labels_per_class: int | None
    test_fraction: float
    class_names: bool
    max_unlabelled: int
    max_test: int
    max_tokens: int
    deduplicate: bool
    max_text_bytes: int
    max_data_bytes: int
    seed: int


@dataclass(frozen=True)
class SoftLabelSettings:
    """Soft labels that come from files; class_map renames their classes, or those of a trained classifier."""

    soft_labels: tuple[str, ...]
    soft_labels_are: Scores
    soft_label_weights: tuple[float, ...]
    class_map: str


@dataclass(frozen=True)
class TeacherSettings:
    """Everything but the data and the encoder that decides a frozen teacher; online: whether it trains on beside its
    students."""

    online: bool
    max_steps: int
    teacher_tuning: TeacherTuning
    targets: Targets
    uniform_prior: bool
    sharpen: float
    store_embedding: bool
    precision: str
    seed: int

    @property
    def tuned(self) -> bool:
        """Whether the encoder is tuned on the labels before it makes the soft labels."""
        return self.max_steps > 0


@dataclass(frozen=True)
class CohortSettings:
    """What the students are made of. student_model: name of their encoder; the teacher's if it is empty. tuned_init:
    whether their layers start as the frozen teacher's were tuned"""

    student_model: str
    students: int
    student: Literal["encoder", "cnn", "static"]
    embedding_width: int
    vocabulary: str
    student_layers: int
    layer_mapping: str
    tuned_init: bool
    views: str
    tuning: Tuning
    lora_rank: int
    lora_alpha: float
    lora_dropout: float
    gradient_checkpointing: bool
    seed: int


@dataclass(frozen=True)
class LossSettings:
    divergence: Divergence
    beta: float | None
    temperature: float
    ce_weight: float
    teacher_weight: float
    peers_weight: float
    relation_weight: float
    confidence: bool
    sharpen: float
    class_weight: Literal["none", "balanced"]


@dataclass(frozen=True)
class OptimizerSettings:
    """learning_rate: the peak; 0 where it is chosen by what is trained"""

    steps: int
    learning_rate: float
    warmup: float
    schedule: Literal["linear", "cosine", "constant"]
    weight_decay: float
    max_grad_norm: float


@dataclass(frozen=True)
class BatchSettings:
    """The rows of a step and its micro-batches; seed decides the rows, the views and the dropout of every step."""

    labelled_batch: int
    unlabelled_batch: int
    gradient_accumulation: int
    seed: int


@dataclass(frozen=True)
class GeneralSettings:
    """encoder: name of the teacher's encoder; digest: hash of every setting that decides the result"""

    encoder: str
    teacher_cache: str
    precision: str
    tensorboard: bool
    threads: int
    save_every: int
    keep_teacher: bool
    calibrate: bool
    resume: bool
    digest: str


@dataclass(frozen=True)
class StageSettings:
    data: DataSettings
    soft_labels: SoftLabelSettings
    teacher: TeacherSettings
    cohort: CohortSettings
    loss: LossSettings
    optimizer: OptimizerSettings
    batches: BatchSettings
    general: GeneralSettings

    def with_steps(self, classes: int) -> StageSettings:
        """These settings with the number of steps chosen by the number of classes and by what is trained, unless the
        user gave it."""
        chosen = max(MIN_STEPS, STEPS_PER_CLASS * classes) * max(
            MORE_STEPS.get(trained, 1) for trained in (self.cohort.tuning, self.cohort.student)
        )
        steps = self.optimizer.steps or chosen
        return dataclasses.replace(self, optimizer=dataclasses.replace(self.optimizer, steps=steps))


def _part(kind: type[Part], config: TrainConfig, **own: Any) -> Part:
    """The dataclass `kind` of the values that `config` has under the same names; `own`: those that it has not."""
    names = [field.name for field in dataclasses.fields(kind)]  # type: ignore[arg-type]
    return kind(**{name: own[name] if name in own else getattr(config, name) for name in names})


def data_settings(config: TrainConfig) -> DataSettings:
    """The part of `config` that says what is read."""
    return _part(DataSettings, config)


def soft_label_settings(config: TrainConfig) -> SoftLabelSettings:
    return _part(SoftLabelSettings, config)


def teacher_settings(config: TrainConfig) -> TeacherSettings:
    online, store_embedding = config.teacher_mode == "online", config.relation_weight > 0
    return _part(
        TeacherSettings, config, online=online, max_steps=config.teacher_steps, store_embedding=store_embedding
    )


def cohort_settings(config: TrainConfig) -> CohortSettings:
    vocabulary = config.vocabulary or ("auto" if config.student == "encoder" else "all")
    return _part(CohortSettings, config, vocabulary=vocabulary, tuned_init=_starts_tuned(config))


def _starts_tuned(config: TrainConfig) -> bool:
    """Whether the students start from the tuned teacher's layers: where few weights are trained, and there are such."""
    has_layers = config.teacher_steps > 0 and not config.student_model and not config.soft_labels
    return config.student_init == "tuned" or config.student_init == "auto" and has_layers and config.tuning != "full"


def loss_settings(config: TrainConfig) -> LossSettings:
    return _part(LossSettings, config)


def optimizer_settings(config: TrainConfig) -> OptimizerSettings:
    return _part(OptimizerSettings, config)


def batch_settings(config: TrainConfig) -> BatchSettings:
    return _part(BatchSettings, config)


def general_settings(config: TrainConfig) -> GeneralSettings:
    deciding = {name: value for name, value in dataclasses.asdict(config).items() if name not in FREE}
    digest = hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()
    return _part(GeneralSettings, config, encoder=config.teacher, digest=digest)


def stage_settings(config: TrainConfig) -> StageSettings:
    """The settings of every stage of the run that `config` describes."""
    return StageSettings(
        data=data_settings(config),
        soft_labels=soft_label_settings(config),
        teacher=teacher_settings(config),
        cohort=cohort_settings(config),
        loss=loss_settings(config),
        optimizer=optimizer_settings(config),
        batches=batch_settings(config),
        general=general_settings(config),
    )


def changes(old: Mapping[str, Any], config: TrainConfig) -> str:
    """Which settings that decide the result differ between a run's config.yaml and `config`; "" if none does.

    A run of an older version, which did not have a setting yet, ran with its default.
    """
    pairs = {
        name: (_as_yaml(old.get(name, getattr(TrainConfig, name))), _as_yaml(value))
        for name, value in dataclasses.asdict(config).items()
        if name not in FREE and (name, value) != ("precision", "auto")  # a run stores what that chose
    }
    return ", ".join(f"{name} {before!r} -> {now!r}" for name, (before, now) in pairs.items() if before != now)


def _as_yaml(value: Any) -> Any:
    """`value` as YAML reads it again."""
    return list(value) if isinstance(value, tuple) else value
