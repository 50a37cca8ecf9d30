"""What the ops of the loss accept: the first argument that is wrong is named, with what was expected and what came."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from nanonet.ops.topk import TAILS, TopK
from nanonet.reference import DEFAULT_BETA, DIVERGENCES

WIDE = (torch.float32, torch.float64)
FLOATS = (*WIDE, torch.bfloat16, torch.float16)
LABELS = (torch.int64, torch.int32)
ROW_WEIGHTS = (*FLOATS, torch.bool, torch.uint8, torch.int8, torch.int16, *LABELS)

Logits = Tensor | Sequence[Tensor]


def check_logits(
    student: Logits, teacher: Tensor | TopK | None, label: Tensor | None, temperature: float
) -> tuple[int, tuple[int, ...]]:
    """K and the leading shape "..." of student: (K,...,C), (...,C) like the teacher, or a sequence of K of these."""
    if one := isinstance(student, Tensor) and student.dtype in FLOATS:
        first = student
    else:
        first = _first(student)
    shape, stacked = tuple(first.shape), False  # slices of a torch.Size cost more
    if one:
        like = teacher.ids if isinstance(teacher, TopK) else teacher
        dims = like.dim() - 1 if isinstance(like, Tensor) else label.dim() if isinstance(label, Tensor) else None
        stacked = dims is None or len(shape) - 1 != dims
        if dims is None and len(shape) < 3:
            raise ValueError(f"student: expected (K,N,C), or (K,...,C), without a teacher and labels, got {shape}")
        if stacked and dims is not None and len(shape) - 2 != dims:
            other = "teacher's" if teacher is not None else "label's"
            raise ValueError(f"student: expected (K,N,C), or {other} leading shape of {dims} dimensions, got {shape}")
    K = shape[0] if stacked else 1 if one else len(student)
    if len(shape) < 1 + stacked or K < 1 or shape[-1] < 1:
        raise ValueError(f"student: expected (K,N,C) with K >= 1 and C >= 1, got {shape}")
    row = shape[1:] if stacked else shape
    if isinstance(teacher, TopK):
        _expect_topk(teacher, row, first)
    elif teacher is not None:
        expect("teacher", teacher, FLOATS, (row,), first)
    if label is not None:
        expect("label", label, LABELS, (row[:-1],), first)
    if isinstance(temperature, Tensor) and temperature.requires_grad:
        raise ValueError("temperature: only student is differentiable; pass float(temperature)")
    if not 0 < temperature < float("inf"):
        raise ValueError(f"temperature: expected a number above 0, got {temperature}")
    return K, row[:-1]


def _expect_topk(teacher: TopK, row: tuple[int, ...], student: Tensor) -> None:
    ids, logprobs, tail = teacher
    if not isinstance(tail, bool | str) or tail not in TAILS:
        raise ValueError(f"tail: expected True, False or 'renormalise', got {tail!r}")
    k = ids.shape[-1] if isinstance(ids, Tensor) and ids.dim() else 0
    expect("ids", ids, LABELS, ((*row[:-1], k),), student)
    expect("logprobs", logprobs, FLOATS, ((*row[:-1], k),), student)
    if not 1 <= k <= row[-1]:
        raise ValueError(f"ids: expected from 1 to C = {row[-1]} classes in a row, got {k}")


def check_weights(
    student: Tensor,
    K: int,
    leading: tuple[int, ...],
    weights: Tensor,
    row_weight: Tensor | None,
    denominators: Tensor | None,
) -> None:
    expect("weights", weights, WIDE, ((3,),), student)
    if row_weight is not None:
        expect("row_weight", row_weight, ROW_WEIGHTS, (leading, (K, *leading)), student)
    if denominators is not None:
        expect("denominators", denominators, WIDE, ((2,), (2, K)), student)


# a mixture that is all p or all q: (divergence, beta) -> the divergence that it is then
_LIMITS: dict[tuple[str, float], str] = {
    ("js", 0): "kl",  # after division by beta, as others define it
    ("js", 1): "reverse_kl",
    ("symmetric_kl", 0): "reverse_kl",
    ("symmetric_kl", 1): "kl",
    ("skew_kl", 0): "kl",
    ("skew_reverse_kl", 0): "reverse_kl",
}


def check_divergence(
    divergence: str, beta: float | None, temperature: float, teacher: object = None
) -> tuple[int, float]:
    """The divergence's number and its beta, 0 where it has none."""
    if divergence == "mse" and isinstance(teacher, TopK):
        raise ValueError("divergence: mse compares logits, which a TopK teacher has not")
    if divergence not in DIVERGENCES:
        raise ValueError(f"divergence: expected one of {', '.join(DIVERGENCES)}, got {divergence!r}")
    if divergence == "mse" and temperature != 1:
        raise ValueError(f"temperature: mse compares raw logits, so it must be 1, got {temperature}")
    if divergence not in DEFAULT_BETA:
        if beta is not None:
            raise ValueError(f"beta: {divergence} has none (of {', '.join(DEFAULT_BETA)} it is the weight), got {beta}")
        return DIVERGENCES[divergence], 0.0
    beta = DEFAULT_BETA[divergence] if beta is None else float(beta)
    if limit := _LIMITS.get((divergence, beta)):
        return DIVERGENCES[limit], 0.0
    if not 0 < beta < 1:
        raise ValueError(f"beta: expected a number from 0 to 1 for {divergence}, got {beta}")
    return DIVERGENCES[divergence], beta


