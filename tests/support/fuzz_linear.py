"""Wild calls of the loss from hidden states, and of the linear layer."""

from __future__ import annotations

import torch
from fuzz_tensors import FLOATS, attempt, labels, options, tensors, weighing
from fuzz_topk import teachers
from hypothesis import given
from hypothesis import strategies as st

few = st.sampled_from([0, 1, 2, 3, 5, 9])


def drawer(draw, wild: bool, dtype: torch.dtype):
    def of(shape, dtypes=None, absent=False):
        if absent and draw(st.booleans()):
            return None
        dtypes = dtypes or ([dtype] * 4 + FLOATS * wild)
        return draw(tensors(shape, dtypes, wild and draw(st.integers(0, 3)) == 0))

    return of


@st.composite
def losses(draw):
    wild = draw(st.booleans())
    of = drawer(draw, wild, draw(st.sampled_from(FLOATS)))
    K, N, D, E, V = (draw(few) for _ in range(5))
    V = max(V, 1) if draw(st.booleans()) else V
    off = draw(st.sampled_from([0, 0, 0, 1, -1])) if wild else 0  # another number of students for the heads

    def heads(one: tuple[int, ...]):
        kind = draw(st.sampled_from(["shared", "stacked", "each"]))
        count = max(K + off, 0)
        return [of(one) for _ in range(count)] if kind == "each" else [of((count, *one) if kind == "stacked" else one)]

    hidden = [of((K, N, D))] if draw(st.booleans()) else [of((N, D)) for _ in range(K)]
    weight, bias = heads((V, D)), heads((V,)) if draw(st.booleans()) else []
    kind = draw(st.sampled_from(["hidden", "logits", "topk", "none", "any"]))
    known = {"hidden": (of((N, E)), of((V, E)), of((V,), absent=True)), "logits": (of((N, V)), None, None)}
    teacher = known.get(kind, (None, None, None))
    if kind == "any":
        teacher = tuple(of(shape, absent=True) for shape in ((N, E), (V, E), (V,)))
    top = draw(teachers((N,), max(V, 1), wild)) if kind == "topk" or wild and draw(st.booleans()) else (None, None)
    tail = draw(st.sampled_from([0, 1, 2, 5]))
    label = draw(labels((N,), V, wild)) if draw(st.booleans()) else None
    weights, row_weight, denominators = weighing(of, K, (N,), draw)
    denominators = torch.ones(2) if denominators is None else denominators
    chunk = draw(st.sampled_from([1, 2, 4, 100] + [0, -1, 1 << 62] * wild))
    needs = draw(st.lists(st.booleans(), min_size=0 if wild else 3, max_size=4 if wild else 3))
    by = weights, row_weight, denominators, *draw(options(wild)), chunk, draw(st.booleans()), needs
    if any(t.numel() > 10**6 for t in hidden):  # not so many chunks of a row that it never ends
        by = (*by[:6], 1 << 62, *by[7:])
    return hidden, weight, bias, (*teacher, *top, tail), label, by


def students(tensors_, one: int) -> int | None:
    """K of tensors that are stacked or one each, None where all students share one."""
    assert len({t.dim() for t in tensors_}) == 1
    if len(tensors_) == 1:
        assert tensors_[0].dim() in (one, one + 1)
        return len(tensors_[0]) if tensors_[0].dim() == one + 1 else None
    return len(tensors_)


def check_contract(hidden, weight, bias, teacher, label, by) -> tuple[int, int, int]:
    """What distill_linear_loss has accepted; K, N, V."""
    K = students(hidden, 2)
    K = 1 if K is None else K
    N, V = hidden[0].shape[-2], weight[0].shape[-2]
    assert all(t.shape[-2] == N for t in hidden) and len({t.dtype for t in hidden}) == 1
    assert students(weight, 2) in (None, K) and all(t.shape[-2] == V for t in weight)
    for k in range(K):
        own = [group[k] if len(group) > 1 else group[0] for group in (hidden, weight)]
        assert own[0].shape[-1] == own[1].shape[-1]
    if bias:
        assert students(bias, 1) in (None, K) and all(t.shape[-1] == V for t in bias)
    given, its_weight, its_bias, ids, logprobs, tail = teacher
    assert (ids is None) == (logprobs is None) and (ids is None or given is None)
    assert given is not None or its_weight is None and its_bias is None
    if ids is not None:
        assert ids.shape == logprobs.shape == (N, ids.shape[-1])
    if given is not None:
        assert given.dim() == 2 and len(given) == N
        assert given.shape[1] == V if its_weight is None else its_weight.shape == (V, given.shape[1])
        assert its_bias is None or its_bias.shape == (V,)
    weights, row_weight, denominators, _, _, _, chunk, _, needs = by
    assert label is None or label.shape == (N,)
    assert weights.shape == (3,) and (row_weight is None or row_weight.shape in ((N,), (K, N)))
    assert denominators.shape in ((2,), (2, K)) and chunk >= 1 and len(needs) == 3
    return K, N, V


