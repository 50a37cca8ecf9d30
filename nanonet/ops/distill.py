"""The distillation loss of K students against one teacher and against each other.

The public functions; check.py says what they accept, autograd.py has fakes, backwards and the registration of the ops.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from nanonet import eager
from nanonet.ops.autograd import EAGER, FUNC
from nanonet.ops.autograd_topk import topk_loss, topk_terms
from nanonet.ops.check import Logits, as_tensor, check_divergence, check_logits, check_weights
from nanonet.ops.topk import TAILS, TopK


def distill_terms(
    student: Logits,
    teacher: Tensor | TopK | None = None,
    label: Tensor | None = None,
    *,
    temperature: float = 1.0,
    divergence: str = "kl",
    beta: float | None = None,
) -> Tensor:
    """The three terms of every student and row, for any reduction of your own.

        ce[k,n]      = -log softmax(s_k)[y]                          0 where label is -100 or None
        teacher[k,n] = tau^2 * D(softmax(t/tau), softmax(s_k/tau))   0 where teacher is None
        peers[k,n]   = tau^2 / (K-1) * sum_{j != k} KL(q_j || q_k)   0 where K is 1

    D(p, q) by `divergence`, p the teacher's and q the student's probabilities, natural logarithms (nats):

        kl               sum p (log p - log q)
        reverse_kl       sum q (log q - log p)
        js               beta KL(p, m) + (1 - beta) KL(q, m), m = beta p + (1 - beta) q   beta 0.5; 0: kl, 1: reverse_kl
        symmetric_kl     beta KL(p, q) + (1 - beta) KL(q, p)                                beta 0.5
        skew_kl          KL(p, beta p + (1 - beta) q)                                       beta 0.1
        skew_reverse_kl  KL(q, beta q + (1 - beta) p)                                       beta 0.1
        tv               sum |p - q| / 2
        cross_entropy    -sum p log q
        mse              the mean over the classes of (s_k - t)^2 on raw logits, temperature 1, for the peers alike

    Teacher and peers are constants: no gradient flows into them.

    Args:
        student: (K,...,C) float32, bfloat16, float16 or float64; or (...,C), the teacher's or the labels' shape, of one
            student; or a list of K tensors (...,C), each of which gets its own gradient. Any leading shape "...", of N
            rows in all; on a CPU any strides with a dense last dimension are read in place, logits[:, :-1] too.
        teacher: (...,C) of any of those dtypes, not requiring grad; a TopK of what a server or a file keeps; or None.
        label: (...) int64 or int32, -100 where unlabelled, or None.
        temperature: tau > 0.
        beta: weight of the mixture of a divergence that has one; None: its default.
    Returns:
        (3,K,...) float32, float64 for float64 students.
    Raises:
        TypeError, ValueError: an argument of another kind, dtype, shape or device; a label outside [0,C) on the
            CPU (NaN on a GPU); a teacher that requires grad; mse with a temperature; a beta that means nothing.
        RuntimeError: on a second derivative, which is not implemented; under torch.func.vmap (torch.func.grad works).

    Error: at most twice that of the reference in the same dtype, both against float64 (tests/ops/test_distill.py).
    Source: Zhang et al. 2018 (arXiv 1706.00384), eq. 1-8, for the peers; Hinton et al. 2015 for tau^2; Agarwal et al.
    2024 (arXiv 2306.13649) for js with a beta; Ko et al. 2024 (arXiv 2402.03898) for the skewed divergences.
    """
    K, leading = check_logits(student, teacher, label, temperature)
    code, beta = check_divergence(divergence, beta, temperature, teacher)
    if isinstance(teacher, TopK):
        return _or_under_func(
            topk_terms, None, _students(student, leading), *_topk(teacher), label, temperature, code, beta
        )
    if not isinstance(student, Tensor):
        return _call("distill_terms_each", student, teacher, label, temperature, code, beta)[0]
    flattened = not student.is_cpu  # the CPU's kernels read any shape
    if flattened:
        student, teacher, label, _, _ = eager.flat(student, teacher, label)
    terms = _call("distill_terms", student, teacher, label, temperature, code, beta)[0]
    return terms.reshape(3, K, *leading) if flattened else terms


def distill_loss(
    student: Logits,
    teacher: Tensor | TopK | None = None,
    label: Tensor | None = None,
    *,
    weights: Tensor | Sequence[float] = (1.0, 1.0, 1.0),
    row_weight: Tensor | None = None,
    denominators: Tensor | Sequence[float] | None = None,
    temperature: float = 1.0,
    divergence: str = "kl",
    beta: float | None = None,
    student_entropy: bool = False,
) -> tuple[Tensor, Tensor]:
    """The loss of the whole cohort and, in the same pass over the rows, its gradient.

        loss = sum_k [ w_ce sum_labelled ce / d_0 + w_teacher sum_n r_n teacher / d_1 + w_peers sum_n r_n peers / d_1 ]

    with the terms of `distill_terms`. It is summed over the students, so that each is trained as though alone.

    Args:
        student, teacher, label, temperature, divergence, beta: as `distill_terms`.
        weights: (3,) of ce, teacher, peers; pass a tensor on the device where they change from step to step.
        row_weight: (...) or (K,...) weight r of the soft terms of a row, a float, an integer or a bool (a mask), ones
            if None. A row of weight 0 is masked: whatever it holds, NaN too, does not reach the loss or the gradient.
        denominators: (2,) or (2,K), d_0 and d_1; by default the number of labelled rows and the sum of r (of each
            student, where r is (K,...)). Given from outside they make several processes or accumulated
            micro-batches equal to one large batch. A denominator of 0 gives 0.
        student_entropy: whether means have a fourth row, the entropy of softmax(s_k/tau), weighed as the soft terms
            are; it takes one more pass over the students.
    Returns:
        loss: () float32 (float64 for float64 students), and means: (3,K), detached: the terms' means, unweighted.
    Raises:
        As `distill_terms`. Only `student` is differentiable: anything else that requires grad raises.

    Error: as `distill_terms`; the gradient is rounded once, to the student's dtype. A float16 student that wants a
    gradient is taken in float32: made before a GradScaler's factor is known, one in float16 would underflow.
    """
    K, leading = check_logits(student, teacher, label, temperature)
    code, beta = check_divergence(divergence, beta, temperature, teacher)
    one = student if isinstance(student, Tensor) else None
    first = student[0] if one is None else one
    weights = as_tensor("weights", weights, first)
    denominators = None if denominators is None else as_tensor("denominators", denominators, first)
    check_weights(first, K, leading, weights, row_weight, denominators)
    wants = any(s.requires_grad for s in student) if one is None else one.requires_grad
    need_grad = wants and torch.is_grad_enabled()
    if need_grad and first.dtype == torch.float16:
        student = [s.float() for s in student] if one is None else one.float()
    soft = weights, row_weight, denominators
    if isinstance(teacher, TopK):
        options = (label, *soft, temperature, code, beta, need_grad)
        loss, means, _ = _or_under_func(topk_loss, None, _students(student, leading), *_topk(teacher), *options)
    else:
        if isinstance(student, Tensor) and not first.is_cpu:
            soft = weights, eager.flat_weight(row_weight, K, leading), denominators
            student, teacher, label, _, _ = eager.flat(student, teacher, label)
            leading = (math.prod(leading),)
        name = "distill_loss_each" if one is None else "distill_loss"
        loss, means = _call(name, student, teacher, label, *soft, temperature, code, beta, need_grad)[:2]
    if student_entropy:
        means = torch.cat([means, _entropies(student, K, leading, *soft[1:], temperature)[None]])
    return loss, means


def _topk(teacher: TopK) -> tuple[Tensor, Tensor, int]:
    return teacher.ids, teacher.logprobs, TAILS[teacher.tail]


def _students(student: Logits, leading: tuple[int, ...]) -> Logits:
    """One tensor (K,...,C) of all, or a list of K."""
    return [student] if isinstance(student, Tensor) and student.dim() - 1 == len(leading) else student


def _call(name: str, *arguments: Any) -> Any:
    if torch.compiler.is_compiling():
        return getattr(torch.ops.nanonet, name)(*arguments)
    return _or_under_func(EAGER[name], FUNC.get(name), *arguments)


def _or_under_func(function: Callable[..., Any], under_func: Callable[..., Any] | None, *arguments: Any) -> Any:
    """The second serves under torch.func's transforms, which the first refuses."""
    try:
        return function(*arguments)
    except RuntimeError as error:
        if "setup_context" not in str(error):
            raise
    if under_func is None:
        raise RuntimeError("a list of students, a TopK and hidden states do not work under torch.func")
    return under_func(*arguments)


@torch.no_grad()
def _entropies(student, K, leading, row_weight, denominators, temperature):
    """The mean entropy of softmax(s_k/tau), (K,): the cross-entropy of each student and itself."""
    rows = [student] if isinstance(student, Tensor) and student.dim() - 1 == len(leading) else student
    entropies = []
    for k in range(K):
        one = rows[k].detach()
        _, means = distill_loss(
            one,
            one,
            weights=(0.0, 1.0, 0.0),
            row_weight=row_weight if row_weight is None or row_weight.shape == leading else row_weight[k],
            denominators=denominators if denominators is None or denominators.dim() == 1 else denominators[:, k],
            temperature=temperature,
            divergence="cross_entropy",
        )
        entropies.append(means[1, 0])
    return torch.stack(entropies) / temperature**2
