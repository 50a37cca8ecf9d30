"""The students' temperature, fitted without a label of theirs and multiplied into their heads."""

from __future__ import annotations

import torch

from nanonet.progress import note
from nanonet.teacher.soft_labels import confidence_scale
from nanonet.training.run import Run


@torch.no_grad()
def calibrate_students(run: Run, cv_accuracy: float | None) -> None:
    """Scale weight and bias of each student's last layer so that its mean confidence on the validation rows, or the
    training rows where there are none, equals the teacher's cross-validated accuracy. Its answers stay the same.

    cv_accuracy: None, where there is no label to measure it on, changes nothing.
    """
    if cv_accuracy is None:
        note("--calibrate: no label to measure an accuracy on; the students' probabilities stay as they are")
        return
    rows = run.data.validation if len(run.data.validation) else run.data.rows
    logits = run.logits(run.cohort, rows, "calibrating the students")
    layer = run.cohort.model.get_submodule(run.cohort.classifier)
    for k in range(run.cohort.students):
        scale = confidence_scale(logits[k], cv_accuracy)
        for parameter in layer.parameters(recurse=False):
            parameter[k] *= scale.to(parameter)
