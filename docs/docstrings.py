"""A griffe extension: a docstring's `Returns:` and `Raises:` become paragraphs.

griffe's parser wants a blank line before a section and `Name: text` in it. The docstrings have neither.
"""

from __future__ import annotations

import re
import textwrap
from typing import Any

from griffe import Extension, Object

SECTION = re.compile(r"^(Returns|Raises):\n((?: {4}.*(?:\n|$))+)", re.MULTILINE)


def paragraphs(docstring: str) -> str:
    return SECTION.sub(lambda m: f"\n**{m[1]}:** {textwrap.dedent(m[2]).strip()}\n\n", docstring)


class Paragraphs(Extension):
    def on_object(self, *, obj: Object, **_: Any) -> None:
        if obj.docstring:
            obj.docstring.value = paragraphs(obj.docstring.value)
