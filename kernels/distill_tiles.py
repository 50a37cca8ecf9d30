"""The loss of long rows, in tiles: twice over a row, three times for reverse_kl and js, whose gradient needs an
expectation first.

The last sweep runs backwards, so that it starts on what the L2 still holds. The fewer rows are in flight the more that
is, hence a persistent grid with few programs of many warps. With `weights` it makes the loss, its means and its
gradient in one launch; without, the terms and row statistics.
"""

import triton
import triton.language as tl

from nanonet.kernels.distill_hot import hot_sweep
from nanonet.kernels.reduction import UNLABELLED, cross_entropy, finish, shares, store_row, store_stats, totals
from nanonet.kernels.rowwise import (
    INF,
    JS,
    KL,
    LN2,
    REVERSE_KL,
    cohort,
    gradient,
    load_rows,
    merge,
    natural,
    peers_of,
    running,
    running_sum,
    soften,
    surprise,
    teacher_of,
    weigh,
)


@triton.jit
def statistics(rows, maxima, soft_sums, plain_sums, inv_tau, COUNT: tl.constexpr, PLAIN: tl.constexpr):
    """The lanes' maxima and sums after one tile more of every row."""
    new_maxima = ()
    new_soft = ()
    new_plain = ()
    for k in tl.static_range(COUNT):
        top, base = running(maxima[k], rows[k])
        new_maxima = new_maxima + (top,)
        new_soft = new_soft + (running_sum(soft_sums[k], maxima[k], base, rows[k], inv_tau),)
        if PLAIN:
            new_plain = new_plain + (running_sum(plain_sums[k], maxima[k], base, rows[k], 1.0),)
        else:
            new_plain = new_plain + (plain_sums[k],)
    return new_maxima, new_soft, new_plain


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
    K: tl.constexpr,
    DIVERGENCE: tl.constexpr,
    UNIT: tl.constexpr,
    PER_STUDENT: tl.constexpr,
    SLOTS: tl.constexpr,
    LANES: tl.constexpr,  # a tile is LANES x WIDTH classes; each lane keeps statistics of its own
    WIDTH: tl.constexpr,  # up to 16 bytes of student: one load of one thread, summed inside it
    STAGES: tl.constexpr,
):
    HAS_TEACHER: tl.constexpr = teacher is not None
    COUNT: tl.constexpr = K + 1 if HAS_TEACHER else K
    TILE: tl.constexpr = LANES * WIDTH
    PLAIN: tl.constexpr = not UNIT and (label is not None or weights is None)
    EXPECT: tl.constexpr = HAS_TEACHER and (DIVERGENCE == REVERSE_KL or DIVERGENCE == JS)
    CARE: tl.constexpr = max(WIDTH // 4, 1) if DIVERGENCE == KL else WIDTH
    tile = tl.arange(0, LANES)[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :]
    slot = tl.arange(0, SLOTS)
    sums = tl.zeros((SLOTS,), tl.float32)
    if weights is not None:
        hard, soft = totals(
            label, row_weight, denominators, N, stride_rk, stride_rn, stride_di, stride_dk, K, PER_STUDENT, 1024
        )
        w_ce = tl.load(weights).to(tl.float32)
        w_teacher = tl.load(weights + 1).to(tl.float32)
        w_peers = tl.load(weights + 2).to(tl.float32)

    block = tl.program_id(0)
    while block < N:
        n = block.to(tl.int64)
        present = n < N

        # first sweep: the statistics of every lane
        maxima = ()
        soft_sums = ()
        plain_sums = ()
        for _ in tl.static_range(COUNT):
            maxima = maxima + (tl.full((LANES,), -INF, tl.float32),)
            soft_sums = soft_sums + (tl.zeros((LANES,), tl.float32),)
            plain_sums = plain_sums + (tl.zeros((LANES,), tl.float32),)
        whole = C // TILE * TILE
        for start in tl.range(0, whole, TILE, num_stages=STAGES):
            rows = load_rows(student, teacher, n, start + tile, None, stride_k, stride_n, stride_t, K)
            maxima, soft_sums, plain_sums = statistics(rows, maxima, soft_sums, plain_sums, inv_tau, COUNT, PLAIN)
        for start in tl.range(whole, C, TILE, num_stages=1):
            c = start + tile
            rows = load_rows(student, teacher, n, c, c < C, stride_k, stride_n, stride_t, K)
            maxima, soft_sums, plain_sums = statistics(rows, maxima, soft_sums, plain_sums, inv_tau, COUNT, PLAIN)
        tops = ()
        softs = ()
        plains = ()
        for k in tl.static_range(COUNT):
            top = tl.max(maxima[k], 0)
            soft_k = merge(maxima[k], soft_sums[k], top, inv_tau)
            tops = tops + (top,)
            softs = softs + (soft_k,)
            plains = plains + (merge(maxima[k], plain_sums[k], top, 1.0) if PLAIN else soft_k,)

        # reverse_kl and js: the expectation in their gradient
        lanes = ()
        for _ in tl.static_range(K):
            lanes = lanes + (tl.zeros((LANES,), tl.float32),)
        expectations = lanes
        if EXPECT:
            for start in tl.range(0, C, TILE, num_stages=STAGES):
                c = start + tile
                rows = load_rows(student, teacher, n, c, c < C, stride_k, stride_n, stride_t, K)
                ls, qs = soften(rows, tops, natural(softs, COUNT), inv_tau, COUNT)
                new = ()
                for k in tl.static_range(K):
                    new = new + (expectations[k] + tl.sum(weigh(qs[k], surprise(ls[K], ls[k], DIVERGENCE)), 1),)
                expectations = new
        expected = ()
        for k in tl.static_range(K):
            expected = expected + (tl.sum(expectations[k], 0),)

        y = tl.full((), UNLABELLED, tl.int64)
        if label is not None:
            y = tl.load(label + n)
        counted = y != UNLABELLED
        valid = (y >= 0) & (y < C)
        hard_shares = ()
        soft_shares = ()
        for k in tl.static_range(K):
            if weights is not None:
                if k == 0 or PER_STUDENT or denominators is not None:  # else that of student 0
                    of_k = tl.full((), k, tl.int64) * stride_rk
                    hard_share, soft_share = shares(row_weight, n, present, counted, hard[k], soft[k], of_k, stride_rn)
                hard_shares = hard_shares + (hard_share,)
                soft_shares = soft_shares + (soft_share,)

        a_ce = ()  # upstream gradients, with the constants of the slopes
        a_teacher = ()
        a_peers = ()
        for k in tl.static_range(K):
            if dstudent is not None:
                a_ce = a_ce + (w_ce * hard_shares[k],)
                a_teacher = a_teacher + (w_teacher * soft_shares[k] * slope_scale,)
                a_peers = a_peers + (w_peers * soft_shares[k] * (slope_scale / (K - 1 if K > 1 else 1)),)
            else:
                a_ce = a_ce + (0.0,)
                a_teacher = a_teacher + (0.0,)
                a_peers = a_peers + (0.0,)

        # last sweep, backwards: the terms and the gradient
        of_teacher = ()
        of_peers = ()
        for _ in tl.static_range(K):
            of_teacher = of_teacher + (tl.full((), 0.0, tl.float32),)
            of_peers = of_peers + (tl.full((), 0.0, tl.float32),)
        careful = present
        if DIVERGENCE == KL:
            tame = valid | (y == UNLABELLED)
            for r in tl.static_range(COUNT):
                tame = tame & (tops[r] - tops[r] == 0) & (softs[r] - softs[r] == 0)
            if tame:
                of_teacher, of_peers = hot_sweep(
                    student, teacher, dstudent, n, tl.where(valid, y, -1), N, C, stride_k, stride_n, stride_t,
                    tops, softs, plains, inv_tau, a_ce, a_teacher, a_peers, tl.zeros((LANES,), tl.float32), tile,
                    TILE, STAGES, K, COUNT, not UNIT and label is not None,
                )  # fmt: skip
                all_sums = 0.0
                for k in tl.static_range(K):
                    all_sums += of_teacher[k] + of_peers[k]
                careful = all_sums - all_sums != 0
        if careful:  # other threads than before may store a class: the sums' own barriers lie between
            teacher_sums = lanes
            peers_sums = lanes
            tiles = tl.cdiv(C, LANES * CARE)
            for i in tl.range(0, tiles, num_stages=1 if DIVERGENCE == KL else STAGES):
                c = (tiles - 1 - i) * (LANES * CARE) + tl.arange(0, LANES)[:, None] * CARE + tl.arange(0, CARE)[None, :]
                inside = c < C
                rows = load_rows(student, teacher, n, c, inside, stride_k, stride_n, stride_t, K)
                ls, qs = soften(rows, tops, natural(softs, COUNT), inv_tau, COUNT)
                centre, A, Q = cohort(rows, ls, qs, K, DIVERGENCE)
                new_teacher = ()
                new_peers = ()
                for k in tl.static_range(K):
                    if HAS_TEACHER:
                        per_class = teacher_of(rows[k], rows[K], ls[k], ls[K], qs[k], qs[K], DIVERGENCE)
                        new_teacher = new_teacher + (teacher_sums[k] + tl.sum(tl.where(inside, per_class, 0.0), 1),)
                    if K > 1:
                        per_class = peers_of(rows[k], ls[k], qs[k], centre, A, Q, K, DIVERGENCE)
                        new_peers = new_peers + (peers_sums[k] + tl.sum(tl.where(inside, per_class, 0.0), 1),)
                    if dstudent is not None:
                        ds = gradient(
                            k, rows, ls, qs, centre, Q, c == y, tops[k], plains[k] * LN2, expected[k],
                            tl.where((a_ce[k] == 0) | valid, a_ce[k], float("nan")), a_teacher[k], a_peers[k],
                            K, label is not None, HAS_TEACHER, UNIT, DIVERGENCE,
                        )  # fmt: skip
                        at = dstudent + (tl.full((), k, tl.int64) * N + n) * C + c
                        tl.store(at, ds.to(dstudent.dtype.element_ty), mask=inside)
                if HAS_TEACHER:
                    teacher_sums = new_teacher
                if K > 1:
                    peers_sums = new_peers
            summed_teacher = ()
            summed_peers = ()
            for k in tl.static_range(K):
                summed_teacher = summed_teacher + (tl.sum(teacher_sums[k], 0),)
                summed_peers = summed_peers + (tl.sum(peers_sums[k], 0),)
            of_teacher = summed_teacher
            of_peers = summed_peers

        for k in tl.static_range(K):
            ce = 0.0
            if label is not None:
                row = student + tl.full((), k, tl.int64) * stride_k + n * stride_n
                ce = cross_entropy(row, y, counted, valid, tops[k], plains[k] * LN2)
            teacher_term = of_teacher[k] * term_scale
            peers_term = of_peers[k] * (term_scale / (K - 1 if K > 1 else 1))
            if weights is None:
                store_row(
                    terms, stats, n, present, k, ce, teacher_term, peers_term,
                    tops[k], softs[k] * LN2, plains[k] * LN2, expected[k], N, K,
                )  # fmt: skip
            else:
                sums += tl.where(slot == k, weigh(hard_shares[k], ce), 0.0)
                sums += tl.where(slot == K + k, weigh(soft_shares[k], teacher_term), 0.0)
                sums += tl.where(slot == 2 * K + k, weigh(soft_shares[k], peers_term), 0.0)
        if weights is None:
            rest = stats + (tl.full((), K, tl.int64) * N + n) * 4
            if HAS_TEACHER:
                store_stats(rest, present, tops[K], softs[K] * LN2, plains[K] * LN2, 0.0)
            else:
                store_stats(rest, present, 0.0, 0.0, 0.0, 0.0)
        block += tl.num_programs(0)

    if weights is not None:
        finish(sums, partials, counter, weights, loss, means, K, SLOTS, 128)
