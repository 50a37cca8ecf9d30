"""Pairs of texts: what a model reads of them, found from the token ids alone.

The config of a model that was trained on pairs has `text_pair`: {"separator": id of the token between the texts,
"types": whether its forward takes token types, 0 for the first text and 1 for the second}. Models of single texts have
none. B rows, L tokens.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from nanonet.errors import InputError

MATCHED = 4  # features of a pair for each of a text: see `matched`


def text_pair(config: Any) -> Mapping[str, Any] | None:
    """`text_pair` of a config; None of a model of single texts."""
    found: Mapping[str, Any] | None = getattr(config, "text_pair", None)
    return found


def without_types(config: Any) -> dict[str, Any] | None:
    """`text_pair` of a config for another model, which finds by itself where the second text begins."""
    pair = text_pair(config)
    return None if pair is None else {**pair, "types": False}


def in_second_text(ids: Tensor, separator: int) -> Tensor:
    """(B,L) bool: the tokens after the first separator of their row."""
    ends = (ids == separator).long()
    return ends.cumsum(-1) > ends


def model_inputs(config: Any, ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """The arguments of a model's forward for ids and mask (B,L)."""
    inputs, pair = {"input_ids": ids, "attention_mask": mask}, text_pair(config)
    if pair and pair["types"]:
        inputs["token_type_ids"] = in_second_text(ids, pair["separator"]).long()
    return inputs


def set_text_pair(model: PreTrainedModel, separator: int | None, numbered: bool = False) -> None:
    """Let the model read pairs, or single texts where `separator` is None.

    numbered: whether its tokenizer numbers the texts of a pair.
    """
    config: Any = model.config
    if separator is not None:
        config.text_pair = {"separator": separator, "types": numbered and _takes_types(model)}
    elif text_pair(config) is not None:
        del config.text_pair


def _takes_types(model: PreTrainedModel) -> bool:
    types = getattr(model.config, "type_vocab_size", 0)
    return "token_type_ids" in inspect.signature(model.forward).parameters and types > 1


def check_text_pair(model: PreTrainedModel, separator: int | None, what: str) -> None:
    """Refuse a `text_pair` that does not fit the model, or its tokenizer, whose token between two texts is `separator`.

    Raises:
        InputError: it is damaged.
    """
    pair: Any = text_pair(model.config)
    if pair is None:
        return
    sound = isinstance(pair, dict) and pair.keys() == {"separator", "types"}
    if not (sound and pair["separator"] == separator and type(pair["types"]) is bool):
        raise InputError(f"{what}: text_pair in its config.json does not fit its tokenizer; get both from one place")
    if pair["types"] and not _takes_types(model):
        raise InputError(f"{what}: text_pair in its config.json asks for token types that the model does not have")


def masks_of_texts(config: Any, ids: Tensor, mask: Tensor) -> list[Tensor]:
    """The mask (B,L), or of a pair those of its first and of its second text."""
    pair = text_pair(config)
    if not pair:
        return [mask]
    second = in_second_text(ids, pair["separator"])
    return [mask * ~second, mask * second]


def matched(texts: Sequence[Tensor]) -> Tensor:
    """The features of a row by those (B,D) of its texts: of one its own, of two (B,4D): both, their distance, and their
    product. Source: Conneau et al. 2017 (arXiv 1705.02364).
    """
    if len(texts) == 1:
        return texts[0]
    first, second = texts
    return torch.cat([first, second, (first - second).abs(), first * second], -1)
