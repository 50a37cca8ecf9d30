"""Training: the same step however it is cut, killed or distributed, and an effect of each setting."""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.grids import slow
from torch.utils.checkpoint import checkpoint

from nanonet.cohort import model
from nanonet.config.settings import data_settings
from nanonet.config.train import TrainConfig
from nanonet.data.prepare import name_as_text, prepare
from nanonet.errors import InputError
from nanonet.models.load import load_tokenizer
from nanonet.training.backbone import compute_backbone_features
from nanonet.training.checkpoint import save
from nanonet.training.optimizer import TEACHER_LEARNING_RATE
from nanonet.training.pipeline import train

MODES: dict[str, dict] = {
    "frozen": {},
    "online": {"teacher_mode": "online", "teacher_steps": 4},
}
MODES["head"] = MODES["online"] | {"tuning": "head"}  # the students' and the teacher's backbone features are cached


@pytest.fixture
def config(tiny_encoder: Path, tiny_data: Path, tmp_path: Path) -> TrainConfig:
    return TrainConfig(
        output=str(tmp_path / "run"),
        data=str(tiny_data),
        teacher=str(tiny_encoder),
        labels_per_class=5,
        teacher_steps=2,
        steps=12,
        labelled_batch=5,
        unlabelled_batch=11,
        learning_rate=3e-3,
        max_tokens=32,
    )


def weights(folder: str | Path, student: int = 0) -> dict[str, torch.Tensor]:
    return load_file(Path(folder) / f"student-{student}" / "model.safetensors")


def run(config: TrainConfig, name: str, **changes) -> tuple[dict, dict]:
    output = str(Path(config.output).with_name(name))
    result = train(dataclasses.replace(config, output=output, **changes))
    return result, weights(output)


def distance(a: dict, b: dict) -> float:
    assert a.keys() == b.keys()
    return max((a[name] - b[name]).abs().max().item() for name in a)


