"""The job of `nanonet train`: from a few labelled and many unlabelled texts to small models.

    data -> cohort -> teacher -> training -> choice of the best student, without test labels -> export -> report

All input is read and checked before the output folder is touched.
"""

from __future__ import annotations

import json
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from nanonet.config.check import check_train
from nanonet.config.settings import stage_settings
from nanonet.config.train import TrainConfig
from nanonet.data.dataset import Dataset
from nanonet.data.soft_label_files import SoftLabelFiles
from nanonet.device import threads
from nanonet.errors import InputError
from nanonet.files import write
from nanonet.installation.parts import ensure_checked
from nanonet.progress import note
from nanonet.report.html import render_html
from nanonet.report.summary import read_metrics
from nanonet.training.frozen_teacher import check_cached_teacher, ensure_teacher, load
from nanonet.training.launch import ends_with_the_others, launch
from nanonet.training.outcome import finish
from nanonet.training.output_folder import REPORT, OutputFolder
from nanonet.training.precision import choose_precision, with_precision
from nanonet.training.run import prepare_run
from nanonet.training.students import check_cached_features, start_from_teacher, train_students


def train(
    config: TrainConfig, dataset: Dataset | None = None, soft_labels: SoftLabelFiles | None = None
) -> dict[str, Any]:
    """Run the job that `config` describes; returns the content of `output`/report.json, {} in all processes but one.

    dataset, soft_labels: what is in memory already; `data` and the columns, and the files, are not looked at then

    Raises:
        InputError: any bad input, before `output` is touched.
    """
    check_train(config)
    folder = OutputFolder(config)
    folder.check()
    if config.precision == "auto" and config.resume:
        config = replace(config, precision=folder.stored_precision())
    settings = stage_settings(config)
    incomplete = folder.lacks_last_files()
    accelerator = launch(settings.general.precision, settings.general.tensorboard, folder.path)
    if incomplete:
        return _complete(folder) if accelerator.is_main_process else {}
    run = prepare_run(settings, folder.path, accelerator, dataset, soft_labels)
    if config.precision == "auto":
        config = replace(config, precision=choose_precision(run))
        settings = stage_settings(config)
        accelerator = launch(settings.general.precision, settings.general.tensorboard, folder.path)
        run = with_precision(run, settings, accelerator)
    folder = OutputFolder(config)
    with ends_with_the_others(accelerator), run.progress, threads(settings.general.threads), ExitStack() as stack:
        if accelerator.is_main_process:
            check_cached_teacher(run)
            check_cached_features(run)
            run = replace(run, ensure_ours=stack.enter_context(folder.open()))
        if accelerator.is_local_main_process and accelerator.device.type == "cuda":
            ensure_checked(note)
        ensure_teacher(run)
        accelerator.wait_for_everyone()
        frozen_teacher = load(run)
        run = start_from_teacher(run, frozen_teacher)
        train_students(run, frozen_teacher)
        report = finish(run, frozen_teacher, config)
        accelerator.wait_for_everyone()
    return report


def _complete(folder: OutputFolder) -> dict[str, Any]:
    """Resume a run that was killed after its report: delete what it no longer needs, write what is missing."""
    with folder.open():
        report = json.loads((folder.path / REPORT).read_text(encoding="utf-8"))
        try:
            page = render_html(report, read_metrics(folder.path / "metrics.jsonl"))
        except KeyError as error:
            raise InputError(
                f"--resume: {folder.path / REPORT} was written by an older version (it has no {error});"
                " give --overwrite to run it again"
            ) from None
        write(folder.path / "report.html", page)
    return report
