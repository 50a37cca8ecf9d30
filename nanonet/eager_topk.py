"""The ops of a TopK teacher as their schemas have them, by the reference: eager.py of these."""

from __future__ import annotations

import math

import torch

from nanonet import eager, reference_topk


def _flat(student, ids, logprobs, label):
    """(K,N,C), (N,k), (N,k), (N,) and the leading shape, of K students of any leading shape."""
    C, k, leading = student[0].shape[-1], ids.shape[-1], student[0].shape[:-1]
    rows = torch.stack([one.reshape(-1, C) for one in student])
    label = None if label is None else label.reshape(-1).long()
    return rows, ids.reshape(-1, k), logprobs.reshape(-1, k), label, leading


def distill_topk_terms(student, ids, logprobs, tail, label, *options):
    rows, ids, logprobs, label, leading = _flat(student, ids, logprobs, label)
    with torch.no_grad():
        terms = reference_topk.distill_topk_terms(rows, ids, logprobs, tail, label, *options)
    return terms.reshape(3, len(student), *leading)


def distill_topk_terms_backward(dterms, student, ids, logprobs, tail, label, *options):
    rows, ids, logprobs, label, leading = _flat(student, ids, logprobs, label)
    upstream = dterms.reshape(3, len(student), math.prod(leading))
    dstudent = reference_topk.topk_gradient(upstream, rows, ids, logprobs, tail, label, *options)
    return dstudent.reshape(len(student), *student[0].shape)


def distill_topk_loss(student, ids, logprobs, tail, label, weights, row_weight, denominators, *options):
    *numbers, need_grad = options
    rows, ids, logprobs, label, leading = _flat(student, ids, logprobs, label)
    row_weight = eager.flat_weight(row_weight, len(student), leading)
    with torch.no_grad():
        loss, means, dstudent = reference_topk.distill_topk_loss(
            rows, ids, logprobs, tail, label, weights, row_weight, denominators, *numbers
        )
    shape = len(student), *student[0].shape
    return loss, means, dstudent.reshape(shape) if need_grad else dstudent.new_empty(0)


OPS = {f.__name__: f for f in (distill_topk_terms, distill_topk_terms_backward, distill_topk_loss)}
