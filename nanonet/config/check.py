"""Settings of a training run that make no sense, alone or together, are refused before anything is read."""

from __future__ import annotations

import importlib.util
import os

from nanonet.config.train import TrainConfig
from nanonet.errors import InputError


def check_train(config: TrainConfig) -> None:
    """Refuse numbers that make no sense together or alone.

    Raises:
        InputError: names the flag, what came, and what it takes.
    """

    def refuse(name: str, cure: str) -> None:
        raise InputError(f"--{name.replace('_', '-')} {getattr(config, name)}: {cure}")

    if not config.output:
        raise InputError("--output is missing: name the folder that receives the students and the report")
    counts = {"students": 1, "student_layers": 1, "lora_rank": 1, "teacher_steps": 0, "steps": 0, "labelled_batch": 1}
    counts |= {"unlabelled_batch": 1, "gradient_accumulation": 1, "labels_per_class": 0, "max_unlabelled": 0}
    counts |= {"max_test": 0, "save_every": 0, "threads": 0, "seed": 0, "embedding_width": 1}
    for name, least in counts.items():
        if getattr(config, name) < least:
            refuse(name, f"give {least} or more")
    cores = os.cpu_count() or 1
    # the seeds of steps and students are multiples of this one, and have to fit into 64 bits
    for name, most in {"seed": 2**32 - 1, "threads": cores}.items():
        if getattr(config, name) > most:
            refuse(name, f"give {most} or less")
    weights = ("ce_weight", "teacher_weight", "peers_weight", "relation_weight")
    for name in (*weights, "learning_rate", "weight_decay", "max_grad_norm"):
        if not 0 <= getattr(config, name) < float("inf"):
            refuse(name, "give 0 or more")
    for name in ("sharpen", "lora_alpha"):
        if not 0 < getattr(config, name) < float("inf"):
            refuse(name, "give a number above 0")
    if not 0.01 <= config.temperature <= 100:
        refuse("temperature", "give 0.01 to 100")
    for name in ("warmup", "lora_dropout"):
        if not 0 <= getattr(config, name) < 1:
            refuse(name, "give a fraction of at least 0 and below 1")
    if config.divergence == "mse" and config.temperature != 1:
        refuse("temperature", "--divergence mse compares raw logits; leave it at 1")
    if config.teacher_mode == "online" and config.targets != "auto":
        refuse("targets", "an online teacher gives its own soft targets; leave it at auto, or --teacher-mode frozen")
    if config.relation_weight and config.teacher_mode == "online":
        refuse("relation_weight", "it compares with a frozen teacher's embeddings; give --teacher-mode frozen, or 0")
    if config.students == 1 and config.peers_weight not in (0, TrainConfig.peers_weight):
        refuse("peers_weight", "one student has no peers; leave it out, or give --students 2 or more")
    if config.labels_per_class == 1:
        refuse("labels_per_class", "soft targets are cross-validated inside the labels; give 2 or more, or 0 for all")
    if config.uniform_prior and config.targets != "propagation":
        refuse("uniform_prior", "it balances propagated targets; give --targets propagation with it")
    if config.student == "cnn" and config.tuning != "full":
        refuse("tuning", "a cnn student starts from scratch, so all of it is trained; leave it at full")
    idle = {
        "--student cnn": ("student_layers", "layer_mapping") if config.student == "cnn" else (),
        "--student encoder": ("embedding_width",) if config.student == "encoder" else (),
        "--teacher-mode online": ("teacher_steps",) if config.teacher_mode == "online" else (),
        "--data pydocs": ("text_column", "label_column") if config.data == "pydocs" and not config.unlabelled else (),
        f"--tuning {config.tuning}": () if config.tuning == "lora" else ("lora_rank", "lora_alpha", "lora_dropout"),
    }
    for other, names in idle.items():
        for name in names:
            if getattr(config, name) != getattr(TrainConfig, name):
                refuse(name, f"it means nothing to {other}; leave it out")
    if config.tensorboard and importlib.util.find_spec("tensorboard") is None:
        raise InputError("--tensorboard: tensorboard is not installed; pip install 'nanonet[tensorboard]'")
    if config.resume and config.overwrite:
        raise InputError("--resume and --overwrite: give one of them, to go on or to start again")
