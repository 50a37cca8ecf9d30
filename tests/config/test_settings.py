"""The parts that TrainConfig is cut into, and what may differ when a run is resumed."""

from __future__ import annotations

import dataclasses
import typing

import pytest
import torch

from nanonet import distill_loss
from nanonet.config import settings
from nanonet.config.settings import FREE, changes, general_settings
from nanonet.config.train import Divergence, TrainConfig
from nanonet.losses import DistillLoss
from nanonet.reference import DEFAULT_BETA, DIVERGENCES

PARTS = {
    name: getattr(settings, f"{name}_settings")
    for name in ("data", "soft_label", "teacher", "cohort", "loss", "optimizer", "batch", "general")
}
# how a stage sees these, and what no stage but the output folder sees
RENAMED = {"teacher_mode", "teacher_steps", "teacher", "student_init"}
OF_THE_FOLDER = {"output", "overwrite"}
OTHER = {str: "other", int: 17, float: 0.625, bool: True}


def other_value(field: dataclasses.Field) -> object:
    """A value that differs from the default."""
    kind = typing.get_type_hints(TrainConfig)[field.name]
    if typing.get_origin(kind) is typing.Literal:
        return next(value for value in typing.get_args(kind) if value != field.default)
    if typing.get_origin(kind) is tuple:
        return (OTHER[typing.get_args(kind)[0]],)
    plain = next(iter({*typing.get_args(kind)} - {type(None)}), kind)
    return not field.default if plain is bool else OTHER[plain]


@pytest.mark.parametrize("field", dataclasses.fields(TrainConfig), ids=lambda field: field.name)
def test_every_setting_reaches_a_stage(field: dataclasses.Field) -> None:
    changed = TrainConfig(**{field.name: other_value(field)})
    affected = {name for name, part in PARTS.items() if part(changed) != part(TrainConfig())}
    if field.name not in FREE:
        assert "general" in affected, "the digest of a run's settings"
        affected -= {"general"} if field.name not in ("teacher", "precision", "calibrate") else set()
    assert bool(affected) == (field.name not in OF_THE_FOLDER), affected


def test_a_part_has_the_values_of_the_config() -> None:
    config = TrainConfig(**{f.name: other_value(f) for f in dataclasses.fields(TrainConfig)})
    seen = set()
    for part in PARTS.values():
        for name, value in vars(part(config)).items():
            if hasattr(config, name):
                assert value == getattr(config, name), name
                seen.add(name)
    assert {f.name for f in dataclasses.fields(TrainConfig)} - seen == RENAMED | OF_THE_FOLDER


def test_the_number_of_steps_follows_the_classes_unless_it_is_given() -> None:
    def steps(classes: int, **given: object) -> int:
        config = TrainConfig(**given)  # type: ignore[arg-type]
        parts = {name: part(config) for name, part in PARTS.items() if name not in ("batch", "soft_label")}
        parts |= {"soft_labels": settings.soft_label_settings(config), "batches": settings.batch_settings(config)}
        stages = settings.StageSettings(**parts)
        return stages.with_steps(classes).optimizer.steps

    assert [steps(2), steps(50), steps(50, steps=7)] == [200, 500, 7]
    assert [steps(2, tuning="bias"), steps(50, tuning="lora"), steps(2, tuning="head")] == [600, 1500, 200]
    assert [steps(2, student="static"), steps(80, student="static"), steps(2, student="cnn")] == [600, 2400, 200]


def test_changes_between_a_run_and_its_resumption() -> None:
    config = TrainConfig(seed=3)
    stored = dataclasses.asdict(config)
    assert changes(stored, config) == "" == changes(stored, dataclasses.replace(config, threads=2, save_every=5))
    assert changes(stored, dataclasses.replace(config, tuning="bias")) == "tuning 'full' -> 'bias'"
    assert changes(stored | {"soft_labels": []}, config) == ""  # as YAML reads a tuple
    other = dataclasses.replace(config, soft_labels=("a.csv",))
    assert changes(stored, other) == "soft_labels [] -> ['a.csv']" and changes(dataclasses.asdict(other), other) == ""
    del stored["beta"]  # a run of a version without this setting
    assert changes(stored, config) == ""
    assert changes(stored, dataclasses.replace(config, beta=0.3)) == "beta None -> 0.3"


def test_the_digest_covers_what_decides_the_result() -> None:
    base = general_settings(TrainConfig()).digest
    assert general_settings(TrainConfig(output="x", threads=1, resume=True)).digest == base
    assert general_settings(TrainConfig(beta=0.5)).digest != base != general_settings(TrainConfig(seed=1)).digest


def test_the_divergences_are_those_of_the_op() -> None:
    assert typing.get_args(Divergence) == tuple(DIVERGENCES) and DEFAULT_BETA.keys() <= DIVERGENCES.keys()


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_the_loss_takes_every_divergence_and_its_beta(divergence: str) -> None:
    student, teacher = (
        torch.randn(*shape, generator=torch.Generator().manual_seed(0)) for shape in ((2, 5, 4), (5, 4))
    )
    options = {"weights": (0.0, 1.0, 0.0), "divergence": divergence}
    default = DistillLoss(0.0, 1.0, 0.0, divergence=divergence)(student, teacher)[0]
    assert default == distill_loss(student, teacher, None, **options)[0]
    if divergence not in DEFAULT_BETA:
        with pytest.raises(ValueError, match=f"beta: {divergence} has none"):
            DistillLoss(divergence=divergence, beta=0.3)(student, teacher)
        return
    given = DistillLoss(0.0, 1.0, 0.0, divergence=divergence, beta=0.3)(student, teacher)[0]
    assert given == distill_loss(student, teacher, None, beta=0.3, **options)[0] and given != default
