"""Which teacher layers each student starts from: a mapping holds one list of layers per student.

A student's slot 0 is its bottom layer. All students' layers of one slot must be of one kind: the same parameters and
the same attention. In ModernBERT the first layer has no attention norm, and only some layers attend to all tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedModel

from nanonet.errors import InputError
from nanonet.models.parts import PER_LAYER, find_parts

FLAG = "--layer-mapping"
NAMES = ("bottom-top", "interleaved")
CURE = "give `bottom-top`, `interleaved`, or one list per student such as `0,5;1,4`"


def choose_layers(text: str, students: int, depth: int, teacher: PreTrainedModel) -> list[list[int]]:
    """The mapping that `text` describes; one that is given by name is moved to layers that fit this teacher.

    depth: layers per student; 0 takes all.

    Raises:
        InputError: names the flag and the cure.
    """
    layers = teacher.config.num_hidden_layers
    mapping = layer_mapping(text, students, depth or layers, layers)
    return fit_mapping(teacher, mapping) if text in NAMES else mapping


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
        raise InputError(
            f"--student-layers {depth}: the encoder has {teacher_layers}; give 1 to {teacher_layers}, or 0 for all"
        )
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
                    f"{FLAG} {text!r}: there is no layer {layer}; the encoder's layers are 0 to {teacher_layers - 1}"
                )
    return mapping


@dataclass(frozen=True)
class LayerKind:
    """parameters: their names; settings: what the config says of this layer alone, such as its attention."""

    parameters: frozenset[str]
    settings: tuple[str, ...]


def fit_mapping(teacher: PreTrainedModel, mapping: Sequence[Sequence[int]]) -> list[list[int]]:
    """Each layer replaced by the nearest one that fits its slot.

    Where there is a choice: above the student's layer below, and not what another student has in that slot.
    """
    fitting = _fitting_layers(_layer_kinds(teacher), mapping)
    fitted: list[list[int]] = []
    for layers in mapping:
        chosen: list[int] = []
        for slot, layer in enumerate(layers):
            above = [i for i in fitting[slot] if not chosen or i > chosen[-1]] or fitting[slot]
            unused = [i for i in above if all(other[slot] != i for other in fitted)] or above
            chosen.append(layer if layer in above else _nearest(unused, layer))
        fitted.append(chosen)
    return fitted


def check_mapping(teacher: PreTrainedModel, mapping: Sequence[Sequence[int]]) -> None:
    """Refuse students whose layers do not fit their slots.

    Raises:
        InputError: names the student and the layer, and proposes a mapping that fits.
    """
    kinds = _layer_kinds(teacher)
    fitting = _fitting_layers(kinds, mapping)
    for k, layers in enumerate(mapping):
        for slot, layer in enumerate(layers):
            if layer in fitting[slot]:
                continue
            same_parameters = kinds[layer].parameters == kinds[slot].parameters
            settings = [", ".join(kinds[i].settings) for i in (layer, fitting[slot][0])]
            proposal = ";".join(",".join(map(str, chosen)) for chosen in fit_mapping(teacher, mapping))
            raise InputError(
                f"{FLAG}: student {k} has layer {layer} in place {slot}, which has"
                f" {f'{settings[0]}, not {settings[1]}' if same_parameters else 'other parts (norms)'};"
                f" this one fits: {proposal}"
            )


def _layer_kinds(teacher: PreTrainedModel) -> list[LayerKind]:
    """The kind of every layer."""
    layers = teacher.get_submodule(find_parts(teacher).layers[:-1])
    lists = [values for name in PER_LAYER if isinstance(values := getattr(teacher.config, name, None), list)]
    return [
        LayerKind(frozenset(name for name, _ in layer.named_parameters()), tuple(str(values[i]) for values in lists))
        for i, layer in enumerate(layers.children())
    ]


def _fitting_layers(kinds: Sequence[LayerKind], mapping: Sequence[Sequence[int]]) -> list[list[int]]:
    """For each slot the layers of its kind: the parameters of the teacher's layer there, the settings that student 0
    asks for."""
    fitting = []
    for slot, layer in enumerate(mapping[0]):
        buildable = [i for i, kind in enumerate(kinds) if kind.parameters == kinds[slot].parameters]
        wanted = kinds[_nearest(buildable, layer)]
        fitting.append([i for i in buildable if kinds[i] == wanted])
    return fitting


def _nearest(options: Sequence[int], layer: int) -> int:
    return min(options, key=lambda i: (abs(i - layer), i))
