"""Checks of a classifier that was loaded: its class names, its tokenizer, its logits.

`what` names the flag and its value; errors begin with it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from nanonet.data.pairs import pair_form
from nanonet.errors import InputError
from nanonet.inference.forward import logits_of
from nanonet.models.dummy_inputs import dummy_inputs
from nanonet.models.load import check_tokenizer, check_vocabulary
from nanonet.models.pairs import check_text_pair, text_pair

CURE = "give a folder that nanonet train or save_pretrained wrote"
TOLERANCE = 1e-4  # of the largest logit


def checked_classes(model: Any, tokenizer: Any, what: str) -> list[str]:
    """The names of the classes, in logit order; InputError where model and tokenizer are no classifier."""
    check_tokenizer(tokenizer, what)
    check_vocabulary(tokenizer.pad_token_id, model, what)
    if text_pair(model.config) is not None:
        check_text_pair(model, pair_form(tokenizer).separator, what)
    names, kind = model.config.id2label, model.config.problem_type
    one_of_many = kind in (None, "single_label_classification") and len(names) > 1
    if not one_of_many or set(names) != set(range(len(names))):
        raise InputError(f"{what}: not a classifier into one of two or more classes; {CURE}")
    if len(set(names.values())) < len(names):
        raise InputError(f"{what}: two classes have one name; give each its own in config.json's id2label")
    return [str(names[i]) for i in range(len(names))]


def check_logits(logits: Tensor, what: str) -> None:
    if not logits.isfinite().all():
        raise InputError(f"{what}: its weights give logits that are not finite numbers; train it again")


@torch.inference_mode()
def check_padding(model: PreTrainedModel, pad_id: int, what: str) -> None:
    """Refuse a model whose logits for a text change with the padding of its batch."""
    ids, mask = dummy_inputs(model.config)
    alone, shown = ids[:1], mask[:1]
    padded, hidden = torch.full_like(alone, pad_id), torch.zeros_like(shown)
    wanted = logits_of(model)(alone, shown)
    got = logits_of(model)(torch.cat([alone, padded], 1), torch.cat([shown, hidden], 1))
    check_logits(wanted, what)
    if (got - wanted).abs().max() > TOLERANCE * wanted.abs().max().clamp(min=1):
        raise InputError(f"{what}: its logits depend on a text's padding; give a model that uses the attention mask")
