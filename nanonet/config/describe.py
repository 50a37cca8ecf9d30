"""Help texts and headings of a config, read from the comments above its fields."""

from __future__ import annotations

import dataclasses
import inspect


def describe(config: type) -> dict[str, str]:
    """Return {field: help text}, read from the comments above the fields of the dataclass `config`."""
    texts: dict[str, str] = {}
    block: list[str] = []
    names = {f.name for f in dataclasses.fields(config)}
    for line in inspect.getsource(config).splitlines():
        line = line.strip()
        if line.startswith("# ---"):
            block = []
        elif line.startswith("#"):
            block.append(line.lstrip("# "))
        else:
            name = line.split(":")[0]
            if name in names:
                texts[name] = " ".join(block)
            block = []
    return texts


def sections(config: type) -> dict[str, str]:
    """Return {field: heading}, the `# --- heading` that the field stands under; "" before the first."""
    found: dict[str, str] = {}
    heading = ""
    names = {f.name for f in dataclasses.fields(config)}
    for line in map(str.strip, inspect.getsource(config).splitlines()):
        if line.startswith("# ---"):
            heading = line.lstrip("# -")
        elif line.split(":")[0] in names:
            found[line.split(":")[0]] = heading
    return found
