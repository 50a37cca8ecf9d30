"""Views: each student sees its own variant of the same rows, so that the peers differ.

none         the rows unchanged
dropout      the network's own dropouts, at 0.1, for that student only (`set_views`)
cutoff       20% of a row's tokens are masked out of attention
shuffle      a row's tokens in another order: for a bidirectional encoder the same as shuffled positions
adversarial  a step of length 1 per token on the embeddings' output, in the direction that changes the student's
             logits most

The special tokens at a row's ends, those between the texts of a pair and the padding are never changed, and a token
stays in its text. Every choice is a hash of the seed, the row's
number and the column: it depends neither on the batch, nor on the padding, nor on how rows are spread over processes.
K students, B rows, L tokens, D features.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from nanonet.cohort.model import Cohort
from nanonet.config.train import VIEWS
from nanonet.errors import InputError
from nanonet.models.pairs import in_second_text, text_pair
from nanonet.reference import mix32

DROPOUT = 0.1
CUTOFF = 0.2
# length of an adversarial step per token, and of the trial step along whose end the gradient is taken
STEP, TRIAL = 1.0, 0.1


def parse_views(text: str, students: int) -> list[str]:
    """`cutoff,shuffle` -> one view per student, repeated as needed.

    Raises:
        InputError: a view that does not exist, or more views than students.
    """
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in VIEWS:
            raise InputError(f"--views {text!r}: there is no view {name!r}; choose from {', '.join(VIEWS)}")
    if len(names) > students:
        raise InputError(f"--views {text!r} has {len(names)} views for --students {students}: give at most {students}")
    return [names[k % len(names)] for k in range(students)]


def set_views(cohort: Cohort, views: Sequence[str]) -> None:
    """Once, before training: the dropout of the students whose view it is, no dropout for the others."""
    cohort.set_dropout([DROPOUT if view == "dropout" else 0.0 for view in views])


def view_batch(
    cohort: Cohort,
    views: Sequence[str],
    input_ids: Tensor,
    attention_mask: Tensor,
    seed: int,
    rows: Tensor | None = None,
) -> dict:
    """The arguments of `cohort.forward` for one training step, each student under its view.

    Args:
        input_ids, attention_mask: (B,L).
        seed: of every random choice; a new one each step.
        rows: (B,) int64 numbers that identify the rows, such as their index in the data set; 0..B-1 if None.
    Returns:
        input_ids, attention_mask: (B,L), or (K,B,L) where a view changes them; perturbation, if any is adversarial.
    """
    rows = torch.arange(len(input_ids), device=input_ids.device) if rows is None else rows
    ids, masks = [input_ids] * len(views), [attention_mask] * len(views)
    pair = text_pair(cohort.model.config)
    second, fixed = None, None
    if pair:
        second, fixed = in_second_text(input_ids, pair["separator"]), input_ids == pair["separator"]
    perturbation = {}
    for k, view in enumerate(views):
        if view == "shuffle":
            ids[k] = shuffle(input_ids, attention_mask, noise(seed, k, rows, input_ids.shape[1]), fixed, second)
        elif view == "cutoff":
            masks[k] = cutoff(attention_mask, noise(seed, k, rows, input_ids.shape[1]), fixed)
        elif view == "adversarial":
            perturbation[k] = adversarial(cohort, k, input_ids, attention_mask, seed, rows)
    arguments: dict = {
        "input_ids": torch.stack(ids) if "shuffle" in views else input_ids,
        "attention_mask": torch.stack(masks) if "cutoff" in views else attention_mask,
    }
    return {**arguments, "perturbation": perturbation} if perturbation else arguments


def noise(seed: int, k: int, rows: Tensor, columns: int) -> Tensor:
    """Uniform float64 in [0,1), (B, columns): a hash of the seed, the student, the row's number and the column."""
    key = mix32(mix32(mix32(seed) ^ (seed >> 32)) ^ k)
    row = mix32(mix32(rows) ^ key)
    return mix32(row[:, None] + torch.arange(columns, device=rows.device) * 0x9E3779B1).double() / 2**32


