"""The loss of long rows, in tiles: two sweeps over a row, three for a divergence whose gradient needs sum g.

The last sweep runs backwards, so that it starts on what the L2 still holds. That is more with fewer rows in flight,
hence a persistent grid with few programs of many warps. With `weights` one launch makes the loss, its means and its
gradient; without, the terms and the row statistics.

For kl and cross_entropy the last sweep has a fast form without guards, for rows with finite statistics and a label in
range. A class at -inf makes its sums nan; then the guarded sweep goes over the row again.
"""

import triton
import triton.language as tl

from nanonet.kernels.divergences import CROSS_ENTROPY, KL, LOG2_E, MSE, slope, teacher_value
from nanonet.kernels.reduction import (
    UNLABELLED,
    add_row,
    cross_entropy,
    denominators_of,
    finish,
    label_of,
    shares_of,
    store_stats,
    store_terms,
    upstream_of,
)
from nanonet.kernels.rowwise import (
    LN2,
    cohort,
    fast_classes,
    gradient,
    load,
    load_logits,
    log_softmax,
    logits_view,
    peers_value,
    repeat,
    statistics,
)


@triton.jit
def slope_sums_of(
    view, stats, tile, zeros, C, scale, mix, K: tl.constexpr, DIVERGENCE: tl.constexpr, TILE: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """Second sweep, where the gradient needs it: sum g of every student."""
    lanes = repeat(zeros, K)
    for start in tl.range(0, C, TILE, num_stages=STAGES):
        c = start + tile
        ls, qs = log_softmax(load_logits(view, c, c < C, K + 1), stats, scale, K + 1)
        new = ()
        for k in tl.static_range(K):
            g = slope(ls[K], ls[k], qs[K], qs[k], mix, DIVERGENCE)
            new = new + (lanes[k] + tl.sum(tl.where(c < C, g, 0.0), 1),)
        lanes = new
    sums = ()
    for k in tl.static_range(K):
        sums = sums + (tl.sum(lanes[k], 0),)
    return sums


@triton.jit
def guarded_sweep(
    view, out, stats, slope_sums, y, upstream, tile, zeros, C, scale, mix, K: tl.constexpr, COUNT: tl.constexpr,
    HAS_LABEL: tl.constexpr, HAS_GRADIENT: tl.constexpr, UNIT: tl.constexpr, DIVERGENCE: tl.constexpr,
    TILE: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Last sweep, backwards: teacher and peers of every student, and the gradient."""
    lanes = (repeat(zeros, K), repeat(zeros, K))
    tiles = tl.cdiv(C, TILE)
    for i in tl.range(0, tiles, num_stages=STAGES):
        c = (tiles - 1 - i) * TILE + tile
        inside = c < C
        logits = load_logits(view, c, inside, COUNT)
        ls, qs = log_softmax(logits, stats, scale, COUNT)
        shared = cohort(logits, ls, qs, K, DIVERGENCE)
        teacher = ()
        peers = ()
        for k in tl.static_range(K):
            of_teacher, of_peers = lanes[0][k], lanes[1][k]
            if COUNT > K:
                each = teacher_value(logits[k], logits[K], ls[K], ls[k], qs[K], qs[k], mix, DIVERGENCE)
                of_teacher += tl.sum(tl.where(inside, each, 0.0), 1)
            if K > 1:
                each = peers_value(logits[k], ls[k], qs[k], shared, K, DIVERGENCE)
                of_peers += tl.sum(tl.where(inside, each, 0.0), 1)
            teacher = teacher + (of_teacher,)
            peers = peers + (of_peers,)
            if HAS_GRADIENT:
                ds = gradient(
                    k, logits, stats, ls, qs, shared, c == y, slope_sums[k], upstream[k], mix,
                    K, COUNT, HAS_LABEL, UNIT, DIVERGENCE,
                )  # fmt: skip
                tl.store(out[k] + c, ds.to(out[k].dtype.element_ty), mask=inside)
        lanes = (teacher, peers)
    teacher = ()
    peers = ()
    for k in tl.static_range(K):
        teacher = teacher + (tl.sum(lanes[0][k], 0),)
        peers = peers + (tl.sum(lanes[1][k], 0),)
    return teacher, peers


@triton.jit
def fast_tile(
    view, out, c, inside, stats, scale, upstream, lanes, K: tl.constexpr, COUNT: tl.constexpr, LSE_1: tl.constexpr,
    HAS_GRADIENT: tl.constexpr, DIVERGENCE: tl.constexpr,
):  # fmt: skip
    """One tile: stores its gradient and returns the lanes' sums with it: of p (l_p - l_k), or of -p l_k for
    cross_entropy; of -Q (l_k - centre); of each q; of sum_j q_j (l_j - centre). inside None: no mask."""
    logits = ()
    for r in tl.static_range(COUNT):
        # outside the row a logit of probability 0, but finite
        lowest = stats[0][r] - tl.maximum(300 / scale, tl.abs(stats[0][r]))
        logits = logits + (load(view[r] + c, inside, lowest),)
    ls, qs, Q, ds = fast_classes(logits, stats, scale, upstream, K, COUNT, LSE_1)
    centre = ls[0]
    for k in tl.static_range(1, K):
        centre = tl.maximum(centre, ls[k])
    teacher = ()
    peers = ()
    masses = ()
    A = lanes[3]
    for r in tl.static_range(COUNT):
        masses = masses + (lanes[2][r] + tl.sum(qs[r], 1),)
    for k in tl.static_range(K):
        of_teacher, of_peers = lanes[0][k], lanes[1][k]
        if COUNT > K:
            of_teacher += tl.sum(qs[K] * (ls[K] - ls[k] if DIVERGENCE == KL else -ls[k]), 1)
        if K > 1:
            apart = ls[k] - centre
            A += tl.sum(qs[k] * apart, 1)
            of_peers -= tl.sum(Q * apart, 1)
        teacher = teacher + (of_teacher,)
        peers = peers + (of_peers,)
        if HAS_GRADIENT:
            ds_k = ds[k].to(out[k].dtype.element_ty)
            if inside is None:
                tl.store(out[k] + c, ds_k)
            else:
                tl.store(out[k] + c, ds_k, mask=inside)
    return teacher, peers, masses, A


@triton.jit
def fast_sweep(
    view, out, stats, y, upstream, tile, zeros, C, scale, K: tl.constexpr, COUNT: tl.constexpr, LSE_1: tl.constexpr,
    HAS_LABEL: tl.constexpr, HAS_GRADIENT: tl.constexpr, DIVERGENCE: tl.constexpr, TILE: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """Last sweep, backwards, without guards: teacher and peers of every student, and the gradient."""
    lanes = (repeat(zeros, K), repeat(zeros, K), repeat(zeros, COUNT), zeros)
    full = C // TILE
    for i in tl.range(full, tl.cdiv(C, TILE), num_stages=1):
        c = i * TILE + tile
        lanes = fast_tile(view, out, c, c < C, stats, scale, upstream, lanes, K, COUNT, LSE_1, HAS_GRADIENT, DIVERGENCE)
    for i in tl.range(0, full, num_stages=STAGES):
        c = (full - 1 - i) * TILE + tile
        lanes = fast_tile(view, out, c, None, stats, scale, upstream, lanes, K, COUNT, LSE_1, HAS_GRADIENT, DIVERGENCE)
    if HAS_GRADIENT and HAS_LABEL:
        if y >= 0:  # store the label's class again, with its one-hot
            logits = load_logits(view, y, None, COUNT)
            ds = fast_classes(logits, stats, scale, upstream, K, COUNT, LSE_1)[3]
            tl.debug_barrier()  # after the store of this class by another thread
            for k in tl.static_range(K):
                tl.store(out[k] + y, (ds[k] - upstream[k][0]).to(out[k].dtype.element_ty))

    # the sums of q_k - p and q_k - q_j, as in divergences.value
    masses = ()
    total = 0.0
    for r in tl.static_range(COUNT):
        masses = masses + (tl.sum(lanes[2][r], 0),)
    for k in tl.static_range(K):
        total += masses[k]
    A = tl.sum(lanes[3], 0)
    teacher = ()
    peers = ()
    for k in tl.static_range(K):
        apart = masses[k] - masses[K] if COUNT > K and DIVERGENCE == KL else 0.0
        teacher = teacher + (tl.sum(lanes[0][k], 0) * LN2 + apart,)
        peers = peers + ((tl.sum(lanes[1][k], 0) + A) * LN2 + (K * masses[k] - total),)
    return teacher, peers


@triton.jit
def distill_tiles_kernel(
    student,  # as in distill_rows_kernel
    teacher,
    label,
    weights,
    row_weight,
    denominators,
    terms,
    stats,
    loss,
    means,
    dstudent,
    partials,
    counter,
    N,
    C,
    stride_k,
    stride_n,
    stride_t,
    stride_rk,
    stride_rn,
    stride_di,
    stride_dk,
    inv_tau,
    term_scale,
    slope_scale,
    mix,
    K: tl.constexpr,
    DIVERGENCE: tl.constexpr,
    UNIT: tl.constexpr,
    PER_STUDENT: tl.constexpr,
    SLOTS: tl.constexpr,
    LANES: tl.constexpr,  # a tile is LANES x WIDTH classes; each lane has its own statistics
    WIDTH: tl.constexpr,  # up to 16 bytes of student: one vector load per thread, summed within the thread
    STAGES: tl.constexpr,
):
    HAS_LABEL: tl.constexpr = label is not None
    HAS_GRADIENT: tl.constexpr = dstudent is not None
    COUNT: tl.constexpr = K + 1 if teacher is not None else K
    TILE: tl.constexpr = LANES * WIDTH
    LSE_1: tl.constexpr = not UNIT and (HAS_LABEL or weights is None)
    FAST: tl.constexpr = DIVERGENCE == KL or DIVERGENCE == CROSS_ENTROPY
    GUARDED_WIDTH: tl.constexpr = max(WIDTH // 4, 1) if FAST else WIDTH
    lane = tl.arange(0, LANES)[:, None]
    tile = lane * WIDTH + tl.arange(0, WIDTH)[None, :]
    guarded_tile = lane * GUARDED_WIDTH + tl.arange(0, GUARDED_WIDTH)[None, :]
    zeros = tl.zeros((LANES,), tl.float32)
    scale = inv_tau * LOG2_E
    slot = tl.arange(0, SLOTS)
    sums = tl.zeros((SLOTS,), tl.float32)
    if weights is not None:
        totals = denominators_of(
            label, row_weight, denominators, N, stride_rk, stride_rn, stride_di, stride_dk, K, PER_STUDENT, 1024
        )

    block = tl.program_id(0)
    while block < N:
        n = block.to(tl.int64)
        present = n < N
        view = logits_view(student, teacher, n, stride_k, stride_n, stride_t, K)
        row = statistics(view, tile, zeros, C, scale, COUNT, LSE_1, TILE, STAGES)
        slope_sums = repeat(tl.full((), 0.0, tl.float32), K)
        if COUNT > K and not FAST and DIVERGENCE != MSE:
            slope_sums = slope_sums_of(view, row, tile, zeros, C, scale, mix, K, DIVERGENCE, TILE, STAGES)
        y, labelled, valid = label_of(label, n, present, C)
        upstream = repeat((0.0, 0.0, 0.0), K)
        out = ()
        if weights is not None:
            shares = shares_of(
                row_weight, n, present, labelled, totals, stride_rk, stride_rn, K,
                not PER_STUDENT and denominators is None,
            )  # fmt: skip
            if HAS_GRADIENT:
                upstream = upstream_of(weights, shares, valid, slope_scale, K)
                out = logits_view(dstudent, None, n, tl.cast(N, tl.int64) * C, C, 0, K)

        teacher_sums = slope_sums
        peers_sums = slope_sums
        guarded = present
        if FAST:
            finite = valid | (y == UNLABELLED)
            for r in tl.static_range(COUNT):
                finite = finite & (row[0][r] - row[0][r] == 0) & (row[1][r] - row[1][r] == 0)
            if finite:
                teacher_sums, peers_sums = fast_sweep(
                    view, out, row, y, upstream, tile, zeros, C, scale, K, COUNT, LSE_1 and HAS_LABEL,
                    HAS_LABEL, HAS_GRADIENT, DIVERGENCE, TILE, STAGES,
                )  # fmt: skip
                total = 0.0
                for k in tl.static_range(K):
                    total += teacher_sums[k] + peers_sums[k]
                guarded = total - total != 0
        if guarded:  # its stores come after those of the fast sweep: the reductions in between are barriers
            teacher_sums, peers_sums = guarded_sweep(
                view, out, row, slope_sums, y, upstream, guarded_tile, zeros, C, scale, mix, K, COUNT,
                HAS_LABEL, HAS_GRADIENT, UNIT, DIVERGENCE, LANES * GUARDED_WIDTH, 1 if FAST else STAGES,
            )  # fmt: skip

        values = ()
        for k in tl.static_range(K):
            ce = tl.full((), 0.0, tl.float32)
            if HAS_LABEL:
                ce = cross_entropy(view[k], y, labelled, valid, row[0][k], row[2][k])
            peers = peers_sums[k] * (term_scale / (K - 1 if K > 1 else 1))
            values = values + ((ce, teacher_sums[k] * term_scale, peers),)
        if weights is None:
            store_terms(terms, n, present, values, N, K)
            store_stats(stats, n, present, row, slope_sums, N, K, COUNT)
        else:
            sums = add_row(sums, slot, shares, values, K)
        block += tl.num_programs(0)

    if weights is not None:
        finish(sums, partials, counter, weights, loss, means, K, SLOTS, 128)
