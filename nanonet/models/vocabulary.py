"""A smaller vocabulary: word pieces leave a tokenizer's JSON, and every text still has pieces.

What stays whatever is asked for: added and special tokens, single characters (also inside a word), bytes, and the
token of unknown words. Of BPE every piece that a kept piece is merged from stays too. So texts that are made of kept
pieces keep them: WordPiece takes the longest piece there is, BPE makes the same merges, Unigram finds the same path.

tokens: {id: piece} of the model, counts: how often each id occurs in the texts.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Collection, Mapping
from typing import Any

KINDS = ("WordPiece", "BPE", "Unigram")
BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")


def choose_pieces(
    tokenizer: Mapping[str, Any], counts: Mapping[int, int], most: int = 0, required: Collection[int] = ()
) -> list[int]:
    """The ids that stay, in rising order: those that occur in the texts, or the `most` most frequent of them, and all
    that have to. tokenizer: the JSON of the `tokenizers` library, of one of KINDS; required: ids that stay as well."""
    model, tokens = tokenizer["model"], _tokens(tokenizer["model"])
    used = sorted((i for i, count in counts.items() if count), key=lambda i: (-counts[i], i))
    kept = set(used[: most or len(used)]) | set(required) | {entry["id"] for entry in tokenizer["added_tokens"]}
    kept |= {i for i, piece in tokens.items() if _is_atom(piece, model)}
    if model["type"] == "Unigram":
        if model["unk_id"] is not None:
            kept.add(model["unk_id"])
        # an unknown character costs the least score of all, and some more
        kept.add(min(tokens, key=lambda i: model["vocab"][i][1]))
    elif model.get("unk_token") in model["vocab"]:
        kept.add(model["vocab"][model["unk_token"]])
    if model["type"] == "BPE":
        kept |= _merged_from(kept, tokens, model)
    known = set(tokens) | {entry["id"] for entry in tokenizer["added_tokens"]}
    return sorted(kept & known)


def cut_tokenizer(tokenizer: Mapping[str, Any], kept: Collection[int]) -> dict[str, Any]:
    """The JSON with the `kept` ids alone, numbered from 0 in their order; `tokenizer` is not changed."""
    new = {old: i for i, old in enumerate(sorted(kept))}
    cut: dict[str, Any] = copy.deepcopy(dict(tokenizer))
    model = cut["model"]
    if model["type"] == "Unigram":
        model["vocab"] = [entry for i, entry in enumerate(model["vocab"]) if i in new]
        model["unk_id"] = new.get(model["unk_id"])
    else:
        model["vocab"] = {piece: new[i] for piece, i in model["vocab"].items() if i in new}
    if model["type"] == "BPE":
        pieces, merges = model["vocab"], [(merge, _parts(merge)) for merge in model["merges"]]
        model["merges"] = [merge for merge, parts in merges if {*parts, _joined(parts, model)} <= pieces.keys()]
    for entry in cut["added_tokens"]:
        entry["id"] = new[entry["id"]]
    if cut.get("padding"):
        cut["padding"]["pad_id"] = new[cut["padding"]["pad_id"]]
    _renumber(cut.get("post_processor"), new)
    return cut


def _tokens(model: Mapping[str, Any]) -> dict[int, str]:
    if model["type"] == "Unigram":
        return {i: piece for i, (piece, _) in enumerate(model["vocab"])}
    return {i: piece for piece, i in model["vocab"].items()}


def _is_atom(piece: str, model: Mapping[str, Any]) -> bool:
    """Whether a piece is one character, a byte or nothing, apart from the marks of a word's inside or end."""
    bare = piece.removesuffix(model.get("end_of_word_suffix") or "")
    return min(len(bare), len(bare.removeprefix(_prefix(model)))) <= 1 or BYTE.fullmatch(piece) is not None


def _prefix(model: Mapping[str, Any]) -> str:
    return model.get("continuing_subword_prefix") or ""


def _parts(merge: Any) -> tuple[str, str]:
    """The two pieces of a merge: a pair, or `left right` in older files."""
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return left, right


def _joined(parts: tuple[str, str], model: Mapping[str, Any]) -> str:
    return parts[0] + parts[1].removeprefix(_prefix(model))


def _merged_from(kept: Collection[int], tokens: Mapping[int, str], model: Mapping[str, Any]) -> set[int]:
    """Every piece on a way of merges to a kept one."""
    ways: dict[str, list[tuple[str, str]]] = {}
    for merge in model["merges"]:
        parts = _parts(merge)
        ways.setdefault(_joined(parts, model), []).append(parts)
    found: set[str] = set()
    open_ = [tokens[i] for i in kept if i in tokens]
    while open_:
        piece = open_.pop()
        if piece not in found:
            found.add(piece)
            open_ += [part for parts in ways.get(piece, ()) for part in parts]
    return {model["vocab"][piece] for piece in found if piece in model["vocab"]}


def _renumber(processor: Any, new: Mapping[int, int]) -> None:
    """Give the special tokens of a post-processor their new ids."""
    for part in (processor or {}).get("processors", ()):
        _renumber(part, new)
    for name in ("sep", "cls"):
        if name in (processor or {}):
            processor[name][1] = new[processor[name][1]]
    special = (processor or {}).get("special_tokens", {})
    for entry in special.values() if isinstance(special, dict) else ():
        entry["ids"] = [new[i] for i in entry["ids"]]