def ordinary(attention_mask: Tensor, fixed: Tensor | None = None) -> Tensor:
    """Mask (B,L) of the tokens that are neither padding nor a row's first or last, nor `fixed` (B,L)."""
    place = attention_mask.cumsum(1)
    free = (attention_mask == 1) & (place > 1) & (place < place[:, -1:])
    return free if fixed is None else free & ~fixed


def shuffle(
    input_ids: Tensor, attention_mask: Tensor, noise: Tensor, fixed: Tensor | None = None, second: Tensor | None = None
) -> Tensor:
    """The ordinary tokens of each row in the order of their noise; input_ids (B,L) -> (B,L).

    second: (B,L), the tokens of the second text of each pair, which stay behind those of the first
    """
    free, column = ordinary(attention_mask, fixed), torch.arange(input_ids.shape[1], device=input_ids.device)
    text = 0.0 if second is None else second.double()
    # the other tokens come last in both orders, each in its own column
    place = torch.where(free, text + column / len(column), 2 + column).argsort(1)
    source = torch.where(free, text + noise, 2.0 + column).argsort(1)
    return input_ids.scatter(1, place, input_ids.gather(1, source))


def cutoff(attention_mask: Tensor, noise: Tensor, fixed: Tensor | None = None) -> Tensor:
    """The mask (B,L) with a share of CUTOFF of each row's ordinary tokens set to 0: those of the least noise."""
    free = ordinary(attention_mask, fixed)
    rank = torch.where(free, noise, 2.0).argsort(1).argsort(1)
    dropped = (free.sum(1, keepdim=True) * CUTOFF).long()
    return attention_mask.masked_fill(rank < dropped, 0)


def adversarial(cohort: Cohort, k: int, input_ids: Tensor, attention_mask: Tensor, seed: int, rows: Tensor) -> Tensor:
    """A step (B,L,D) on the output of student k's embeddings, of length STEP per token, 0 on padding.

        g = d/dr KL(softmax(f(x)) || softmax(f(x + r)))  at r = TRIAL * random unit vectors;  STEP * g / |g|

    Two forwards and a backward of that student, in eval mode and float32; no gradient reaches the weights. The step is
    added after the embeddings' norm: word vectors have a length of about 1, so that it would replace them.
    Source: virtual adversarial training (Miyato et al. 2018, arXiv 1704.03976), one power iteration, as in DisCo.
    """
    B, L = input_ids.shape
    real = attention_mask[..., None]
    training = cohort.training
    widths: list[int] = []
    hook = cohort.embeddings().register_forward_hook(lambda module, given, output: widths.append(output.shape[-1]))
    cohort.eval()
    try:
        with torch.enable_grad(), torch.autocast(input_ids.device.type, enabled=False):
            with torch.no_grad():
                clean = cohort.run(k, k + 1, input_ids[None], attention_mask[None]).logits
            trial = noise(seed, k, rows, L * widths[0]).view(B, L, widths[0]).float() - 0.5
            trial = (TRIAL * F.normalize(trial, dim=-1) * real).requires_grad_()
            own = cohort.detached(k, k + 1)
            logits = cohort.run(k, k + 1, input_ids[None], attention_mask[None], {k: trial}, own).logits
            divergence = F.kl_div(logits.log_softmax(-1), clean.log_softmax(-1), reduction="sum", log_target=True)
            (slope,) = torch.autograd.grad(divergence, trial)
    finally:
        hook.remove()
        cohort.train(training)
    # divided by the largest first: squares of gradients of 1e-30 would underflow
    slope = slope / slope.abs().amax(-1, keepdim=True).clamp_min(torch.finfo(slope.dtype).tiny)
    return STEP * F.normalize(slope, dim=-1) * real
