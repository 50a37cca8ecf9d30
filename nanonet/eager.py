"""The ops of the loss as their schemas have them, by the reference: where no kernel serves, and where one does not.

Arguments and results are those of schemas.py.
"""

from __future__ import annotations

import torch

from nanonet import reference


def distill_terms(student, teacher, label, temperature, divergence, beta):
    with torch.no_grad():
        terms = reference.distill_terms(student, teacher, label, temperature, divergence, beta)
        return terms, reference.row_stats(student, teacher, temperature, divergence, beta)


def distill_terms_backward(dterms, student, teacher, label, stats, temperature, divergence, beta):
    return reference.row_gradient(dterms, student, teacher, label, temperature, divergence, beta)


def distill_loss(*arguments_and_need_grad):
    *arguments, need_grad = arguments_and_need_grad
    with torch.no_grad():
        loss, means, dstudent = reference.distill_loss(*arguments)
    return loss, means, dstudent if need_grad else dstudent.new_empty(0)


def distill_scale_(dstudent, dloss):
    dstudent.mul_(dloss)


OPS = {f.__name__: f for f in (distill_terms, distill_terms_backward, distill_loss, distill_scale_)}
