"""The distillation loss of a cohort: launchers for CUDA tensors, and for CPU tensors under Triton's interpreter.

The forward has two kernels: distill_rows.py if the rows fit in registers, else distill_tiles.py. The backward of the
terms is elementwise, given the row statistics. No launcher waits for the device. float64 is left to the reference.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from nanonet.kernels.distill_rows import distill_rows_kernel
from nanonet.kernels.distill_tiles import distill_tiles_kernel
from nanonet.kernels.divergences import LOG2_E, check_divergence, has_mixture, has_slope_sum, mix_of
from nanonet.kernels.launch import cdiv, counter, multiprocessors, next_power_of_2
from nanonet.kernels.reduction import label_of
from nanonet.kernels.rowwise import cohort, gradient, load_logits, log_softmax, logits_view, repeat
from nanonet.reference import MSE, UNLABELLED

# Sizes, not tuned on a GPU yet: they are what compiles without spills.
PER_THREAD = 16  # floats of K+1 rows per thread in distill_rows_kernel; l, q and pointers come on top
MAX_WARPS = 8
ROWS_LIMIT = PER_THREAD * 32 * MAX_WARPS  # floats of K+1 rows per program
PER_THREAD_TILE = {"two sweeps": 40, "three sweeps": 24, "K > 4": 12}  # floats per thread in tiles
RECOUNT_LIMIT = 16384  # rows above which torch sums the denominators once, instead of every program
L2_BYTES = 32 << 20  # limit of the rows in flight, so that the next sweep finds them in the L2
TILE_STAGES = 3


@triton.jit
def distill_terms_bwd_kernel(
    dterms,  # (3,K,N)
    student,  # (K,N,C), rows contiguous
    teacher,  # (N,C) or None
    label,  # (N,) or None
    stats,  # (K+1,N,4)
    dstudent,  # (K,N,C)
    N,
    C,
    stride_k,
    stride_n,
    stride_t,
    inv_tau,
    slope_scale,
    mix,  # divergences.mix_of(beta)
    K: tl.constexpr,
    DIVERGENCE: tl.constexpr,
    UNIT: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    COUNT: tl.constexpr = K + 1 if teacher is not None else K
    tiles = tl.cdiv(C, BLOCK_C)
    block = tl.program_id(0) // tiles
    c = (tl.program_id(0) % tiles) * BLOCK_C + tl.arange(0, BLOCK_C)[None, :]
    n = block.to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N).to(tl.int64)[:, None]
    present = n < N
    inside = present & (c < C)

    view = logits_view(student, teacher, n, stride_k, stride_n, stride_t, K)
    logits = load_logits(view, c, inside, COUNT)
    maxima = ()
    lse_tau = ()
    for r in tl.static_range(COUNT):
        at = stats + (tl.full((), r, tl.int64) * N + n) * 4
        maxima = maxima + (tl.load(at, mask=present, other=0.0),)
        lse_tau = lse_tau + (tl.load(at + 1, mask=present, other=0.0) * LOG2_E,)
    y, labelled, valid = label_of(label, n, present, C)

    ls, qs = log_softmax(logits, (maxima, lse_tau, None), inv_tau * LOG2_E, COUNT)
    shared = cohort(logits, ls, qs, K, DIVERGENCE)
    out = logits_view(dstudent, None, n, tl.cast(N, tl.int64) * C, C, 0, K)
    for k in tl.static_range(K):
        at = tl.full((), k, tl.int64) * N + n
        one = tl.full((), K, tl.int64) * N
        lse_1 = tl.load(stats + at * 4 + 2, mask=present, other=0.0) * LOG2_E
        slope_sum = tl.load(stats + at * 4 + 3, mask=present, other=0.0)
        a_ce = tl.where(labelled, tl.load(dterms + at, mask=present, other=0.0), 0.0)
        a_teacher = tl.load(dterms + one + at, mask=present, other=0.0) * slope_scale
        a_peers = tl.load(dterms + 2 * one + at, mask=present, other=0.0) * (slope_scale / (K - 1 if K > 1 else 1))
        ds = gradient(
            k, logits, (maxima, lse_tau, repeat(lse_1, K)), ls, qs, shared, c == y, slope_sum,
            (tl.where((a_ce == 0) | valid, a_ce, float("nan")), a_teacher, a_peers),
            mix, K, COUNT, label is not None, UNIT, DIVERGENCE,
        )  # fmt: skip
        tl.store(out[k] + c, ds.to(dstudent.dtype.element_ty), mask=inside)


@triton.jit
def distill_scale_kernel(
    dstudent,  # (size,), scaled in place
    factor,  # ()
    size,
    BLOCK: tl.constexpr,
):
    value = tl.load(factor).to(tl.float32)
    if value != 1.0:
        block = tl.program_id(0).to(tl.int64)
        while block * BLOCK < size:
            at = block * BLOCK + tl.arange(0, BLOCK)
            x = tl.load(dstudent + at, mask=at < size, other=0.0)
            tl.store(dstudent + at, (x.to(tl.float32) * value).to(x.dtype), mask=at < size)
            block += tl.num_programs(0)


def distill_terms_fwd(
    student: Tensor, teacher: Tensor | None, label: Tensor | None, temperature: float, divergence: int, beta: float
) -> tuple[Tensor, Tensor]:
    """terms (3,K,N) and stats (K+1,N,4), float32."""
    check_divergence(divergence)
    K, N, _ = student.shape
    terms = torch.empty(3, K, N, dtype=torch.float32, device=student.device)
    stats = torch.empty(K + 1, N, 4, dtype=torch.float32, device=student.device)
    if N:
        outputs = dict(terms=terms, stats=stats, loss=None, means=None, dstudent=None, partials=None, counter=None)
        _forward(student, teacher, label, None, None, None, temperature, divergence, beta, outputs)
    return terms, stats


def distill_loss_fwd(
    student: Tensor,
    teacher: Tensor | None,
    label: Tensor | None,
    weights: Tensor,
    row_weight: Tensor | None,
    denominators: Tensor | None,
    temperature: float,
    divergence: int,
    beta: float,
    need_grad: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """loss (), means (3,K), both float32, and dstudent (K,N,C) or (0,)."""
    check_divergence(divergence)
    K, N, _ = student.shape
    loss = torch.empty((), dtype=torch.float32, device=student.device)
    means = torch.empty(3, K, dtype=torch.float32, device=student.device)
    dstudent = torch.empty_like(student, memory_format=torch.contiguous_format) if need_grad else student.new_empty(0)
    if denominators is None and N > RECOUNT_LIMIT:
        denominators = _denominators(student, label, row_weight)
    outputs = dict(terms=None, stats=None, loss=loss, means=means, dstudent=dstudent if need_grad else None)
    _forward(student, teacher, label, weights, row_weight, denominators, temperature, divergence, beta, outputs)
    return loss, means, dstudent


def distill_terms_bwd(
    dterms: Tensor,
    student: Tensor,
    teacher: Tensor | None,
    label: Tensor | None,
    stats: Tensor,
    temperature: float,
    divergence: int,
    beta: float,
) -> Tensor:
    """dstudent (K,N,C) for upstream gradients dterms (3,K,N)."""
    check_divergence(divergence)
    K, N, C = student.shape
    student, teacher = dense(student), None if teacher is None else dense(teacher)
    dstudent = torch.empty_like(student, memory_format=torch.contiguous_format)
    BLOCK_C = min(next_power_of_2(C), 1024)
    BLOCK_N = min(1024 // BLOCK_C, next_power_of_2(max(N, 1)))
    if dstudent.numel():
        distill_terms_bwd_kernel[(cdiv(N, BLOCK_N) * cdiv(C, BLOCK_C),)](
            dterms.contiguous(),
            student,
            teacher,
            None if label is None else label.contiguous(),
            stats.contiguous(),
            dstudent,
            N,
            C,
            student.stride(0),
            student.stride(1),
            0 if teacher is None else teacher.stride(0),
            1 / temperature,
            2 / C if divergence == MSE else temperature,
            mix_of(beta),
            K=K,
            DIVERGENCE=divergence,
            UNIT=temperature == 1,
            BLOCK_N=BLOCK_N,
            BLOCK_C=BLOCK_C,
            num_warps=4,
        )
    return dstudent


def distill_scale(dstudent: Tensor, dloss: Tensor) -> None:
    """dstudent *= dloss in place. dloss () is read on the device; the kernel returns at once if it is 1."""
    if not dstudent.is_contiguous():
        dstudent.mul_(dloss)
    elif dstudent.numel():
        size, BLOCK = dstudent.numel(), 4096
        programs = min(cdiv(size, BLOCK), 8 * multiprocessors(dstudent.device))
        distill_scale_kernel[(programs,)](dstudent, dloss, size, BLOCK=BLOCK, num_warps=8)


def _forward(
    student, teacher, label, weights, row_weight, denominators, temperature, divergence, beta, outputs
) -> None:
    K, N, C = student.shape
    device = student.device
    student, teacher = dense(student), None if teacher is None else dense(teacher)
    denominators = None if denominators is None else denominators.contiguous()
    kernel, programs, blocks = plan(K, N, C, divergence, student.element_size(), multiprocessors(device))
    slots = next_power_of_2(3 * K)
    # else ptxas limits itself to 128 registers and spills a few sums: without a gradient, and with a log mixture
    if weights is None and kernel is distill_tiles_kernel:
        blocks["maxnreg"] = 255
        if (K + 1) * blocks["WIDTH"] == PER_THREAD_TILE["two sweeps"]:
            blocks["WIDTH"] = max(1, blocks["WIDTH"] // 2)
    elif has_mixture(divergence) and kernel is distill_rows_kernel:
        blocks["maxnreg"] = 168
    if weights is not None:
        outputs["partials"] = torch.empty(programs, slots, dtype=torch.float32, device=device)
        outputs["counter"] = counter(device)
    kernel[(programs,)](
        student,
        teacher,
        None if label is None else label.contiguous(),
        None if weights is None else weights.contiguous(),
        row_weight,
        denominators,
        **outputs,
        N=N,
        C=C,
        stride_k=student.stride(0),
        stride_n=student.stride(1),
        stride_t=0 if teacher is None else teacher.stride(0),
        stride_rk=0 if row_weight is None or row_weight.dim() == 1 else row_weight.stride(0),
        stride_rn=0 if row_weight is None else row_weight.stride(-1),
        stride_di=0 if denominators is None else denominators.stride(0),
        stride_dk=0 if denominators is None or denominators.dim() == 1 else 1,
        inv_tau=1 / temperature,
        term_scale=1 / C if divergence == MSE else temperature**2,
        slope_scale=2 / C if divergence == MSE else temperature,
        mix=mix_of(beta),
        K=K,
        DIVERGENCE=divergence,
        UNIT=temperature == 1,
        PER_STUDENT=row_weight is not None and row_weight.dim() == 2,
        SLOTS=slots,
        **blocks,
    )


def plan(K: int, N: int, C: int, divergence: int, itemsize: int, sms: int) -> tuple[Any, int, dict[str, int]]:
    """Kernel, number of programs, and block sizes for a shape."""
    BLOCK_C = next_power_of_2(C)
    if (K + 1) * BLOCK_C <= ROWS_LIMIT:
        warps, row = 4, (K + 1) * BLOCK_C
        while row > 32 * warps * PER_THREAD:
            warps *= 2
        fit = max(1, 32 * warps * PER_THREAD // row)
        BLOCK_N = min(1 << (fit.bit_length() - 1), next_power_of_2(max(N, 1)), 128)
        programs = min(cdiv(N, BLOCK_N), 8 * sms)
        return distill_rows_kernel, max(programs, 1), dict(BLOCK_N=BLOCK_N, BLOCK_C=BLOCK_C, num_warps=warps)
    kind = "K > 4" if K > 4 else "three sweeps" if has_slope_sum(divergence) else "two sweeps"
    width, limit = 16 // itemsize, PER_THREAD_TILE[kind]
    while width > 1 and ((K + 1) * width > limit or C % width and width > 4):
        width //= 2
    in_flight = L2_BYTES // ((K + 1) * C * itemsize * sms)
    programs = min(N, sms * max(1, min(in_flight, 4)))
    blocks = dict(LANES=256, WIDTH=width, STAGES=TILE_STAGES, num_warps=8)
    return distill_tiles_kernel, max(programs, 1), blocks


def dense(x: Tensor) -> Tensor:
    """x with a dense last dimension. The kernels read any strides of the others in place."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _denominators(student: Tensor, label: Tensor | None, row_weight: Tensor | None) -> Tensor:
    """The number of labelled rows and the sum of r, (2,) or (2,K)."""
    K, N, _ = student.shape
    none = torch.zeros((), dtype=torch.float32, device=student.device)
    labelled = none if label is None else (label != UNLABELLED).sum().float()
    weighed = none + N if row_weight is None else row_weight.sum(-1, dtype=torch.float32)
    return torch.stack([labelled.expand_as(weighed), weighed])
