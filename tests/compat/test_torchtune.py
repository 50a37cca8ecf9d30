"""torchtune's losses: against their formulas, whole and in chunks."""

import pytest
import torch

from nanonet.compat import torchtune

IGNORED = -100


def rows_of(kind, student, teacher, ratio=0.5):
    """-sum p log q, sum q log(q/p), or their weighted sum, of each row."""
    log_p, log_q = teacher.log_softmax(-1), student.log_softmax(-1)
    forward, reverse = -(log_p.exp() * log_q).sum(-1), (log_q.exp() * (log_q - log_p)).sum(-1)
    return {"Forward": forward, "Reverse": reverse, "Symmetric": ratio * forward + (1 - ratio) * reverse}[kind]


def mean_of(kind, student, teacher, labels, ratio=0.5):
    return rows_of(kind, student, teacher, ratio)[labels != IGNORED].mean()


def make(kind, ratio, suffix="KLLoss", **options):
    options |= {"sym_kd_ratio": ratio} if kind == "Symmetric" else {}
    return getattr(torchtune, kind + suffix)(**options)


@pytest.mark.parametrize("kind,ratio", [("Forward", 0.5), ("Reverse", 0.5), *(("Symmetric", r) for r in (0, 0.3, 1))])
@pytest.mark.parametrize("shape", [(12, 7), (3, 4, 7)])
def test_is_the_formula(kind, ratio, shape, draw, same):
    student, teacher, labels = draw(*shape)
    loss = make(kind, ratio)
    same(
        lambda s, t: loss(s, t, labels),
        lambda s, t: mean_of(kind, s, t, labels, ratio),
        student,
        teacher,
    )
    same(
        lambda s, t: loss(s, t, labels, normalize=False),
        lambda s, t: rows_of(kind, s, t, ratio)[labels != IGNORED].sum(),
        student,
        teacher,
    )


# 10 tokens in chunks of one size, of sizes that differ, and fewer than the number given
@pytest.mark.parametrize("chunks,sizes", [(2, [5, 5]), (4, [3, 3, 2, 2]), (8, [2, 2, 2, 2, 2])])
@pytest.mark.parametrize("kind,ratio", [("Forward", 0.5), ("Reverse", 0.5), ("Symmetric", 0.3)])
def test_chunks_are_the_whole(chunks, sizes, kind, ratio, draw, same):
    student, teacher, labels = draw(3, 10, 7)
    loss = make(kind, ratio, "KLWithChunkedOutputLoss", num_output_chunks=chunks)
    assert loss.apply_compile_strategy(fullgraph=True) is loss
    same(
        lambda s, t: loss(s.split(sizes, 1), t.split(sizes, 1), labels),
        lambda s, t: mean_of(kind, s, t, labels, ratio),
        student,
        teacher,
    )


@pytest.mark.parametrize("kind", ["Forward", "Reverse", "Symmetric"])
def test_another_ignore_index_and_no_row_that_counts(kind, draw):
    student, teacher, labels = draw(2, 4, 5)
    labels = torch.where(labels == IGNORED, 3, labels)
    found = make(kind, 0.5, ignore_index=3)(student, teacher, labels)
    expected = mean_of(kind, student, teacher, torch.where(labels == 3, IGNORED, labels))
    torch.testing.assert_close(found, expected)
    for loss, given in (
        (make(kind, 0.5), (student, teacher)),
        (make(kind, 0.5, "KLWithChunkedOutputLoss", num_output_chunks=2), (student.chunk(2, 1), teacher.chunk(2, 1))),
    ):
        value = loss(*given, torch.full_like(labels, IGNORED))
        assert value == 0 and not torch.autograd.grad(value, student)[0].any()


def test_a_bfloat16_student_gives_a_float32_loss(draw):
    student, teacher, labels = draw(4, 9, dtype=torch.bfloat16)
    loss = torchtune.ForwardKLLoss()(student, teacher, labels)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, mean_of("Forward", student.float(), teacher.float(), labels))


def test_bad_arguments_are_named(draw):
    student, teacher, labels = draw(2, 6, 5)
    with pytest.raises(ValueError, match="sym_kd_ratio"):
        torchtune.SymmetricKLLoss(sym_kd_ratio=1.1)
    with pytest.raises(ValueError, match="sym_kd_ratio"):
        torchtune.SymmetricKLWithChunkedOutputLoss(sym_kd_ratio=-0.1)
    loss = torchtune.ForwardKLWithChunkedOutputLoss(num_output_chunks=2)
    for a, b in ((3, 3), (2, 1)):
        with pytest.raises(ValueError, match=f"at most 2, got {a} of the student and {b} of the teacher"):
            loss(student.chunk(a, 1), teacher.chunk(b, 1), labels)
