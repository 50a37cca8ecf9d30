"""What models read of a pair, from its token ids."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import BertConfig, BertModel, DistilBertConfig, DistilBertModel

from nanonet.errors import InputError
from nanonet.models.cnn import CnnConfig, CnnForSequenceClassification
from nanonet.models.dummy_inputs import dummy_inputs
from nanonet.models.pairs import check_text_pair, in_second_text, model_inputs, set_text_pair
from nanonet.models.static import StaticConfig, StaticForSequenceClassification

PAIR = {"separator": 9, "types": False}
SIZES: dict[str, Any] = {"vocab_size": 20, "embedding_size": 8, "dense_size": 8, "num_labels": 3, "text_pair": PAIR}
IDS = torch.tensor([[1, 5, 6, 9, 7, 9, 0, 0], [1, 9, 9, 4, 4, 4, 4, 9], [1, 2, 3, 4, 5, 6, 7, 8]])


def test_the_second_text_begins_behind_the_first_separator() -> None:
    wanted = [[0, 0, 0, 0, 1, 1, 1, 1], [0, 0, 1, 1, 1, 1, 1, 1], [0] * 8]
    assert in_second_text(IDS, 9).long().tolist() == wanted
    assert not in_second_text(IDS[:, :0], 9).numel()


def tiny(kind: str) -> Any:
    sizes = {"vocab_size": 20, "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 16}
    if kind == "distilbert":
        return DistilBertModel(DistilBertConfig(vocab_size=20, dim=8, hidden_dim=8, n_layers=1, n_heads=2))
    types = 2 if kind == "bert" else 1
    return BertModel(BertConfig(hidden_size=8, intermediate_size=8, type_vocab_size=types, **sizes))


@pytest.mark.parametrize(("kind", "types"), [("bert", True), ("one type", False), ("distilbert", False)])
def test_token_types_are_for_models_that_have_them(kind: str, types: bool) -> None:
    model, mask = tiny(kind), torch.ones_like(IDS)
    assert model_inputs(model.config, IDS, mask).keys() == {"input_ids", "attention_mask"}
    set_text_pair(model, 9, numbered=True)
    assert model.config.text_pair == {"separator": 9, "types": types}
    inputs = model_inputs(model.config, IDS, mask)
    assert ("token_type_ids" in inputs) == types and model(**inputs)
    assert (dummy_inputs(model.config)[0][:, 3] == 9).all()
    set_text_pair(model, 9, numbered=False)
    assert model.config.text_pair == {"separator": 9, "types": False}
    set_text_pair(model, None)
    assert not hasattr(model.config, "text_pair")


@pytest.mark.parametrize(
    "pair", [{}, 7, {"separator": 9}, {"separator": 8, "types": False}, {"separator": 9, "types": 1}]
)
def test_a_damaged_config_is_refused(pair: object) -> None:
    model = tiny("bert")
    model.config.text_pair = pair
    with pytest.raises(InputError, match="^--model m: text_pair in its config.json does not fit its tokenizer"):
        check_text_pair(model, 9, "--model m")
    model = tiny("one type")
    model.config.text_pair = {"separator": 9, "types": True}
    with pytest.raises(InputError, match="asks for token types that the model does not have"):
        check_text_pair(model, 9, "--model m")


@pytest.mark.parametrize("kind", ["cnn", "static"])
@torch.no_grad()
def test_students_of_words_tell_the_texts_of_a_pair_apart(kind: str) -> None:
    torch.manual_seed(0)
    if kind == "cnn":
        model: Any = CnnForSequenceClassification(CnnConfig(hidden_size=8, num_hidden_layers=2, **SIZES)).eval()
    else:
        model = StaticForSequenceClassification(StaticConfig(**SIZES)).eval()
        model.embeddings.weight[:, -1] = torch.randn(20)
    mask = (IDS != 0).long()
    logits = model(input_ids=IDS, attention_mask=mask).logits
    assert logits.isfinite().all()  # also of a single text
    # neither the padding nor what is under it matters, nor the token types that a tokenizer gives
    short = model(input_ids=IDS[:1, :6], attention_mask=mask[:1, :6], token_type_ids=IDS[:1, :6]).logits
    other = IDS.where(mask == 1, 13)
    torch.testing.assert_close(short, logits[:1])
    torch.testing.assert_close(model(input_ids=other, attention_mask=mask).logits, logits)
    swapped = torch.tensor([[1, 7, 9, 5, 6, 9]])
    assert (model(input_ids=swapped).logits - logits[:1]).abs().max() > 1e-3
