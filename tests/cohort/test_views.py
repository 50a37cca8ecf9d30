from __future__ import annotations

import pytest
import torch

from nanonet.cohort.extract import student
from nanonet.cohort.stack import build_cohort
from nanonet.cohort.views import cutoff, noise, ordinary, parse_views, set_views, shuffle, view_batch
from nanonet.config.train import VIEWS
from nanonet.errors import InputError

LABELS = ["a", "b", "c"]


@pytest.fixture
def cohort(make_teacher):
    return build_cohort(make_teacher("bert"), [[0, 5], [1, 4], [2, 3]], LABELS, "full").train()


def test_parse_views_repeats_as_needed() -> None:
    assert parse_views("none", 2) == ["none", "none"]
    assert parse_views("cutoff, shuffle", 3) == ["cutoff", "shuffle", "cutoff"]
    assert parse_views(",".join(VIEWS), 5) == list(VIEWS)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("cutof", ["--views", "no view 'cutof'", "cutoff, shuffle"]),
        ("", ["--views", "no view ''"]),
        ("none,none,none", ["has 3 views", "--students 2", "at most 2"]),
    ],
)
def test_parse_views_errors(text, words) -> None:
    with pytest.raises(InputError) as caught:
        parse_views(text, 2)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_noise_depends_on_seed_student_and_row_number_alone() -> None:
    rows = torch.arange(64)
    full = noise(3, 1, rows, 50)
    assert full.shape == (64, 50) and full.unique().numel() > 0.999 * full.numel()
    assert float(full.min()) >= 0 and float(full.max()) < 1 and abs(float(full.mean()) - 0.5) < 0.01
    assert torch.equal(noise(3, 1, rows[40:], 30), full[40:, :30])  # another process, less padding
    for other in (noise(4, 1, rows, 50), noise(3, 2, rows, 50), noise(3 + 2**32, 1, rows, 50), noise(-3, 1, rows, 50)):
        assert not (other == full).any()


def test_shuffle_permutes_what_lies_between_the_ends(batch) -> None:
    ids, mask = batch
    free = ordinary(mask)
    assert free.sum(1).tolist() == [9, 7, 9, 2, 1, 5]
    shuffled = shuffle(ids, mask, noise(0, 0, torch.arange(6), 11))
    assert torch.equal(shuffled[~free], ids[~free])
    assert torch.equal(shuffled.sort(1).values, ids.sort(1).values)
    assert not torch.equal(shuffled[0], ids[0])
    # the order is uniform: each place of a row of 7 is as likely to receive each token
    rows = torch.arange(7)[None].expand(4000, 7)
    draws = shuffle(rows, torch.ones(4000, 7, dtype=torch.long), noise(1, 0, torch.arange(4000), 7))
    for place in range(1, 6):
        share = draws[:, place].bincount(minlength=7)[1:6] / 4000
        assert (share - 0.2).abs().max() < 0.04


def test_cutoff_drops_a_fifth_of_what_lies_between_the_ends() -> None:
    length = torch.tensor([30, 12, 7, 6, 2, 1])
    mask = (torch.arange(30) < length[:, None]).long()
    cut = cutoff(mask, noise(0, 0, torch.arange(6), 30))
    assert (mask - cut).sum(1).tolist() == [5, 2, 1, 0, 0, 0]
    assert (mask - cut).min() == 0 and torch.equal(cut[~ordinary(mask)], mask[~ordinary(mask)])
    assert not torch.equal(cut, cutoff(mask, noise(1, 0, torch.arange(6), 30)))


def test_masks_padded_on_the_left_keep_their_ends_too() -> None:
    mask = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]])
    assert ordinary(mask).long().tolist() == [[0, 0, 0, 1, 1, 0], [0, 1, 1, 1, 1, 0]]


@pytest.mark.parametrize("view", VIEWS)
def test_a_view_changes_its_student_and_no_other(view, cohort, batch) -> None:
    ids, mask = batch
    plain = cohort(ids, mask).logits.detach()
    views = ["none", view, "none"]
    set_views(cohort, views)
    arguments = view_batch(cohort, views, ids, mask, seed=0)
    assert cohort.training
    for chunk in (1, 3):
        seen = cohort(**arguments, chunk=chunk).logits
        same = [torch.allclose(seen[k], plain[k], atol=1e-6) for k in range(3)]
        assert same == [True, view == "none", True], chunk
    seen.sum().backward()
    set_views(cohort, ["none"] * 3)
    torch.testing.assert_close(cohort(ids, mask).logits, plain)


