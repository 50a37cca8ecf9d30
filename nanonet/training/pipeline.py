"""The main job: a few labelled texts and many unlabelled ones go in, small models come out.

    data -> teacher -> cohort -> training -> choice of the best student, without test labels -> export -> report

All input is read and checked before the output folder is touched.
"""

from __future__ import annotations

import shutil
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from nanonet.cohort.build import check_encoder
from nanonet.cohort.cnn import LEARNING_RATE, build_cnn_cohort
from nanonet.cohort.extract import save_adapter, save_student
from nanonet.cohort.mapping import layer_mapping
from nanonet.cohort.model import Cohort, Lora
from nanonet.cohort.stack import build_cohort
from nanonet.cohort.views import parse_views
from nanonet.config.check import check_train
from nanonet.config.train import TrainConfig
from nanonet.data.batches import Encoded
from nanonet.data.prepare import prepare
from nanonet.device import threads
from nanonet.errors import InputError
from nanonet.inference.classifier import check_tokens, most_tokens
from nanonet.inference.forward import run
from nanonet.models.load import check_vocabulary, find_model, load_encoder, load_tokenizer
from nanonet.models.pooling import pooling_of
from nanonet.ops import distill_terms
from nanonet.progress import Progress
from nanonet.report import summary
from nanonet.teacher import cache as teacher_cache
from nanonet.teacher.encoder import Encoder
from nanonet.teacher.frozen import NAME as TARGETS
from nanonet.teacher.frozen import load_teacher, save_teacher
from nanonet.teacher.make import BODY, embed, load_body, teach
from nanonet.teacher.selection import check_labels
from nanonet.teacher.soft_labels import calibrate_confidence
from nanonet.training import checkpoint
from nanonet.training.backbone import (
    BackboneFeatures,
    cached_backbone_features,
    compute_backbone_features,
    open_backbone_features,
)
from nanonet.training.launch import launch
from nanonet.training.loop import OnlineTeacher, TrainingSet, check_parts, fit
from nanonet.training.output_folder import check_folder, open_folder

STEPS, STEPS_A_CLASS = 200, 10


