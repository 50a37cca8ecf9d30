"""A cut vocabulary: texts of kept pieces keep their pieces, others still have some, and transformers loads it."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, BertConfig, BertModel, PreTrainedTokenizerFast

from nanonet.cohort.vocabulary import pieces_for, smaller_encoder, smaller_tokenizer, why_whole
from nanonet.models.vocabulary import choose_pieces, cut_tokenizer

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
CORPUS = [
    "the lower river flows slowly below the mill",
    "newest widest lowest rivers and the slowest flow",
    "a miller mills flour lower than the newest mill did",
    "unhappily the unhappiest man was happier than happy",
] * 5
USED = ["the lower rivers flow", "newest mills", "happy \u2603 unhappily"]
OTHER = "widest flour miller"


def trained(kind: str) -> Tokenizer:
    if kind == "WordPiece":
        tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        trainer = trainers.WordPieceTrainer(vocab_size=130, special_tokens=SPECIAL)
    elif kind == "BPE":
        tokenizer = Tokenizer(models.BPE())
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=360, special_tokens=SPECIAL, initial_alphabet=alphabet)
    else:
        tokenizer = Tokenizer(models.Unigram())
        trainer = trainers.UnigramTrainer(vocab_size=90, special_tokens=SPECIAL, unk_token="[UNK]")
    if kind == "WordPiece":
        tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    elif kind == "BPE":
        tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(), decoders.ByteLevel()
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_tokens(["<extra>"])  # after the vocabulary: its id moves
    ends = [(name, tokenizer.token_to_id(name)) for name in ("[SEP]", "[CLS]")]
    if kind == "WordPiece":
        tokenizer.post_processor = processors.BertProcessing(*ends)
    else:
        tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    tokenizer.enable_padding(pad_id=0, pad_token="[PAD]")
    return tokenizer


def counts(tokenizer: Tokenizer, texts: list[str]) -> Counter:
    return Counter(i for text in texts for i in tokenizer.encode(text).ids)


@pytest.mark.parametrize("kind", ["WordPiece", "BPE", "Unigram"])
def test_the_texts_keep_their_pieces_and_every_other_word_has_some(kind: str) -> None:
    tokenizer = trained(kind)
    before = json.loads(tokenizer.to_str())
    kept = choose_pieces(before, counts(tokenizer, USED))
    assert len(kept) < tokenizer.get_vocab_size()
    smaller = Tokenizer.from_str(json.dumps(cut_tokenizer(before, kept)))
    assert json.loads(tokenizer.to_str()) == before and smaller.get_vocab_size() == len(kept)
    new = {old: i for i, old in enumerate(kept)}
    for text in (*USED, "a <extra> mill"):
        old, cut = tokenizer.encode(text), smaller.encode(text)
        if text in USED:
            assert cut.tokens == old.tokens and cut.ids == [new[i] for i in old.ids]
        assert "<extra>" in cut.tokens or text in USED
    assert "".join(t.removeprefix("##") for t in smaller.encode(OTHER).tokens if t not in SPECIAL).replace(
        "\u2581", ""
    ).replace("\u0120", "") == OTHER.replace(" ", "")
    assert smaller.encode(OTHER).tokens != tokenizer.encode(OTHER).tokens, "nothing that they use was cut"


@pytest.mark.parametrize("kind", ["WordPiece", "BPE", "Unigram"])
def test_a_number_keeps_the_most_frequent(kind: str) -> None:
    tokenizer = trained(kind)
    data, found = json.loads(tokenizer.to_str()), counts(tokenizer, CORPUS)
    least, few, every = (len(choose_pieces(data, some, 3)) for some in ({}, found, found))
    assert least <= few == every < len(choose_pieces(data, found, 1000)) == len(choose_pieces(data, found))
    long = [i for i in found if len(tokenizer.id_to_token(i)) > 3 and tokenizer.id_to_token(i) not in SPECIAL]
    top = max(long, key=lambda i: found[i])
    assert top in choose_pieces(data, {top: 2, **{i: 1 for i in long if i != top}}, 1)


def test_bpe_keeps_what_a_piece_is_merged_from() -> None:
    vocab = {piece: i for i, piece in enumerate(["a", "b", "c", "ab", "abc", "bc", "cc"])}
    model = {"type": "BPE", "vocab": vocab, "merges": [["a", "b"], ["ab", "c"], "b c", ["c", "c"]], "unk_token": None}
    data = {"model": model, "added_tokens": [], "post_processor": None, "padding": None}
    kept = choose_pieces(data, {vocab["abc"]: 1})
    assert [piece for piece, i in vocab.items() if i in kept] == ["a", "b", "c", "ab", "abc"]
    cut = cut_tokenizer(data, kept)["model"]
    assert cut["merges"] == [["a", "b"], ["ab", "c"]] and cut["vocab"]["abc"] == 4


@pytest.mark.parametrize("kind", ["WordPiece", "BPE", "Unigram"])
def test_transformers_loads_it_and_the_encoder_answers_as_before(kind: str, tmp_path: Path) -> None:
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token"), SPECIAL, strict=True))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=trained(kind), model_max_length=64, **names)
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    encoder = BertModel(BertConfig(vocab_size=len(tokenizer) + 5, pad_token_id=0, sep_token_id=3, **sizes)).eval()
    assert why_whole(encoder, tokenizer) == ""
    kept = pieces_for(encoder, tokenizer, Counter(i for ids in tokenizer(USED)["input_ids"] for i in ids))
    smaller, cut = smaller_encoder(encoder, kept), smaller_tokenizer(tokenizer, kept)
    cut.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path, local_files_only=True)
    new = {old: i for i, old in enumerate(kept)}
    for name in names:
        assert getattr(loaded, f"{name}_id") == new[getattr(tokenizer, f"{name}_id")]
    assert len(loaded) == len(kept) == smaller.config.vocab_size < len(encoder.get_input_embeddings().weight)
    assert smaller.config.sep_token_id == new[3]
    wanted, got = (t(USED, padding=True, return_tensors="pt") for t in (tokenizer, loaded))
    with torch.no_grad():
        states = [
            model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
            for model, batch in ((encoder, wanted), (smaller, got))
        ]
    assert torch.equal(*states)
    shared = smaller.encoder.layer[0].output.dense.weight
    assert shared is encoder.encoder.layer[0].output.dense.weight, "copied, not shared"


def test_the_paddings_id_stays_where_it_is() -> None:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=trained("WordPiece"), unk_token="[UNK]")
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(40)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    encoder = BertModel(BertConfig(vocab_size=len(tokenizer), **sizes))
    kept = pieces_for(encoder, tokenizer, {})
    assert kept[:41] == list(range(41)) and len(kept) < len(tokenizer)
