"""The ops of the loss as their schemas have them, by the reference: where no kernel serves, and where one does not.

Arguments and results are those of schemas.py.
"""

from __future__ import annotations

import math

import torch

from nanonet import reference


def leading_dims(student, teacher, label):
    """How many dimensions stand before the classes, beside K."""
    return teacher.dim() - 1 if teacher is not None else label.dim() if label is not None else student.dim() - 2


def flat(student, teacher, label):
    """(K,N,C), (N,C) and (N,) of any leading shape, a copy where no view serves; K and the leading shape."""
    dims = leading_dims(student, teacher, label)
    stacked = student.dim() - 1 != dims
    K, leading, C = student.shape[0] if stacked else 1, student.shape[stacked:-1], student.shape[-1]
    N = leading.numel()
    teacher = None if teacher is None else teacher.reshape(N, C)
    label = None if label is None else label.reshape(N).long()
    return student.reshape(K, N, C), teacher, label, K, leading


def flat_weight(row_weight, K, leading):
    """(N,) or (K,N), float32 where it was no float."""
    if row_weight is None:
        return None
    row_weight = row_weight if row_weight.is_floating_point() else row_weight.float()
    N = math.prod(leading)
    return row_weight.reshape(N if row_weight.shape == leading else (K, N))


def distill_terms(student, teacher, label, temperature, divergence, beta):
    with torch.no_grad():
        student, teacher, label, K, leading = flat(student, teacher, label)
        terms = reference.distill_terms(student, teacher, label, temperature, divergence, beta)
        stats = reference.row_stats(student, teacher, temperature, divergence, beta)
        return terms.reshape(3, K, *leading), stats


def distill_terms_backward(dterms, student, teacher, label, stats, temperature, divergence, beta):
    shape = student.shape
    student, teacher, label, _, _ = flat(student, teacher, label)
    dterms = dterms.reshape(3, *student.shape[:2])
    return reference.row_gradient(dterms, student, teacher, label, temperature, divergence, beta).reshape(shape)


def distill_loss(student, teacher, label, weights, row_weight, denominators, temperature, divergence, beta, need_grad):
    shape = student.shape
    with torch.no_grad():
        student, teacher, label, K, leading = flat(student, teacher, label)
        loss, means, dstudent = reference.distill_loss(
            student,
            teacher,
            label,
            weights,
            flat_weight(row_weight, K, leading),
            denominators,
            temperature,
            divergence,
            beta,
        )
    return loss, means, dstudent.reshape(shape) if need_grad else dstudent.new_empty(0)


def distill_scale_(dstudent, dloss):
    dstudent.mul_(dloss)


OPS = {f.__name__: f for f in (distill_terms, distill_terms_backward, distill_loss, distill_scale_)}


# Separate students: stacked, for whichever kernel serves the stack.
def distill_terms_each(student, teacher, label, *options):
    stack, teacher, label, K, leading = _stacked(student, teacher, label)
    terms, stats = torch.ops.nanonet.distill_terms(stack, teacher, label, *options)
    return terms.reshape(3, K, *leading), stats


def distill_terms_each_backward(dterms, student, teacher, label, stats, *options):
    stack, teacher, label, K, leading = _stacked(student, teacher, label)
    dterms = dterms.reshape(3, K, -1)
    dstudent = torch.ops.nanonet.distill_terms_backward(dterms, stack, teacher, label, stats, *options)
    return dstudent.reshape(K, *student[0].shape)


def distill_loss_each(student, teacher, label, weights, row_weight, denominators, *options):
    stack, teacher, label, K, leading = _stacked(student, teacher, label)
    row_weight = flat_weight(row_weight, K, leading)
    loss, means, dstudent = torch.ops.nanonet.distill_loss(
        stack, teacher, label, weights, row_weight, denominators, *options
    )
    return loss, means, dstudent.reshape(K, *student[0].shape) if options[-1] else dstudent


def _stacked(student, teacher, label):
    C = student[0].shape[-1]
    rows = torch.stack([one.reshape(-1, C) for one in student])
    teacher = None if teacher is None else teacher.reshape(-1, C)
    label = None if label is None else label.reshape(-1).long()
    return rows, teacher, label, len(student), student[0].shape[:-1]


EACH = {f.__name__: f for f in (distill_terms_each, distill_terms_each_backward, distill_loss_each)}