@given(losses())
def fuzz_linear_loss(call):
    hidden, weight, bias, teacher, label, by = call
    grad = by[-1][:1] == [True]
    hidden = [t.requires_grad_() if grad and t.is_floating_point() else t for t in hidden]
    found = attempt("distill_linear_loss", hidden, weight, bias, *teacher, label, *by)
    if found is not None:
        K, N, V = check_contract(hidden, weight, bias, teacher, label, by)
        assert found[0].shape == () and found[1].shape == (3 + by[-2], K)
        wanted = [t for group, need in zip((hidden, weight, bias), by[-1], strict=True) if need for t in group]
        assert [(t.shape, t.dtype) for t in found[2]] == [(t.shape, t.dtype) for t in wanted]
    x, w = hidden[0].detach() if hidden else torch.zeros(2, 3), weight[0] if weight else torch.zeros(4, 3)
    if max([*x.shape, *w.shape, 0]) > 10**6:
        return
    room = teacher[0] if teacher[0] is not None else torch.empty(*x.shape[:-1], w.shape[0] if w.dim() else 1)
    if room.numel() < 10**6:
        room = room.clone() if by[-2] else room
        before = room.shape
        done = attempt("project_into_", room, x, w, bias[0] if bias else None)
        assert done is None or not bias or bias[0].shape == (len(w),)
        for one in (done, attempt("bfloat16_product_", room, x, w)):
            assert room.shape == before
            if one is not None:
                assert x.dim() == w.dim() == 2 and x.shape[1] == w.shape[1] and room.shape == (len(x), len(w))


@st.composite
def layers(draw):
    wild = draw(st.booleans())
    of = drawer(draw, wild, draw(st.sampled_from(FLOATS)))
    K, M, D, F, R = (draw(few) for _ in range(5))
    shared_x = draw(st.booleans())
    x = of((M, D) if shared_x else (K, M, D))
    weight = of((F, D) if draw(st.booleans()) else (K, F, D))
    bias = of((K, F), absent=True)
    lora = draw(st.booleans())
    lora_a, lora_b = (of((K, R, D)), of((K, F, R))) if lora else (None, None)
    if wild and draw(st.booleans()):
        lora_a, lora_b = of((K, R, D), absent=True), of((K, F, R), absent=True)
    scale = of((K,), absent=True)
    seed = of((), [torch.int64], absent=True)
    dropout = draw(st.sampled_from([0.0, 0.25] + [1.0, -0.5, float("nan"), 2.0] * wild))
    needs = draw(st.lists(st.booleans(), min_size=0 if wild else 5, max_size=6 if wild else 5))
    return (x, weight, bias, lora_a, lora_b, scale, seed, dropout), of((K, M, F)), of((K, M, R)), shared_x, needs


def check_layer(x, weight, bias, lora_a, lora_b, scale, seed, dropout, K=None) -> tuple[int, int, int]:
    """K, M, F of a linear layer that was accepted."""
    sizes = [len(t) for t, dims in ((x, 3), (weight, 3), (bias, 2), (lora_a, 3)) if t is not None and t.dim() == dims]
    K = K if K is not None else sizes[0] if sizes else 1
    assert K > 0
    (F, D), M = weight.shape[-2:], x.shape[-2]
    assert x.shape in ((M, D), (K, M, D)) and weight.shape in ((F, D), (K, F, D))
    assert bias is None or bias.shape == (K, F)
    assert (lora_a is None) == (lora_b is None)
    if lora_a is not None:
        assert lora_a.shape == (K, lora_a.shape[1], D) and lora_b.shape == (K, F, lora_a.shape[1])
    assert scale is None or scale.shape == (K,)
    assert seed is None or seed.shape == () and seed.dtype == torch.int64
    assert len({t.dtype for t in (x, weight, bias, lora_a, lora_b, scale) if t is not None}) == 1
    assert 0 <= dropout < 1
    return K, M, F


@given(layers())
def fuzz_layer(call):
    layer, dy, low, shared_x, needs = call
    x, weight, bias, lora_a, lora_b, scale, seed, dropout = layer
    found = attempt("cohort_linear", *layer)
    if found is not None:
        K, M, F = check_layer(*layer)
        assert found[0].shape == (K, M, F) and found[1].shape == ((0,) if lora_a is None else (K, M, lora_a.shape[1]))
        dy = dy.to(found[0].dtype) if dy.shape == found[0].shape and dy.dtype != torch.complex64 else dy
        low = found[1] if lora_a is not None and needs[:1] == [True] else low
    x = None if needs[1:2] == [False] and needs[3:4] == [False] else x
    others = weight, lora_a, lora_b, scale, seed, dropout, shared_x
    gradients = attempt("cohort_linear_backward", dy, x, low, *others, needs)
    if gradients is None:
        return
    K, M, F = dy.shape
    rows = (M, weight.shape[-1]) if shared_x else (K, M, weight.shape[-1])
    assert len(needs) == 5 and (x is None or x.shape == rows)
    assert low is None or low.shape == (K, M, 0 if lora_a is None else lora_a.shape[1])
    x = dy.new_empty(rows) if x is None else x
    assert check_layer(x, weight, None, lora_a, lora_b, scale, seed, dropout, K) == (K, M, F)
    shapes = [x.shape, weight.shape, (K, F), *(None if t is None else t.shape for t in (lora_a, lora_b))]
    for need, gradient, shape in zip(needs, gradients, shapes, strict=True):
        assert gradient.shape == (shape if need and shape is not None else (0,))
