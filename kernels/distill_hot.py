"""The last sweep of kl over a row of which nothing special is to be feared: all have a softmax, the label is a class.

Nothing is guarded. A class at -inf makes the sums NaN, by which the kernel sees that the row has to be gone over again
with care. Logarithms are to base 2.
"""

import triton
import triton.language as tl

from nanonet.kernels.rowwise import LN2, LOG2_E, load_logits, load_rows


@triton.jit
def hot_classes(
    rows,  # logits of every student and the teacher: tiles, or one class of each
    tops,
    softs,  # log-sum-exp at the temperature; plains: at 1, to base 2
    plains,
    scale,  # of a logit: log2(e) / temperature
    a_ce,  # upstream gradients of student k, times their constants
    a_teacher,
    a_peers,
    K: tl.constexpr,
    COUNT: tl.constexpr,
    PLAIN: tl.constexpr,  # ce has a softmax of its own
):
    """l and q of every row, Q = sum_j q_j, and each student's gradient without its one-hot."""
    ls = ()
    qs = ()
    for r in tl.static_range(COUNT):
        l = (rows[r] - tops[r]) * scale - softs[r]
        ls = ls + (l,)
        qs = qs + (tl.exp2(l),)
    Q = qs[0]
    for k in tl.static_range(1, K):
        Q += qs[k]
    ds = ()
    for k in tl.static_range(K):
        own = 0.0 if PLAIN else a_ce[k]
        others = 0.0
        if COUNT > K:
            own += a_teacher[k]
            others += a_teacher[k] * qs[K]
        if K > 1:
            own += a_peers[k] * K
            others += a_peers[k] * Q
        d = own * qs[k] - others
        if PLAIN:
            d += a_ce[k] * tl.exp2((rows[k] - tops[k]) * LOG2_E - plains[k])
        ds = ds + (d,)
    return ls, qs, Q, ds


@triton.jit
def hot_tile(
    student,
    teacher,
    dstudent,  # (K,N,C) or None
    n,
    c,
    inside,  # None: all of c
    N,
    C,
    stride_k,
    stride_n,
    stride_t,
    tops,
    softs,
    plains,
    scale,
    a_ce,
    a_teacher,
    a_peers,
    teacher_sums,  # of every lane: sum p (l_p - l_k); sum q_k; sum_j q_j (l_j - centre); - sum Q (l_k - centre)
    masses,
    A_sum,
    peers_sums,
    K: tl.constexpr,
    COUNT: tl.constexpr,
    PLAIN: tl.constexpr,
):
    """One tile: its gradient is stored, the sums with it are returned."""
    rows = ()
    for r in tl.static_range(COUNT):
        at = (student + tl.full((), r, tl.int64) * stride_k + n * stride_n if r < K else teacher + n * stride_t) + c
        nothing = tops[r] - tl.maximum(300 / scale, tl.abs(tops[r]))  # a logit of probability 0, but finite
        rows = rows + (load_logits(at, inside, nothing),)
    ls, qs, Q, ds = hot_classes(rows, tops, softs, plains, scale, a_ce, a_teacher, a_peers, K, COUNT, PLAIN)
    centre = ls[0]
    for k in tl.static_range(1, K):
        centre = tl.maximum(centre, ls[k])
    new_teacher = ()
    new_masses = ()
    new_peers = ()
    for r in tl.static_range(COUNT):
        new_masses = new_masses + (masses[r] + tl.sum(qs[r], 1),)
    for k in tl.static_range(K):
        if COUNT > K:
            new_teacher = new_teacher + (teacher_sums[k] + tl.sum(qs[K] * (ls[K] - ls[k]), 1),)
        else:
            new_teacher = new_teacher + (teacher_sums[k],)
        if K > 1:
            apart = ls[k] - centre
            A_sum += tl.sum(qs[k] * apart, 1)
            new_peers = new_peers + (peers_sums[k] - tl.sum(Q * apart, 1),)
        else:
            new_peers = new_peers + (peers_sums[k],)
        if dstudent is not None:
            at = dstudent + (tl.full((), k, tl.int64) * N + n) * C + c
            value = ds[k].to(dstudent.dtype.element_ty)
            if inside is None:
                tl.store(at, value)
            else:
                tl.store(at, value, mask=inside)
    return new_teacher, new_masses, A_sum, new_peers


@triton.jit
def hot_sweep(
    student,
    teacher,
    dstudent,
    n,
    y,  # the label, or -1
    N,
    C,
    stride_k,
    stride_n,
    stride_t,
    tops,
    softs,
    plains,
    inv_tau,
    a_ce,
    a_teacher,
    a_peers,
    zeros,  # of every lane
    tile,
    TILE: tl.constexpr,
    STAGES: tl.constexpr,
    K: tl.constexpr,
    COUNT: tl.constexpr,
    PLAIN: tl.constexpr,
):
    """sum p (log p - log q_k) and sum_{j != k} sum q_j (log q_j - log q_k) of every student; backwards over the row."""
    scale = inv_tau * LOG2_E
    A_sum = zeros
    teacher_sums = ()
    peers_sums = ()
    masses = ()
    for _ in tl.static_range(K):
        teacher_sums = teacher_sums + (zeros,)
        peers_sums = peers_sums + (zeros,)
    for _ in tl.static_range(COUNT):
        masses = masses + (zeros,)
    whole = C // TILE
    for i in tl.range(whole, tl.cdiv(C, TILE), num_stages=1):
        c = i * TILE + tile
        teacher_sums, masses, A_sum, peers_sums = hot_tile(
            student, teacher, dstudent, n, c, c < C, N, C, stride_k, stride_n, stride_t, tops, softs, plains, scale,
            a_ce, a_teacher, a_peers, teacher_sums, masses, A_sum, peers_sums, K, COUNT, PLAIN,
        )  # fmt: skip
    for i in tl.range(0, whole, num_stages=STAGES):
        c = (whole - 1 - i) * TILE + tile
        teacher_sums, masses, A_sum, peers_sums = hot_tile(
            student, teacher, dstudent, n, c, None, N, C, stride_k, stride_n, stride_t, tops, softs, plains, scale,
            a_ce, a_teacher, a_peers, teacher_sums, masses, A_sum, peers_sums, K, COUNT, PLAIN,
        )  # fmt: skip
    if dstudent is not None:
        if y >= 0:  # the label's class once more, with its one-hot
            at_y = load_rows(student, teacher, n, y, None, stride_k, stride_n, stride_t, K)
            ds = hot_classes(at_y, tops, softs, plains, scale, a_ce, a_teacher, a_peers, K, COUNT, PLAIN)[3]
            tl.debug_barrier()  # after the store of another thread
            for k in tl.static_range(K):
                at = dstudent + (tl.full((), k, tl.int64) * N + n) * C + y
                tl.store(at, (ds[k] - a_ce[k]).to(dstudent.dtype.element_ty))

    # over the classes the differences of the masses come to nothing, but they take the error of the log-sum-exps along
    mass = ()
    all_masses = 0.0
    for r in tl.static_range(COUNT):
        mass = mass + (tl.sum(masses[r], 0),)
    for k in tl.static_range(K):
        all_masses += mass[k]
    A = tl.sum(A_sum, 0)
    of_teacher = ()
    of_peers = ()
    for k in tl.static_range(K):
        of_teacher = of_teacher + (
            tl.sum(teacher_sums[k], 0) * LN2 + (mass[k] - mass[COUNT - 1] if COUNT > K else 0.0),
        )
        of_peers = of_peers + ((tl.sum(peers_sums[k], 0) + A) * LN2 + (K * mass[k] - all_masses),)
    return of_teacher, of_peers