def as_tensor(name: str, value: Tensor | Sequence[float], student: Tensor) -> Tensor:
    """Numbers of the call as a tensor on student's device."""
    if isinstance(value, Tensor):
        return value
    try:
        numbers = tuple(map(float, value))
    except (TypeError, ValueError):
        raise TypeError(f"{name}: expected a tensor or a sequence of floats, got {value!r}") from None
    dtype = torch.float64 if student.dtype == torch.float64 else torch.float32
    # a fake tensor must not stay for others
    if torch.compiler.is_compiling() or type(student) is not Tensor:
        return torch.tensor(numbers, dtype=dtype, device=student.device)
    return _constant(numbers, dtype, student.device)


@lru_cache(maxsize=64)
def _constant(numbers: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.tensor(numbers, dtype=dtype, device=device)


def _first(student: Logits) -> Tensor:
    """The first of several students, which must all be alike."""
    if isinstance(student, Tensor):
        raise TypeError(f"student: expected a floating tensor (K,N,C), got {kind_of(student)}")
    if not isinstance(student, (list, tuple)) or not student:
        raise TypeError(f"student: expected a tensor, or a list of one tensor or more, got {kind_of(student)}")
    for k, one in enumerate(student):
        if not isinstance(one, Tensor) or one.dtype not in FLOATS:
            raise TypeError(f"student[{k}]: expected a floating tensor (...,C), got {kind_of(one)}")
        if one.shape != student[0].shape or one.dtype != student[0].dtype or one.device != student[0].device:
            raise ValueError(
                f"student[{k}]: expected {tuple(student[0].shape)}, {student[0].dtype} on {student[0].device} like"
                f" student[0], got {tuple(one.shape)}, {one.dtype} on {one.device}"
            )
    return student[0]


def kind_of(value: object) -> str:
    return f"{value.dtype}" if isinstance(value, Tensor) else type(value).__name__


def expect(name: str, value: Tensor, dtypes: tuple, shapes: tuple, student: Tensor) -> None:
    if not isinstance(value, Tensor) or value.dtype not in dtypes:
        raise TypeError(f"{name}: expected a tensor of {', '.join(map(str, dtypes))}, got {kind_of(value)}")
    if value.shape not in shapes:
        wanted = " or ".join(map(str, shapes))
        wider = name == "teacher" and value.dim() == len(shapes[0]) and value.shape[-1] > shapes[0][-1]
        hint = f": slice it, teacher[..., :{shapes[0][-1]}]" if wider else ""
        raise ValueError(
            f"{name}: expected shape {wanted} for student {tuple(student.shape)}, got {tuple(value.shape)}{hint}"
        )
    if value.device != student.device:
        raise ValueError(f"{name}: expected on {student.device} like student, got {value.device}")
    if value.requires_grad:
        raise ValueError(f"{name}: only student is differentiable; pass {name}.detach()")
