"""The job of `nanonet train`: from a few labelled and many unlabelled texts to small models.

    data -> cohort -> teacher -> training -> choice of the best student, without test labels -> export -> report

All input is read and checked before the output folder is touched.
"""

from __future__ import annotations

import json
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from nanonet.config.check import check_train
from nanonet.config.settings import stage_settings
from nanonet.config.train import TrainConfig
from nanonet.device import threads
from nanonet.files import write
from nanonet.report.html import render_html
from nanonet.report.summary import read_metrics
from nanonet.training.frozen_teacher import check_cached_teacher, ensure_teacher, load
from nanonet.training.launch import launch
from nanonet.training.outcome import finish
from nanonet.training.output_folder import REPORT, check_folder, is_incomplete, open_folder
from nanonet.training.run import prepare_run
from nanonet.training.students import check_cached_features, train_students


def train(config: TrainConfig) -> dict[str, Any]:
    """Run the job that `config` describes; returns the content of `output`/report.json, {} in all processes but one.

    Raises:
        InputError: any bad input, before `output` is touched.
    """
    check_train(config)
    folder = check_folder(config)
    settings, incomplete = stage_settings(config), config.resume and is_incomplete(folder)
    accelerator = launch(settings.precision, settings.tensorboard, folder)
    if incomplete:
        return _complete(config, folder) if accelerator.is_main_process else {}
    run = prepare_run(settings, folder, accelerator)
    with run.progress, threads(settings.threads), ExitStack() as stack:
        if accelerator.is_main_process:
            check_cached_teacher(run)
            check_cached_features(run)
            run = replace(run, ensure_ours=stack.enter_context(open_folder(config, folder)))
            ensure_teacher(run)
        accelerator.wait_for_everyone()
        teacher = load(run)
        train_students(run, teacher)
        report = finish(run, teacher, config) if accelerator.is_main_process else {}
        accelerator.wait_for_everyone()
    return report


def _complete(config: TrainConfig, folder: Path) -> dict[str, Any]:
    """Resume a run that was killed after its report: delete what it no longer needs, write what is missing."""
    with open_folder(config, folder):
        report = json.loads((folder / REPORT).read_text(encoding="utf-8"))
        write(folder / "report.html", render_html(report, read_metrics(folder / "metrics.jsonl")))
    return report
