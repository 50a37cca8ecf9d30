"""Training: the same step however it is cut, and an effect of each setting."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from support.grids import slow
from support.runs import MODES, distance, records, run
from torch.utils.checkpoint import checkpoint

from nanonet.cohort import model
from nanonet.config.settings import data_settings
from nanonet.config.train import TrainConfig
from nanonet.data.prepare import name_as_text, prepare
from nanonet.errors import InputError
from nanonet.models.load import load_tokenizer
from nanonet.training.backbone import compute_backbone_features
from nanonet.training.optimizer import TEACHER_LEARNING_RATE
from nanonet.training.pipeline import train


def test_a_seed_decides_the_weights(config: TrainConfig) -> None:
    views = dict(views="cutoff,shuffle")
    _, one = run(config, "one", **views)
    _, again = run(config, "again", **views)
    _, other = run(config, "other", **views, seed=1)
    assert distance(one, again) == 0 and distance(one, other) > 0


def test_micro_batches_make_the_same_step(config: TrainConfig) -> None:
    _, one_batch = run(config, "one-batch", calibrate=False)
    _, cut = run(config, "cut", gradient_accumulation=3, calibrate=False)
    assert distance(one_batch, cut) < 2e-5
    for a, b in zip(records(config, "one-batch"), records(config, "cut"), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], abs=1e-4) and a["ce"] == pytest.approx(b["ce"], abs=1e-4)


def test_checkpointing_makes_the_same_step(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    _, plain = run(config, "plain")
    calls = []

    def counted(*arguments, **options):
        calls.append(1)
        return checkpoint(*arguments, **options)

    monkeypatch.setattr(model, "checkpoint", counted)
    _, again = run(config, "again", gradient_checkpointing=True)
    assert calls and distance(plain, again) < 1e-5


@pytest.mark.parametrize("mode", ["frozen", slow("online"), slow("head")])
def test_cached_backbone_features_make_the_same_weights(config: TrainConfig, mode: str, monkeypatch) -> None:
    config, computed = dataclasses.replace(config, **MODES[mode] | {"tuning": "head"}), []

    def watched(*arguments):
        computed.append(compute_backbone_features(*arguments))
        return computed[-1]

    monkeypatch.setattr("nanonet.training.students.compute_backbone_features", watched)
    _, one = run(config, "cached")
    assert len(computed) == 1 + (config.teacher_mode == "online") and all(computed)
    monkeypatch.setattr("nanonet.training.students.compute_backbone_features", lambda *arguments: None)
    _, other = run(config, "again")
    assert 0 < distance(one, other) < 1e-5
    computed.clear()
    monkeypatch.setattr("nanonet.training.students.compute_backbone_features", watched)
    run(config, "views", views="cutoff")
    run(config, "short", steps=2)  # fewer rows in all steps than texts: a cache would save nothing
    assert len(computed) == (config.teacher_mode == "online")


@pytest.mark.parametrize("mode", [slow("frozen"), "online", slow("head")])
def test_a_compiled_step_makes_the_same_weights(config: TrainConfig, mode: str, monkeypatch) -> None:
    config, calls, compile_ = dataclasses.replace(config, **MODES[mode]), [], torch.compile

    def counted(*arguments, **options):
        calls.append(1)
        return compile_(*arguments, **options)

    _, plain = run(config, "plain")
    monkeypatch.setattr(torch, "compile", counted)
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "aot_eager")  # what `accelerate launch --dynamo_backend` sets
    _, again = run(config, "again")
    assert calls and distance(plain, again) < 1e-5


TRAINED = {
    "bias": lambda name: name.endswith("bias"),
    "lora": lambda name: name.endswith("weight") and "LayerNorm" not in name,
    "full": lambda name: True,
    "head": lambda name: False,
}


@pytest.mark.parametrize("tuning", TRAINED)
def test_each_tuning_trains_its_parameters_only(config: TrainConfig, tuning: str) -> None:
    result, trained = run(config, "long", tuning=tuning, steps=12)
    _, start = run(config, "start", tuning=tuning, steps=1, learning_rate=1e-12)
    for name in trained:
        head = name.startswith(("bert.pooler", "classifier"))
        change = (trained[name] - start[name]).abs().max().item()
        if name.endswith("key.bias"):  # its gradient is 0: the softmax of attention does not depend on it
            assert change < 1e-5, name
        elif head or (name.startswith("bert.encoder") and TRAINED[tuning](name)):
            # Adam moves a weight by up to the learning rate a step: 12 steps at up to 3e-3 make about 0.02
            assert change > 5e-3, name
        else:
            assert change == 0, name
    adapter = Path(config.output).with_name("long") / "student-1-adapter" / "adapter_model.safetensors"
    assert adapter.exists() == (tuning == "lora")
    assert result["students"][0]["parameters"]["trainable"] < result["students"][0]["parameters"]["total"]


@pytest.mark.parametrize("mode", ["frozen", "online"])
def test_students_learn_the_topics(config: TrainConfig, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TEACHER_LEARNING_RATE, "full", 3e-3)
    result, _ = run(config, mode, steps=200, **MODES[mode], labels_per_class=30, labelled_batch=15)
    assert max(s["accuracy"] for s in result["students"]) > 0.7  # chance: 0.33
    first, last = records(config, mode)[0], records(config, mode)[-1]
    assert sum(last["ce"]) < sum(first["ce"])
    if mode == "online":
        assert last["teacher_ce"] < first["teacher_ce"]


def test_a_tuned_teacher_makes_other_targets(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nanonet.teacher.encoder.LEARNING_RATE", {"full": 3e-3})  # the encoder is small and random
    config = dataclasses.replace(config, labels_per_class=30, labelled_batch=15, steps=4, targets="classifier")
    (plain, a), (tuned, b) = run(config, "plain", teacher_steps=0), run(config, "tuned", teacher_steps=200)
    assert distance(a, b) > 1e-4 and tuned["linear_probe"] == plain["linear_probe"]
    assert tuned["teacher"]["accuracy"] > 0.6
    assert not Path(config.output).with_name("tuned").joinpath("teacher").exists()


def test_the_baseline_is_tested_on_some_rows(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nanonet.training.frozen_teacher.PROBE_ROWS", 20)
    tuned, _ = run(config, "tuned")
    plain, _ = run(config, "plain", teacher_steps=0)  # its teacher's embeddings of all rows are the baseline's as well
    assert plain["linear_probe"]["test"] == 20 and tuned["linear_probe"] == plain["linear_probe"]
    assert 0.2 < plain["linear_probe"]["accuracy"] <= 1


def test_steps_grow_with_the_classes_unless_they_are_said(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nanonet.config.settings.MIN_STEPS", 5)
    result, _ = run(config, "chosen", steps=0)
    assert result["config"]["steps"] == len(records(config, "chosen")) == 30  # 10 for each of 3 classes
    monkeypatch.setattr("nanonet.config.settings.MIN_STEPS", 33)
    assert run(config, "fewest", steps=0)[0]["config"]["steps"] == 33


BASE: dict[str, torch.Tensor] = {}


# settings that change the students, compared with a run of the defaults
@pytest.mark.parametrize(
    "change",
    [
        dict(divergence="js"),
        dict(divergence="skew_kl"),
        dict(divergence="skew_kl", beta=0.6),
        dict(temperature=2.0),
        dict(ce_weight=0.5),
        dict(teacher_weight=0.5),
        dict(peers_weight=2.0),
        dict(confidence=True),
        dict(relation_weight=1.0),
        dict(sharpen=3.0),
        dict(targets="propagation"),
        dict(views="adversarial"),
        dict(views="dropout"),
        dict(weight_decay=0.5),
        dict(max_grad_norm=0.01),
        dict(schedule="constant"),
        dict(warmup=0.5),
        dict(layer_mapping="bottom-top"),
        dict(labelled_batch=2),
        dict(unlabelled_batch=5),
        dict(max_unlabelled=40),
        dict(max_tokens=5),
        dict(precision="bfloat16"),
        dict(labels_per_class=4),
    ],
    ids=str,
)
def test_each_setting_changes_the_students(config: TrainConfig, change: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nanonet.report.summary.write_report", lambda *arguments: {})
    short = dataclasses.replace(config, steps=4, targets="classifier")
    if not BASE:
        BASE.update(run(short, "base")[1])
    _, changed = run(short, "changed", **change)
    assert distance(BASE, changed) > 1e-7


def test_tensorboard_writes_what_the_steps_measure(config: TrainConfig) -> None:
    run(config, "board", tensorboard=True, steps=3)
    files = list(Path(config.output).with_name("board").rglob("events.out.tfevents*"))
    assert files and any(b"loss" in file.read_bytes() for file in files)


def test_sharpening_reaches_an_online_teacher(config: TrainConfig) -> None:
    online = dataclasses.replace(config, **MODES["online"], steps=4)
    assert distance(run(online, "base")[1], run(online, "sharp", sharpen=3.0)[1]) > 1e-7


def test_too_few_rows_for_the_parts(config: TrainConfig) -> None:
    with pytest.raises(InputError, match="--gradient-accumulation 40"):
        run(config, "many", gradient_accumulation=40)


def test_the_relation_loss_falls_if_it_has_a_weight(config: TrainConfig) -> None:
    free, weighed = (
        run(config, f"relations-{w}", steps=60, relation_weight=w) and records(config, f"relations-{w}")
        for w in (1e-9, 5.0)
    )
    assert all(a["relation"] != [0, 0] for a in (free[0], weighed[0]))
    assert sum(weighed[-1]["relation"]) < 0.7 * sum(free[-1]["relation"])
    with pytest.raises(InputError, match="--relation-weight 1.0: .* --gradient-accumulation 1"):
        run(config, "parts", relation_weight=1.0, gradient_accumulation=2)


def test_the_names_of_the_classes_are_labelled_texts(config: TrainConfig):
    tokenizer = load_tokenizer(config.teacher)
    plain, named = (
        prepare(data_settings(dataclasses.replace(config, class_names=given)), tokenizer) for given in (False, True)
    )
    few, C = int((plain.label >= 0).sum()), len(plain.classes)
    assert named.label.tolist() == [*plain.label[:few].tolist(), *range(C), *plain.label[few:].tolist()]
    texts = [named.rows[[few + c]].ids.tolist() for c in range(C)]
    assert texts == [tokenizer(name)["input_ids"] for name in plain.classes]
    assert named.rows[range(few)].ids.tolist() == plain.rows[range(few)].ids.tolist()
    assert len(named.validation) == len(plain.validation) and named.test_label == plain.test_label
    assert run(dataclasses.replace(config, class_names=True), "named")[0]["data"]["labelled"] == few + C


def test_a_name_without_a_letter_is_refused_before_anything_is_written(config: TrainConfig, tmp_path: Path):
    data = tmp_path / "numbers.jsonl"
    data.write_text("".join(json.dumps({"text": f"text {i}", "label": i % 2}) + "\n" for i in range(60)))
    with pytest.raises(InputError, match="--class-names: the class '0' of .*jsonl is no word; name the classes"):
        train(dataclasses.replace(config, data=str(data), class_names=True))
    assert not Path(config.output).exists()
    assert name_as_text("card_arrival", "x") == "card arrival"
