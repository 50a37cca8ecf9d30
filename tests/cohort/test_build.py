from __future__ import annotations

import pytest
import torch
from torch import nn

from nanonet.cohort.build import plain_student
from nanonet.cohort.mapping import check_mapping
from nanonet.errors import InputError
from nanonet.models.checks import check_encoder
from nanonet.models.parts import find_parts

KINDS = ["bert", "roberta", "modernbert", "distilbert", "electra", "mpnet"]


@pytest.mark.parametrize("kind", KINDS)
def test_all_layers_give_the_teachers_hidden_states(kind, make_teacher, batch) -> None:
    teacher, (ids, mask) = make_teacher(kind), batch
    model = plain_student(teacher, range(6), ["a", "b"], "full", 0)
    with torch.no_grad():
        wanted = teacher(input_ids=ids, attention_mask=mask).last_hidden_state
        got = model.base_model(input_ids=ids, attention_mask=mask).last_hidden_state
    assert torch.equal(got, wanted)


@pytest.mark.parametrize("kind", KINDS)
def test_chosen_layers_are_the_teachers(kind, make_teacher) -> None:
    teacher = make_teacher(kind)
    model = plain_student(teacher, [0, 3], ["cat", "dog", "bird"], "full", 0)
    theirs = teacher.get_submodule(find_parts(teacher).layers[:-1])
    ours = model.get_submodule(find_parts(model).layers[:-1])
    assert len(ours) == model.config.num_hidden_layers == 2
    for slot, layer in enumerate([0, 3]):
        for (name, a), (_, b) in zip(ours[slot].named_parameters(), theirs[layer].named_parameters(), strict=True):
            assert torch.equal(a, b) and a.data_ptr() != b.data_ptr(), name
    assert model.config.id2label == {0: "cat", 1: "dog", 2: "bird"}
    assert model.config.label2id["bird"] == 2 and model.num_labels == 3
    assert teacher.config.num_hidden_layers == 6


def test_embeddings_share_the_teachers_memory_and_are_frozen(make_teacher) -> None:
    teacher = make_teacher("bert")
    model = plain_student(teacher, [0, 5], ["a", "b"], "full", 0)
    word = model.get_input_embeddings().weight
    assert word.data_ptr() == teacher.get_input_embeddings().weight.data_ptr() and not word.requires_grad
    assert teacher.get_input_embeddings().weight.requires_grad


def test_the_seed_draws_the_head_and_nothing_else(make_teacher) -> None:
    teacher = make_teacher("bert")
    state = torch.get_rng_state()
    first, again, other = (plain_student(teacher, [0, 5], ["a", "b"], "full", seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    parts = find_parts(first)
    for (name, a), b, c in zip(first.named_parameters(), again.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
        if parts.of(name) != "head":
            assert torch.equal(a, c)
        elif name.endswith("weight"):
            assert not torch.equal(a, c), name
    assert parts.of("bert.pooler.dense.weight") == "head"


def test_created_biases_are_zero_change_nothing_and_are_declared(make_teacher, batch) -> None:
    teacher, (ids, mask) = make_teacher("modernbert"), batch
    bare = plain_student(teacher, [0, 2, 3], ["a", "b"], "full", 0)
    biased = plain_student(teacher, [0, 2, 3], ["a", "b"], "bias", 0)
    assert sum(name.endswith(".bias") for name, _ in bare.named_parameters()) == 1
    created = {n for n, _ in biased.named_parameters()} - {n for n, _ in bare.named_parameters()}
    # a layer has 4 linears and 2 norms, but the first one norm; embeddings, final norm and the head (2) have the rest
    assert len(created) == 3 * 6 - 1 + 4
    assert all(torch.count_nonzero(biased.get_parameter(name)) == 0 for name in created)
    config = biased.config
    assert config.attention_bias and config.mlp_bias and config.norm_bias and config.classifier_bias
    assert config.layer_types == [teacher.config.layer_types[i] for i in (0, 2, 3)]
    with torch.no_grad():
        a, b = (m.base_model(input_ids=ids, attention_mask=mask).last_hidden_state for m in (bare, biased))
    torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


# a first layer without its attention norm missing; a full-attention layer where the other student's slides
@pytest.mark.parametrize(
    ("mapping", "words"),
    [
        ([[0, 5], [1, 4]], ["student 1", "layer 1", "other parts", "0,5;0,4"]),
        ([[3, 5], [0, 4]], ["student 0", "layer 3", "other parts", "0,5;0,4"]),
        ([[0, 5], [0, 3]], ["student 1", "full_attention, not sliding_attention", "0,5;0,2"]),
    ],
)
def test_layers_that_do_not_fit_are_refused_with_a_mapping_that_does(mapping, words, make_teacher) -> None:
    teacher = make_teacher("modernbert")
    with pytest.raises(InputError) as caught:
        check_mapping(teacher, mapping)
    message = str(caught.value)
    assert "--layer-mapping" in message and all(word in message for word in words), message
    proposal = message.rsplit(": ", 1)[1]
    check_mapping(teacher, [[int(i) for i in part.split(",")] for part in proposal.split(";")])


def test_a_teacher_that_needs_more_than_ids_and_a_mask_is_refused_with_its_reason(make_teacher, monkeypatch) -> None:
    teacher = make_teacher("bert")
    check_encoder(teacher, layers=True)

    def fails(*arguments: object, **options: object) -> None:
        raise NotImplementedError("wants boxes\nand more")

    monkeypatch.setattr(teacher, "forward", fails)
    with pytest.raises(InputError, match=r"BertModel makes no vector .* \(NotImplementedError: wants boxes\);"):
        check_encoder(teacher, layers=False)


def test_any_layers_fit_where_all_are_alike(make_teacher) -> None:
    check_mapping(make_teacher("bert"), [[5, 0], [1, 4]])


def test_a_model_without_a_list_of_layers_is_refused(make_teacher) -> None:
    teacher = make_teacher("bert")
    teacher.encoder.layer = nn.ModuleList(list(teacher.encoder.layer)[:2])
    with pytest.raises(InputError, match="no encoder whose layers can be chosen"):
        find_parts(teacher)