@pytest.mark.parametrize("view", ["shuffle", "cutoff", "adversarial"])
def test_the_seed_decides_a_view_and_rows_may_be_split(view, cohort, batch) -> None:
    ids, mask = batch
    views = [view] * 3

    def tensors(seed: int, rows: slice) -> list[torch.Tensor]:
        made = view_batch(cohort, views, ids[rows], mask[rows], seed, torch.arange(6)[rows])
        if view == "adversarial":
            return [made["perturbation"][k] for k in range(3)]
        return list(made["input_ids"] if view == "shuffle" else made["attention_mask"])

    full, other, part = tensors(7, slice(0, 6)), tensors(8, slice(0, 6)), tensors(7, slice(2, 6))
    for k in range(3):
        assert not torch.equal(full[k], other[k])
        assert not torch.equal(full[k], full[(k + 1) % 3])
        # the direction of a gradient is only as exact as its rounding, which the size of a batch changes
        torch.testing.assert_close(part[k], full[k][2:], rtol=0, atol=1e-2 if view == "adversarial" else 0)


def test_nothing_is_copied_where_no_view_changes_the_rows(cohort, batch) -> None:
    ids, mask = batch
    arguments = view_batch(cohort, ["none", "dropout", "none"], ids, mask, 0)
    assert arguments["input_ids"] is ids and arguments["attention_mask"] is mask and len(arguments) == 2


@pytest.mark.parametrize("kind", ["bert", "roberta", "modernbert", "electra"])
def test_adversarial_steps_have_length_one_and_hurt_more_than_random_ones(kind, make_teacher, batch) -> None:
    ids, mask = batch
    cohort = build_cohort(make_teacher(kind), [[0, 5], [0, 2]], LABELS, "full").train()
    steps = view_batch(cohort, ["none", "adversarial"], ids, mask, 0)["perturbation"]
    assert list(steps) == [1] and not steps[1].requires_grad
    assert all(p.grad is None for p in cohort.parameters())
    norms: list[torch.Tensor] = []
    hook = cohort.embeddings().register_forward_hook(lambda module, given, output: norms.append(output.norm(dim=-1)))
    cohort(ids, mask)
    hook.remove()
    assert norms[0].median() > 3, "a step of 1 is to be small beside what it is added to"
    # the gradient of a token that the head cannot see (past a sliding window) may be 0, and so its step
    length = steps[1].norm(dim=-1)
    assert (((length - 1).abs() < 1e-5) | (length == 0))[mask == 1].all() and (length[mask == 0] == 0).all()
    assert (length[mask == 1] > 0).float().mean() > 0.9

    def divergence(step: torch.Tensor) -> float:
        with torch.no_grad():
            clean, moved = cohort(ids, mask).logits[1], cohort(ids, mask, perturbation={1: 0.05 * step}).logits[1]
        return float((clean.softmax(-1) * (clean.log_softmax(-1) - moved.log_softmax(-1))).sum())

    random = [torch.nn.functional.normalize(torch.randn_like(steps[1]), dim=-1) * mask[..., None] for _ in range(8)]
    assert divergence(steps[1]) > 2 * max(divergence(step) for step in random)


def test_views_of_pairs_leave_every_token_in_its_text(cohort, batch) -> None:
    """Row 0: nine free tokens, of which the separator is one."""
    ids, mask = batch
    ids = ids.where(ids != 90, 89)
    ids[:, 2] = 90
    cohort.model.config.text_pair = {"separator": 90, "types": True}
    found = view_batch(cohort, ["shuffle", "cutoff", "none"], ids, mask, seed=1)
    shuffled, kept = found["input_ids"][0], found["attention_mask"][1]
    assert torch.equal(shuffled[:, :3], ids[:, :3]) and not torch.equal(shuffled[0], ids[0])
    assert torch.equal(shuffled.sort(1).values, ids.sort(1).values)
    assert (kept[:, 2] == mask[:, 2]).all() and (mask - kept).sum(1).tolist() == [1, 1, 1, 0, 0, 0]
    ids[:, 2], ids[:, 5] = 5, 90
    rows = torch.arange(200) % 6
    many = view_batch(
        cohort, ["shuffle", "shuffle", "none"], ids[:1].expand(200, 11), mask[:1].expand(200, 11), 1, rows
    )
    assert {*many["input_ids"][0, :, 1].tolist()} <= {*ids[0, 1:5].tolist()}
    assert (many["input_ids"][:, :, 5] == 90).all() and many["input_ids"][0, :, 6].unique().tolist() != [90]


def test_a_cohort_reads_token_types_of_pairs(cohort, batch) -> None:
    """The stacked students, and a chunk of one, say what each of them says by itself with token types."""
    ids, mask = batch
    ids[:, 2] = 90
    before = cohort.eval()(ids, mask).logits
    cohort.model.config.text_pair = {"separator": 90, "types": True}
    types = (torch.arange(11) > 2).long().expand_as(ids)
    found = cohort(ids, mask).logits
    for k in range(3):
        alone = student(cohort, k)
        wanted = alone(input_ids=ids, attention_mask=mask, token_type_ids=types).logits
        torch.testing.assert_close(found[k], wanted, rtol=0, atol=1e-4)
    assert (found - before).abs().max() > 0.01  # the errors above are a hundredth of it