def records(config: TrainConfig, name: str) -> list[dict]:
    lines = (Path(config.output).with_name(name) / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


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


# cached: both have the teacher that one process has made
@pytest.mark.parametrize("mode", ["frozen", slow("cached"), slow("online"), slow("head")])
def test_two_processes_make_the_same_weights_as_one(config: TrainConfig, mode: str) -> None:
    cache = str(Path(config.output).with_name("cache")) if mode == "cached" else ""
    config = dataclasses.replace(config, teacher_cache=cache, **MODES.get(mode, {}))
    config = dataclasses.replace(config, **({} if mode == "head" else {"steps": 6, "views": "cutoff"}))
    alone, one = run(config, "one")
    folder = Path(config.output).with_name("two")
    # once with a tracker, whose end is not that of the processes
    done = run_two(dataclasses.replace(config, output=str(folder), tensorboard=mode == "online"))
    assert done.returncode == 0, done.stderr[-2000:]
    report = json.loads((folder / "report.json").read_text())
    assert report["versions"]["processes"] == 2
    # a logistic regression stops at 1e-4 of its gradient, and so makes other soft labels of the same embeddings
    assert distance(one, weights(folder)) < (2e-3 if mode == "frozen" else 1e-4)
    if mode in ("frozen", "cached"):
        soft_labels = [
            load_file(folder.with_name(name) / "targets.safetensors")["soft_labels"] for name in ("one", "two")
        ]
        torch.testing.assert_close(*soft_labels, rtol=0, atol=0.03 if mode == "frozen" else 0)
    assert len(records(config, "two")) == config.steps
    for what in ("teacher", "linear_probe", "ensemble"):
        assert report[what]["accuracy"] == alone[what]["accuracy"]
    for what in ("targets", "cross_validation"):
        assert report["teacher"][what] == alone["teacher"][what]
    assert [s["accuracy"] for s in report["students"]] == [s["accuracy"] for s in alone["students"]]


@pytest.mark.slow
def test_a_process_that_fails_ends_the_others(config: TrainConfig) -> None:
    folder = Path(config.output)
    folder.mkdir()
    held = os.open(folder, os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    done = run_two(config)
    os.close(held)
    lines = [line for line in done.stderr.splitlines() if line.startswith("nanonet: error:")]
    said = f"nanonet: error: --output {folder}: another run is writing there; wait for it, or give another folder"
    assert done.returncode != 0 and lines.count(said) == 1
    # the other process is told by its connection, or ended by torchrun
    assert {line for line in lines if line != said} <= {
        "nanonet: error: another process of this run has ended; what it says is the reason"
    }
    assert "/nanonet/" not in done.stderr.replace(str(folder), "")  # no traceback of ours
    assert not list(folder.iterdir())


def run_two(config: TrainConfig) -> subprocess.CompletedProcess:
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "nanonet"]
    env = environment() | {"CUDA_VISIBLE_DEVICES": ""}
    where = Path(config.output).parent
    command = [*launch, "train", *flags_of(config)]
    return subprocess.run(command, capture_output=True, text=True, env=env, cwd=where, timeout=600)


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def flags_of(config: TrainConfig) -> list[str]:
    changed = {k: v for k, v in dataclasses.asdict(config).items() if v != getattr(TrainConfig(), k)}
    return [part for k, v in changed.items() for part in (f"--{k.replace('_', '-')}", *([] if v is True else [str(v)]))]


def test_a_killed_run_resumes_to_the_same_weights(config: TrainConfig) -> None:
    config = dataclasses.replace(
        config, steps=120, save_every=7, views="dropout,shuffle", tuning="lora", lora_dropout=0.1
    )
    _, uninterrupted = run(config, "uninterrupted")
    folder = Path(config.output).with_name("killed")
    killed = dataclasses.replace(config, output=str(folder))
    process = subprocess.Popen([sys.executable, "-m", "nanonet", "train", *flags_of(killed)], env=environment())
    deadline = time.monotonic() + 120
    while not (folder / "checkpoint.safetensors").exists() and time.monotonic() < deadline:
        assert process.poll() is None, "the run ended before it could be killed"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (folder / "report.json").exists() and (folder / "checkpoint.safetensors").exists()
    with pytest.raises(InputError, match="seed 0 -> 1"):
        train(dataclasses.replace(killed, resume=True, seed=1))
    train(dataclasses.replace(killed, resume=True))
    assert distance(uninterrupted, weights(folder)) == 0
    assert [r["step"] for r in records(config, "killed")] == list(range(120))
    assert not (folder / "checkpoint.safetensors").exists()


@pytest.mark.parametrize(
    ("save_every", "advice"), [(1, "with --resume and without --overwrite"), (0, "--save-every 50")]
)
def test_a_terminated_run_says_how_to_resume(config: TrainConfig, save_every: int, advice: str) -> None:
    config = dataclasses.replace(config, steps=4000, save_every=save_every)
    command = [sys.executable, "-m", "nanonet", "train", *flags_of(config)]
    process = subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (Path(config.output) / "metrics.jsonl").exists() and time.monotonic() < deadline:
        assert process.poll() is None, "the run ended before it could be terminated"
        time.sleep(0.01)
    process.terminate()
    _, errors = process.communicate(timeout=60)
    *_, last = errors.splitlines()
    assert process.returncode == 143 and last.startswith("nanonet: terminated; ") and advice in last
    assert not list(Path(config.output).glob(".*")) and "Traceback" not in errors


def test_a_run_of_other_texts_is_not_resumed(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, out = tmp_path / "own", tmp_path / "stopped"
    shutil.copytree(config.data, data)
    config = dataclasses.replace(config, data=str(data), output=str(out), steps=6, save_every=3)

    def save_and_stop(*arguments) -> None:
        save(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr("nanonet.training.loop.save", save_and_stop)
    with pytest.raises(KeyboardInterrupt):
        train(config)
    lines = (data / "train.jsonl").read_text().splitlines(keepends=True)
    (data / "train.jsonl").write_text("".join(reversed(lines)))
    with pytest.raises(InputError, match="was begun with other texts"):
        train(dataclasses.replace(config, resume=True))
    (data / "train.jsonl").write_text("".join(lines))
    with (out / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "lo')  # truncated by a full disk
        file.write('\n5\n{}\n{"step": "a"}\n')  # not records
    train(dataclasses.replace(config, resume=True))
    assert [r["step"] for r in records(config, "stopped")] == list(range(6))


# the parameters of an encoder's layers that each tuning trains; the head is always trained, the embeddings never
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
