from __future__ import annotations

import pytest
from support.encoders import WIDE
from transformers import AutoModel, LongformerConfig

from nanonet.cohort.build import plain_student
from nanonet.cohort.mapping import check_mapping, choose_layers, fit_mapping, layer_mapping
from nanonet.errors import InputError


# students, depth, teacher layers: the two students of the default; halves that complete each other; more students than
# offsets; one layer; one student; all layers
@pytest.mark.parametrize(
    ("students", "depth", "layers", "expected"),
    [
        (2, 2, 6, [[0, 5], [1, 4]]),
        (2, 6, 12, [[0, 2, 4, 7, 9, 11], [1, 3, 5, 6, 8, 10]]),
        (4, 2, 6, [[0, 5], [1, 4], [2, 3], [0, 5]]),
        (2, 1, 6, [[0], [1]]),
        (1, 3, 6, [[0, 3, 5]]),
        (2, 6, 6, [[0, 1, 2, 3, 4, 5]] * 2),
    ],
)
def test_interleaved(students: int, depth: int, layers: int, expected: list[list[int]]) -> None:
    assert layer_mapping("interleaved", students, depth, layers) == expected


@pytest.mark.parametrize(
    ("students", "depth", "layers", "expected"),
    [
        (2, 2, 6, [[0, 1], [4, 5]]),
        (3, 2, 6, [[0, 1], [2, 3], [4, 5]]),
        (1, 2, 6, [[0, 1]]),
        (2, 6, 6, [[0, 1, 2, 3, 4, 5]] * 2),
    ],
)
def test_bottom_top(students: int, depth: int, layers: int, expected: list[list[int]]) -> None:
    assert layer_mapping("bottom-top", students, depth, layers) == expected


@pytest.mark.parametrize("name", ["interleaved", "bottom-top"])
def test_named_mappings_rise_and_stay_inside(name: str) -> None:
    for layers in (1, 2, 5, 6, 12, 22):
        for depth in range(1, layers + 1):
            for chosen in layer_mapping(name, 5, depth, layers):
                assert chosen == sorted(set(chosen)) and len(chosen) == depth and 0 <= chosen[0] <= chosen[-1] < layers


def test_explicit() -> None:
    assert layer_mapping("0,5; 1,4", 2, 2, 6) == [[0, 5], [1, 4]]


@pytest.mark.parametrize(
    ("text", "students", "depth", "words"),
    [
        ("interleaved", 0, 2, ["--students 0", "1 or more"]),
        ("interleaved", 2, 0, ["--student-layers 0", "1 to 6"]),
        ("interleaved", 2, 7, ["--student-layers 7", "1 to 6"]),
        ("interlaced", 2, 2, ["--layer-mapping", "interlaced", "interleaved"]),
        ("0,5;1,x", 2, 2, ["--layer-mapping", "0,5;1,x", "one list per student"]),
        ("", 2, 2, ["--layer-mapping", "one list per student"]),
        ("0,5;", 2, 2, ["--layer-mapping"]),
        ("0,5", 2, 2, ["1 lists", "--students 2"]),
        ("0,5;1", 2, 2, ["list 2 has 1 layers", "--student-layers is 2"]),
        ("0,5;1,6", 2, 2, ["no layer 6", "0 to 5"]),
        ("0,5;-1,4", 2, 2, ["no layer -1", "0 to 5"]),
    ],
)
def test_errors_name_the_flag_and_the_cure(text: str, students: int, depth: int, words: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        layer_mapping(text, students, depth, 6)
    message = str(caught.value)
    assert "\n" not in message and all(word in message for word in words), message


# ModernBERT: layer 0 has no attention norm, layers 0 and 3 of six attend to all tokens
@pytest.mark.parametrize(
    ("text", "students", "depth", "expected"),
    [
        ("interleaved", 2, 2, [[0, 5], [0, 4]]),
        ("interleaved", 3, 2, [[0, 5], [0, 4], [0, 2]]),
        ("interleaved", 2, 3, [[0, 3, 5], [0, 3, 4]]),
        ("interleaved", 2, 6, [[0, 1, 2, 3, 4, 5]] * 2),
        ("interleaved", 2, 1, [[0], [0]]),
        ("bottom-top", 2, 2, [[0, 1], [0, 5]]),
        ("0,5;0,2", 2, 2, [[0, 5], [0, 2]]),
    ],
)
def test_a_named_mapping_chooses_layers_that_fit(text, students, depth, expected, make_teacher) -> None:
    teacher = make_teacher("modernbert")
    mapping = choose_layers(text, students, depth, teacher)
    assert mapping == expected
    check_mapping(teacher, mapping)


def test_a_written_mapping_stays_as_it_is_and_is_checked(make_teacher) -> None:
    teacher = make_teacher("modernbert")
    mapping = choose_layers("0,5;1,4", 2, 2, teacher)
    assert mapping == [[0, 5], [1, 4]]
    with pytest.raises(InputError, match="this one fits: 0,5;0,4"):
        check_mapping(teacher, mapping)


@pytest.mark.parametrize("kind", ["bert", "electra", "deberta"])
def test_where_all_layers_are_of_one_kind_a_mapping_is_as_it_was(kind, make_teacher) -> None:
    teacher = make_teacher(kind)
    for text in ("interleaved", "bottom-top"):
        for students, depth in ((2, 2), (4, 2), (3, 3), (1, 6)):
            mapping = layer_mapping(text, students, depth, 6)
            assert fit_mapping(teacher, mapping) == mapping == choose_layers(text, students, depth, teacher)


def test_layers_of_other_windows_do_not_fit() -> None:
    teacher = AutoModel.from_config(LongformerConfig(**WIDE, attention_window=[4, 4, 8, 8, 16, 16]))
    assert choose_layers("interleaved", 2, 2, teacher) == [[0, 5], [1, 4]]
    assert fit_mapping(teacher, [[0, 3], [2, 5]]) == [[0, 3], [1, 2]]
    with pytest.raises(InputError, match="student 1 has layer 2 in place 0, which has 8, not 4; .* 0,3;1,3"):
        check_mapping(teacher, [[0, 3], [2, 3]])
    student = plain_student(teacher, [1, 3], ["a", "b"], "full", 0)
    assert student.config.attention_window == [4, 8]
