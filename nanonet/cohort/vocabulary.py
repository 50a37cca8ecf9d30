"""An encoder and its tokenizer with fewer word pieces, for students; the originals are not changed. V pieces."""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoTokenizer, PreTrainedModel

from nanonet.models.load import quiet
from nanonet.models.pairs import text_pair
from nanonet.models.pooled import PooledConfig
from nanonet.models.vocabulary import KINDS, choose_pieces, cut_tokenizer

SMALL_ID = 100
TOKENIZER, SETTINGS = "tokenizer.json", "tokenizer_config.json"
# files of a tokenizer without the ids; the others hold the whole vocabulary in another form
KEPT_FILES = {TOKENIZER, SETTINGS, "special_tokens_map.json", "chat_template.jinja"}


def why_whole(encoder: PreTrainedModel, tokenizer: Any) -> str:
    """Why the vocabulary cannot be cut; "" where it can."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return "its tokenizer has no tokenizer.json"
    kind = json.loads(backend.to_str())["model"]["type"]
    if kind not in KINDS:
        return f"its tokenizer is of the kind {kind}, not {', '.join(KINDS)}"
    tables = [p for p in encoder.parameters() if p.shape[:1] == (encoder.config.vocab_size,)]
    if len(tables) != 1 or tables[0] is not _words(encoder).weight:
        return "its word embeddings are not one table"
    return ""


def pieces_for(encoder: PreTrainedModel, tokenizer: Any, counts: Mapping[int, int], most: int = 0) -> list[int]:
    """The ids that stay: see `choose_pieces`; what the encoder's config and the tokenizer name is required."""
    padding = tokenizer.pad_token_id
    # RoBERTa counts positions from the padding's id: where it is small it stays as it is
    required = {*tokenizer.all_special_ids, *(range(padding) if padding < SMALL_ID else ())}
    for value in _ids(encoder.config).values():
        required |= set(value) if isinstance(value, list) else {value}
    return choose_pieces(json.loads(tokenizer.backend_tokenizer.to_str()), counts, most, required)


def smaller_tokenizer(tokenizer: Any, kept: Collection[int]) -> Any:
    """The tokenizer with the `kept` ids alone, numbered from 0: written as its JSON and loaded by transformers."""
    with tempfile.TemporaryDirectory() as place, quiet():
        folder = Path(place)
        tokenizer.save_pretrained(folder)
        for path in folder.iterdir():
            if path.name not in KEPT_FILES:
                path.unlink()
        cut = cut_tokenizer(json.loads(tokenizer.backend_tokenizer.to_str()), kept)
        (folder / TOKENIZER).write_text(json.dumps(cut, ensure_ascii=False), encoding="utf-8")
        settings = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
        settings.pop("added_tokens_decoder", None)  # by old ids; tokenizer.json has the same
        (folder / SETTINGS).write_text(json.dumps(settings, ensure_ascii=False), encoding="utf-8")
        smaller = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    smaller.name_or_path = tokenizer.name_or_path
    return smaller


def smaller_encoder(encoder: PreTrainedModel, kept: Collection[int]) -> PreTrainedModel:
    """The encoder with the embeddings of the `kept` ids; every other weight is shared with `encoder`, not copied."""
    shared = {id(t): t for t in (*encoder.parameters(), *encoder.buffers())}
    smaller: PreTrainedModel = copy.deepcopy(encoder, shared)
    cut_words(smaller, kept)
    return smaller.eval()


@torch.no_grad()
def cut_words(model: PreTrainedModel, kept: Collection[int]) -> None:
    """Leave the embeddings of the `kept` ids alone, of an encoder or of a cohort's model, in place.

    A tensor that other models share is not changed. Students are cut when they are built: the draw of a head depends
    on the size of the embeddings before it.
    """
    rows, words = sorted(kept), _words(model)
    new = {old: i for i, old in enumerate(rows)}
    table = words.weight.detach()[..., rows, :].clone()  # (V,D), or (K,V,D) where each student has its own
    words.weight = nn.Parameter(table, requires_grad=words.weight.requires_grad)
    if isinstance(words, nn.Embedding):
        words.num_embeddings = len(rows)
        words.padding_idx = None if words.padding_idx is None else new.get(words.padding_idx)
    inner: Any = model.base_model.config
    for config in {id(each): each for each in (model.config, inner)}.values():
        for name, value in _ids(config).items():
            setattr(config, name, [new[i] for i in value] if isinstance(value, list) else new.get(value))
        if pair := text_pair(config):
            config.text_pair = {**pair, "separator": new[pair["separator"]]}
        config.vocab_size = len(rows)
    if isinstance(model.config, PooledConfig):
        model.config.encoder = inner.to_dict()


def _words(encoder: PreTrainedModel) -> Any:
    return encoder.get_input_embeddings()


def _ids(config: Any) -> dict[str, Any]:
    """The ids of tokens that a config names."""
    found = {name: value for name, value in config.to_dict().items() if name.endswith("_token_id")}
    return {name: value for name, value in found.items() if isinstance(value, int | list)}
