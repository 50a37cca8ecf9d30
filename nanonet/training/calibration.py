"""The students' temperature, fitted without a label of theirs and multiplied into their heads."""

from __future__ import annotations

import torch
from torch import Tensor

from nanonet.teacher.soft_labels import confidence_scale
from nanonet.training.run import Run


@torch.no_grad()
def calibrate_students(run: Run, accuracy: float, agreement: Tensor) -> None:
    """Scale weight and bias of each student's last layer so that its mean confidence on the validation rows, or the
    training rows where there are none, equals the accuracy that is expected of its teacher. Its answers stay the same.

    agreement: (K,) the share of these rows to which a student gives its teacher's label. A student that has not learnt
        what its teacher knows is no surer than that
    The confidence is at least a quarter of the way from chance to certainty.
    """
    rows = run.data.validation if len(run.data.validation) else run.data.rows
    logits = run.logits(run.cohort, rows, "calibrating the students")
    layer = run.cohort.model.get_submodule(run.cohort.classifier)
    lowest = (1 + 3 / logits.shape[-1]) / 4
    for k in range(run.cohort.students):
        scale = confidence_scale(logits[k], max(min(accuracy, agreement[k].item()), lowest))
        for parameter in layer.parameters(recurse=False):
            parameter[k] *= scale.to(parameter)