def train(config: TrainConfig) -> dict[str, Any]:
    """Run the job that `config` describes; returns what stands in `output`/report.json.

    Raises:
        InputError: any bad input, before `output` is touched.
    """
    check_train(config)
    folder = check_folder(config)
    accelerator = launch(config, folder)
    main = accelerator.is_main_process
    tokenizer, encoder = load_tokenizer(config.teacher), load_encoder(config.teacher)
    views, depth = parse_views(config.views, config.students), encoder.config.num_hidden_layers
    convolutional = config.student == "cnn"
    mapping: list[list[int]] = [[] for _ in range(config.students)]
    if not convolutional:
        mapping = layer_mapping(config.layer_mapping, config.students, config.student_layers, depth)
    check_tokens(config.max_tokens, most_tokens(encoder))
    material = prepare(config, tokenizer)
    largest = max(int(part.ids.max()) for part in (material.rows, material.validation, material.test) if len(part.ids))
    check_vocabulary(max(largest, tokenizer.pad_token_id), encoder, f"--teacher {config.teacher}")
    tuned = config.teacher_mode == "frozen" and config.teacher_steps > 0
    check_encoder(encoder, layers=tuned or not convolutional)
    given = config
    if not config.steps:
        config = replace(config, steps=max(STEPS, STEPS_A_CLASS * len(material.classes)))
    labelled = int((material.label >= 0).sum())
    check_labels(material.label)
    cache = Path(config.teacher_cache).expanduser() if config.teacher_cache else None
    if cache:
        teacher_cache.ensure_writable(cache)
    check_parts(config, labelled, len(material.rows) - labelled, accelerator.num_processes)
    lora = Lora(config.lora_rank, config.lora_alpha, config.lora_dropout)
    if convolutional:
        cohort = build_cnn_cohort(encoder, material.classes, config.students, config.embedding_width, config.seed)
    else:
        cohort = build_cohort(encoder, mapping, material.classes, config.tuning, lora=lora, seed=config.seed)
    cohort.checkpointing = config.gradient_checkpointing
    whole = None
    if config.teacher_mode == "online":
        every_layer = [list(range(depth))]
        whole = build_cohort(encoder, every_layer, material.classes, config.tuning, lora=lora, seed=config.seed + 1)
    pad_id, device = tokenizer.pad_token_id, accelerator.device

    with Progress(main) as progress, threads(config.threads), ExitStack() as locked:

        def logits(model: Cohort, rows: Encoded, what: str) -> Tensor:
            with progress.stage(what, len(rows)) as tick, accelerator.autocast():
                return run(model.to(device).eval(), rows, pad_id, device, done=tick)

        # the teacher's tuning has no gradient scaler, which float16 would need
        autocast = nullcontext if config.precision == "float16" else accelerator.autocast
        pretrained = Encoder(encoder, pooling_of(*find_model(config.teacher)), pad_id, device, autocast)
        key = teacher_cache.fingerprint(config, material.rows, material.label, encoder, pretrained.pooling)
        backbones: dict[Cohort, Path] = {}
        if cache and config.tuning == "head":
            models = [cohort] if whole is None else [cohort, whole]
            backbones = {
                model: cache / teacher_cache.backbone_features_name(config, model, material.rows) for model in models
            }
        if main:
            if cache and (cache / key).exists():  # a damaged one is found before a run is overwritten for it
                load_teacher(cache / key, key)
                if tuned:
                    load_body(cache / key)
            for path in filter(Path.exists, backbones.values()):
                open_backbone_features(path)
            locked.enter_context(open_folder(given, folder))
            # a resumed run takes the teacher that it has
            if not (folder / TARGETS).exists():
                if not (cache and teacher_cache.restore(cache, key, folder)):
                    save_teacher(folder, teach(config, pretrained, tuned, material, folder, progress), key)
                    if cache:
                        teacher_cache.store(
                            cache, key, [folder / name for name in (TARGETS, BODY) if (folder / name).exists()]
                        )
        accelerator.wait_for_everyone()
        frozen, body = load_teacher(folder, key), pretrained
        if tuned:
            body = replace(pretrained, model=load_body(folder))
        soft: Tensor | None = frozen.soft
        online = None

        def backbone_of(model: Cohort, what: str) -> BackboneFeatures | None:
            visits = config.steps * (config.labelled_batch + config.unlabelled_batch)
            if config.tuning != "head" or visits < len(material.rows):
                return None

            def make() -> BackboneFeatures | None:
                with progress.stage(what, len(material.rows)) as tick, accelerator.autocast():
                    return compute_backbone_features(model.to(device), material.rows, pad_id, device, tick)

            if not backbones:
                return make()
            with accelerator.main_process_first():  # the others find it there
                return cached_backbone_features(backbones[model], make)

        if whole is not None:
            backbone = backbone_of(whole, "the teacher's frozen layers")
            online, soft = OnlineTeacher(whole, frozen.choice.cv_accuracy, backbone), None
        backbone = backbone_of(cohort, "the students' frozen layers") if set(views) == {"none"} else None

        if config.tensorboard:
            accelerator.init_trackers("tensorboard")
        with progress.stage("training the students", config.steps) as tick:

            def each_step(record: dict) -> None:
                tick(1, f"loss {record['loss']:.4f}, {record['rows_per_s']:.0f} rows/s")
                if config.tensorboard:
                    accelerator.log({k: v for k, v in record.items() if isinstance(v, float)}, step=record["step"])

            relations = frozen.embedding if config.relation_weight else None
            rows = TrainingSet(material.rows, material.label, soft, pad_id, relations, backbone)
            rate = config.learning_rate or (LEARNING_RATE if convolutional else 0.0)
            fit(replace(config, learning_rate=rate), cohort, views, rows, accelerator, folder, online, each_step)
        for tracker in accelerator.trackers:  # end_training() would also end the processes' group, which is needed yet
            tracker.finish()
        if not main:
            accelerator.wait_for_everyone()
            return {}

        # The choice of the best student: whoever is nearest to the soft targets of rows that it was not trained on.
        held = material.validation if len(material.validation) else material.rows
        if online:
            wanted = logits(online.model, held, "held rows")[0]
        else:
            wanted = frozen.logits(embed(progress, body, held, "held rows"))
        wanted = calibrate_confidence(wanted, frozen.choice.cv_accuracy) * config.sharpen
        gap = distill_terms(logits(cohort, held, "choosing the best"), wanted)[1].mean(-1)
        if not gap.isfinite().all():
            lost = int((~gap.isfinite()).nonzero()[0])
            raise InputError(f"the training of student {lost} diverged: lower --learning-rate or raise --warmup")
        best = int(gap.argmin())

        outcome: dict[str, Tensor] = {}
        if len(material.test):
            outcome["students"] = logits(cohort, material.test, "testing the students")
            plain = embed(progress, pretrained, material.test, "testing the linear probe")
            outcome["linear_probe"] = frozen.floor(plain)
            if online:
                outcome["teacher"] = logits(online.model, material.test, "testing the teacher")[0]
            else:
                own = embed(progress, body, material.test, "testing the teacher") if tuned else plain
                outcome["teacher"] = frozen.logits(own)
        for k in range(cohort.students):
            save_student(cohort, k, folder / f"student-{k}", tokenizer)
            if config.tuning == "lora":
                save_adapter(cohort, k, folder / f"student-{k}-adapter", tokenizer)
        save_student(cohort, best, folder / "best", tokenizer)
        facts = summary.Facts(
            config,
            material.name,
            material.classes,
            material.label,
            len(material.validation),
            views,
            mapping,
            gap.tolist(),
            best,
        )
        result = summary.write_report(
            folder, facts, cohort, encoder, frozen.choice, outcome, material.test_label, progress.seconds
        )
        (folder / checkpoint.NAME).unlink(missing_ok=True)
        shutil.rmtree(folder / BODY, ignore_errors=True)
        accelerator.wait_for_everyone()
    return result
