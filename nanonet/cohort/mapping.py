"""Which teacher layers each student starts from."""

from __future__ import annotations

from nanonet.errors import InputError

FLAG = "--layer-mapping"
CURE = "give `bottom-top`, `interleaved`, or one list per student such as `0,5;1,4`"


def layer_mapping(text: str, students: int, depth: int, teacher_layers: int) -> list[list[int]]:
    """Read `text` into one list of teacher layers per student: K lists of `depth` indices, 0 the bottom.

    bottom-top: student 0 takes the bottom block, the last student the top block, those between even steps.
    interleaved: student k spreads its layers evenly from layer k to the k-th last.
    0,5;1,4: as written.

    Raises:
        InputError: names the flag and the cure.
    """
    if students < 1:
        raise InputError(f"--students {students}: a cohort needs at least one student; give 1 or more")
    if not 1 <= depth <= teacher_layers:
        raise InputError(f"--student-layers {depth}: the teacher has {teacher_layers}; give 1 to {teacher_layers}")
    if text == "bottom-top":
        return [_bottom_top(k, students, depth, teacher_layers) for k in range(students)]
    if text == "interleaved":
        return [_interleaved(k, depth, teacher_layers) for k in range(students)]
    return _explicit(text, students, depth, teacher_layers)


def _between(low: int, high: int, i: int, steps: int) -> int:
    """low + (high - low) i / steps, rounded half up; low where there is no step to make."""
    return low if steps == 0 else low + (2 * i * (high - low) + steps) // (2 * steps)


def _bottom_top(k: int, students: int, depth: int, teacher_layers: int) -> list[int]:
    start = _between(0, teacher_layers - depth, k, students - 1)
    return list(range(start, start + depth))


def _interleaved(k: int, depth: int, teacher_layers: int) -> list[int]:
    # an offset that leaves room for `depth` layers; later students start over
    offset = k % ((teacher_layers - depth) // 2 + 1)
    return [_between(offset, teacher_layers - 1 - offset, i, depth - 1) for i in range(depth)]


def _explicit(text: str, students: int, depth: int, teacher_layers: int) -> list[list[int]]:
    lists = [part.split(",") for part in text.split(";")]
    try:
        mapping = [[int(item) for item in items] for items in lists]
    except ValueError:
        raise InputError(f"{FLAG} {text!r} is not understood: {CURE}") from None
    if len(mapping) != students:
        raise InputError(f"{FLAG} {text!r} has {len(mapping)} lists for --students {students}: {CURE}")
    for k, layers in enumerate(mapping):
        if len(layers) != depth:
            raise InputError(
                f"{FLAG} {text!r}: list {k + 1} has {len(layers)} layers, --student-layers is {depth}: make them equal"
            )
        for layer in layers:
            if not 0 <= layer < teacher_layers:
                raise InputError(
                    f"{FLAG} {text!r}: there is no layer {layer}; the teacher's layers are 0 to {teacher_layers - 1}"
                )
    return mapping
