"""Class names that come from elsewhere than the labels: from labels.json, or from a teacher, renamed by --class-map."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import yaml

from nanonet.data.labels import Names, check_unicode, one_form
from nanonet.data.lines import check_regular
from nanonet.data.problems import listing, problem, shorten
from nanonet.errors import InputError

NAMES_BYTES = 10_000_000  # the largest file of names
SHOWN = 20  # names that a message lists


def read_classes(path: Path) -> list[str]:
    """Return the class names of a `labels.json`. Raises InputError unless they are two or more different names."""
    cure = 'write a list of two or more different names, such as ["negative", "positive"]'
    check_regular(path)
    if path.stat().st_size > NAMES_BYTES:
        raise problem(path, f"more than {NAMES_BYTES} bytes: {cure}")
    try:
        names = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise problem(path, f"not JSON ({shorten(str(error))}): {cure}") from error
    except OSError as error:
        raise problem(path, f"cannot be read ({error.strerror}): check its permissions") from error
    if not isinstance(names, list) or not all(isinstance(name, str) and name.strip() for name in names):
        raise problem(path, f"{shorten(names, 30)} is no list of names: {cure}")
    names = [one_form(check_unicode(name, "name", path, "", "")) for name in names]
    if len(names) < 2 or len(set(names)) < len(names):
        raise problem(path, f"{len(names)} names, {len(set(names))} different: {cure}")
    return names


def labels_beside(path: Path) -> Names | None:
    """Return the class names of the `labels.json` in a folder or beside a file; None without one. Raises InputError."""
    file = (path if path.is_dir() else path.parent) / "labels.json"
    return Names(read_classes(file), counted=True, given=True) if file.exists() else None


def read_class_map(class_map: str) -> dict[str, str]:
    """Return {name: the data's name} of a YAML file, as they are written: a class `1` or `yes` is text. "" is empty.

    Raises InputError.
    """
    if not class_map:
        return {}
    path = Path(class_map).expanduser()
    cure = "write lines such as `LABEL_0: sports`"
    check_regular(path)
    if path.stat().st_size > NAMES_BYTES:
        raise problem(path, f"more than {NAMES_BYTES} bytes: {cure}")
    try:
        node = yaml.compose(path.read_text(encoding="utf-8-sig"), Loader=yaml.SafeLoader)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise problem(path, f"not YAML ({shorten(str(error))}): {cure}") from error
    except OSError as error:
        raise problem(path, f"cannot be read ({error.strerror}): check its permissions") from error
    pairs = node.value if isinstance(node, yaml.MappingNode) else []
    if not pairs or not all(isinstance(part, yaml.ScalarNode) and part.value for pair in pairs for part in pair):
        raise problem(path, f"no table of names: {cure}")
    names = {one_form(old.value): one_form(new.value) for old, new in pairs}
    if len(names) < len(pairs):
        raise problem(path, "a class stands there twice: keep one of its lines")
    return names


def rename_classes(names: Sequence[str], class_map: Mapping[str, str], what: str) -> list[str]:
    """Return the names in one form, those that are keys of `class_map` renamed.

    what: whose names they are, for the message.

    Raises:
        InputError: two classes would have one name.
    """
    new = [class_map.get(name, name) for name in map(one_form, names)]
    for name, count in Counter(new).items():
        if count > 1:
            raise InputError(f"{what}: two of its classes would be {shorten(name, 40)}; rename them by --class-map")
    return new


def check_class_map(class_map: Mapping[str, str], names: Iterable[str], path: str) -> None:
    """Raise InputError where a class that the map renames is not among the names."""
    known = {one_form(name): None for name in names}
    for old in class_map:
        if old not in known:
            raise InputError(
                f"--class-map {path}: there is no class {shorten(old, 40)}; they are {listing(known, SHOWN)}"
            )


def match_classes(data: Sequence[str], given: Sequence[str], what: str, further: str = "") -> list[int]:
    """Return where each class of the data stands among the classes that are `given`, in any order.

    what: whose classes they are; further: another cure than to rename them, for the message.

    Raises:
        InputError: they are others; names both lists.
    """
    if set(data) != set(given):
        raise InputError(
            f"{what}: its classes are {listing(given, SHOWN)}, those of the data are {listing(data, SHOWN)};"
            f" rename them by --class-map{further}"
        )
    return [given.index(name) for name in data]
