"""The loss in tests: every divergence with every beta, inputs, and the one bar of correctness."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from nanonet import distill_loss, distill_terms, reference
from nanonet.reference import DEFAULT_BETA, DIVERGENCES

BETAS = (0.01, 0.1, 0.5, 0.9)
# every divergence, each with the betas that it takes
CASES = [(name, beta) for name in DIVERGENCES for beta in (BETAS if name in DEFAULT_BETA else (None,))]
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
# beside twice torch's own error, in units of the largest value
ATOL = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 2e-6, torch.float16: 2e-6}


def options_of(divergence: str, beta: float | None, temperature: float = 1.0) -> dict[str, Any]:
    """Keyword arguments of the public ops; mse has no temperature."""
    return dict(temperature=1.0 if divergence == "mse" else temperature, divergence=divergence, beta=beta)


def codes_of(divergence: str, beta: float | None, temperature: float = 1.0) -> tuple[float, int, float]:
    """The same as the last arguments of the raw ops and of the reference."""
    tau = 1.0 if divergence == "mse" else temperature
    return tau, DIVERGENCES[divergence], beta if beta is not None else DEFAULT_BETA.get(divergence, 0.0)


def draw(
    K: int = 3, N: int = 5, C: int = 7, dtype: torch.dtype = torch.float64, seed: int = 0, spread: float = 3.0
) -> tuple[Tensor, Tensor, Tensor]:
    """student (K,N,C), teacher (N,C) and label (N,), every other row unlabelled."""
    g = torch.Generator().manual_seed(seed)
    student = (spread * torch.randn(K, N, C, generator=g, dtype=torch.float64)).to(dtype)
    teacher = (spread * torch.randn(N, C, generator=g, dtype=torch.float64)).to(dtype)
    label = torch.randint(0, C, (N,), generator=g)
    label[::2] = -100
    return student, teacher, label


def wide(*tensors: Tensor | None) -> list[Tensor | None]:
    return [t.double() if t is not None and t.is_floating_point() else t for t in tensors]


def assert_no_worse(got: Tensor, same_dtype: Tensor, truth: Tensor, atol: float | None = None) -> None:
    """err(kernel) <= 2 err(torch in the same dtype) + atol, both against float64; the same infinities and NaN."""
    atol = ATOL[got.dtype] if atol is None else atol
    got, same_dtype = got.double(), same_dtype.double()
    assert got.shape == truth.shape and torch.equal(got.isnan(), truth.isnan())
    if not got.numel():
        return
    finite = truth[truth.isfinite()]
    scale = max(1.0, finite.abs().max().item()) if finite.numel() else 1.0
    error = torch.where((got == truth) | truth.isnan(), 0, (got - truth).abs()).max().item()
    own = torch.where((same_dtype == truth) | truth.isnan(), 0, (same_dtype - truth).abs()).nan_to_num(0, 0, 0)
    allowed = 2 * own.max().item() + atol * scale
    assert error <= allowed, f"error {error:.3g} > {allowed:.3g}, of which atol {atol * scale:.3g}"


def terms_and_gradient(terms_of: Callable[..., Tensor], inputs: tuple, upstream: Tensor, *options: Any, **named: Any):
    """Terms, and the gradient of student for an upstream (3,K,N), by autograd."""
    student, *others = inputs
    student = student.detach().requires_grad_()
    terms = terms_of(student, *others, *options, **named)
    if terms.requires_grad:  # else no term depends on student
        terms.backward(upstream.to(terms.dtype))
    return terms.detach(), torch.zeros_like(student) if student.grad is None else student.grad


def loss_and_gradient(inputs: tuple, weights: Any, row_weight: Tensor | None = None, denominators: Any = None, **named):
    """The loss, its means and the gradient of student."""
    student, teacher, label = inputs
    student = student.detach().requires_grad_()
    loss, means = distill_loss(
        student, teacher, label, weights=weights, row_weight=row_weight, denominators=denominators, **named
    )
    loss.backward()
    return loss.detach(), means, student.grad


def check_terms(inputs: tuple, divergence: str, beta: float | None, temperature: float = 1.0, upstream=None) -> None:
    """distill_terms and its gradient, judged against autograd through the definition in float64."""
    K, N, _ = inputs[0].shape
    if upstream is None:
        upstream = torch.randn(3, K, N, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    codes = codes_of(divergence, beta, temperature)
    truth = terms_and_gradient(reference.distill_terms, tuple(wide(*inputs)), upstream, *codes)
    same = terms_and_gradient(reference.distill_terms, inputs, upstream, *codes)
    got = terms_and_gradient(distill_terms, inputs, upstream, **options_of(divergence, beta, temperature))
    assert got[0].dtype == same[0].dtype and got[1].dtype == inputs[0].dtype
    # tau^2 scales the rounding of the divergence, by chance none of torch's in a small example
    rounding = codes[0] ** 2 * torch.finfo(got[0].dtype).eps
    assert_no_worse(got[0], same[0], truth[0], max(ATOL[got[0].dtype], rounding))
    assert_no_worse(got[1], same[1], truth[1])


def check_raw(
    student: Tensor,
    teacher: Tensor | None,
    label: Tensor | None,
    temperature: float = 1.0,
    divergence: int = 0,
    beta: float = 0.5,
    row_weight: Tensor | None = None,
    denominators: Tensor | None = None,
    weights: tuple[float, float, float] = (0.7, 1.3, 0.5),
) -> None:
    """Both raw ops, forward and backward, with an upstream that is 0 in places, against the closed form in float64."""
    ops, options = torch.ops.nanonet, (temperature, divergence, beta)
    terms, stats = ops.distill_terms(student, teacher, label, *options)
    s, t, r, d = wide(student, teacher, row_weight, denominators)
    assert_no_worse(
        terms,
        reference.distill_terms(student, teacher, label, *options),
        reference.distill_terms(s, t, label, *options),
    )
    g = torch.Generator().manual_seed(9)
    upstream = torch.randn(terms.shape, generator=g, dtype=torch.float64).to(terms)
    upstream[:, :, 2::5] = 0
    got = ops.distill_terms_backward(upstream, student, teacher, label, stats, *options)
    assert got.dtype == student.dtype and got.is_contiguous()
    assert_no_worse(
        got,
        reference.row_gradient(upstream, student, teacher, label, *options),
        reference.row_gradient(upstream.double(), s, t, label, *options),
    )
    w = torch.tensor(weights, dtype=terms.dtype, device=student.device)
    got = ops.distill_loss(student, teacher, label, w, row_weight, denominators, *options, True)
    same = reference.distill_loss(student, teacher, label, w, row_weight, denominators, *options)
    truth = reference.distill_loss(s, t, label, w.double(), r, d, *options)
    for ours, torchs, exact in zip(got, same, truth, strict=True):
        assert_no_worse(ours, torchs, exact.double())
