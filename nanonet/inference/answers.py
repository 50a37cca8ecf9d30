"""Predictions as lines of JSON, a chunk at a time: one template for all rows, not an encoder's walk through each."""

from __future__ import annotations

import re
from dataclasses import dataclass
from json.encoder import encode_basestring, encode_basestring_ascii

import numpy as np
from torch import Tensor

# DEL, C1, marks of direction, separators of lines
_CONTROL = re.compile("[\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]")
DECIMALS = 6


@dataclass(frozen=True)
class Layout:
    """What a row shows. classes: in logit order. text: repeat it. threshold: PredictConfig's. narrow: ASCII alone."""

    classes: list[str]
    text: bool
    threshold: float
    narrow: bool


def to_json(text: str, narrow: bool) -> str:
    """A string in JSON, in which a character that a terminal would obey is an escape. narrow: ASCII alone."""
    quoted = encode_basestring_ascii(text) if narrow else encode_basestring(text)
    if quoted.isprintable():  # none of _CONTROL is
        return quoted
    return _CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", quoted)


def json_lines(
    texts: list[dict[str, str]], probabilities: Tensor, rows: list[int], layout: Layout
) -> tuple[list[str], int]:
    """A line for every text, without its end, and how many are unsure.

    probabilities (n,C): of the n texts whose numbers are `rows`; the others are answered with null.
    """
    names = [to_json(name, layout.narrow) for name in layout.classes]
    columns = ", ".join(f"{name.replace('%', '%%')}: %r" for name in names)
    template = f'"label": %s, "probability": %r, "probabilities": {{{columns}}}'
    nothing = '"label": null, "probability": null, "probabilities": null'
    if layout.threshold:
        template, nothing = f'{template}, "unsure": %s', f'{nothing}, "unsure": null'
    best = probabilities.argmax(-1).tolist()
    answers, unsure = [nothing] * len(texts), 0
    for row, c, p in zip(rows, best, np.round(probabilities.double().numpy(), DECIMALS).tolist(), strict=True):
        # compared as it is written: a row never contradicts itself
        if not layout.threshold:
            answers[row] = template % (names[c], p[c], *p)
        elif p[c] < layout.threshold:
            answers[row] = template % ("null", p[c], *p, "true")
            unsure += 1
        else:
            answers[row] = template % (names[c], p[c], *p, "false")
    if not layout.text:
        return [f"{{{answer}}}" for answer in answers], unsure
    keys = [to_json(name, layout.narrow) for name in texts[0]]  # those of a table are the same in all its rows
    shown = "{" + "".join(f"{key.replace('%', '%%')}: %s, " for key in keys) + "%s}"
    return [
        shown % (*(to_json(text, layout.narrow) for text in found.values()), answer)
        for found, answer in zip(texts, answers, strict=True)
    ], unsure
