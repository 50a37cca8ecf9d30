"""Tiny random encoders of many architectures, from a folder on disk to a student that transformers loads; what is no
encoder of texts is refused in one line before that."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from support.encoders import COMMON, CONFIGS, WIDE
from transformers import (
    AlbertConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    BigBirdConfig,
    BloomConfig,
    CamembertConfig,
    CLIPConfig,
    DebertaConfig,
    EuroBertConfig,
    FNetConfig,
    GPT2Config,
    LayoutLMConfig,
    LongformerConfig,
    NomicBertConfig,
    PhiConfig,
    PreTrainedConfig,
    PreTrainedModel,
    RoFormerConfig,
    SqueezeBertConfig,
    T5Config,
    T5EncoderModel,
    ViTConfig,
    XLMRobertaConfig,
    YosoConfig,
)

from nanonet.cohort.extract import save_student
from nanonet.cohort.mapping import choose_layers
from nanonet.cohort.stack import build_cohort
from nanonet.errors import InputError
from nanonet.models.checks import check_encoder
from nanonet.models.load import load_encoder

STACKED = {
    **{kind: config for kind, config in CONFIGS.items() if kind != "deberta"},
    "xlm-roberta": XLMRobertaConfig(**WIDE),
    "camembert": CamembertConfig(**WIDE),
    "roformer": RoFormerConfig(**WIDE, embedding_size=32),
    "nomic": NomicBertConfig(**WIDE),
    "bigbird": BigBirdConfig(**WIDE),
}
ONE_BY_ONE = {
    "deberta-v2": CONFIGS["deberta"],
    "deberta": DebertaConfig(**WIDE, relative_attention=True, pos_att_type=["c2p", "p2c"]),
    "longformer": LongformerConfig(**WIDE, attention_window=4),
    "squeezebert": SqueezeBertConfig(**WIDE, embedding_size=32),
    "eurobert": EuroBertConfig(
        **WIDE, num_key_value_heads=4, pad_token_id=0, mask_token_id=3, bos_token_id=1, eos_token_id=2
    ),
}
SMALL = {"vocab_size": 97, "hidden_size": 32, "n_layer": 6, "n_head": 4}
REFUSED = {
    "albert": (AlbertConfig(**WIDE, embedding_size=16), "no encoder whose layers can be chosen"),
    "fnet": (FNetConfig(**WIDE), "depend on the padding beside a text"),
    "yoso": (YosoConfig(**WIDE), "depend on the padding beside a text"),
    "t5": (T5Config(vocab_size=97, d_model=32, d_kv=8, d_ff=48, num_layers=6, num_heads=4), "encoder with a decoder"),
    "gpt2": (GPT2Config(vocab_size=97, n_embd=32, n_layer=6, n_head=4), "is a decoder"),
    "phi": (PhiConfig(**WIDE), "is a decoder"),
    "bloom": (BloomConfig(**SMALL), "is a decoder"),
    "clip": (CLIPConfig(), "reads more than text"),
    "layoutlm": (LayoutLMConfig(**WIDE), "reads more than text"),
    "vit": (ViTConfig(**COMMON | {"vocab_size": None}), "does not read text"),
}


def draw(config: PreTrainedConfig) -> PreTrainedModel:
    torch.manual_seed(0)
    model = AutoModel.from_config(copy.deepcopy(config))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.2 + (parameter == 1))
    return model.eval()


@pytest.mark.parametrize("kind", [*STACKED, *ONE_BY_ONE])
def test_an_encoder_becomes_students_that_transformers_loads(kind: str, tmp_path: Path, batch, capsys) -> None:
    draw({**STACKED, **ONE_BY_ONE}[kind]).save_pretrained(tmp_path / "teacher")
    teacher = load_encoder(str(tmp_path / "teacher"))
    check_encoder(teacher, layers=True)
    cohort = build_cohort(teacher, choose_layers("interleaved", 2, 2, teacher), ["a", "b", "c"], "full")
    assert cohort.students_at_once == (1 if kind in ONE_BY_ONE else 2)
    assert ("one at a time" in capsys.readouterr().err) == (kind in ONE_BY_ONE)
    before = [tensor.clone() for tensor in cohort.parameters()]
    optimizer = torch.optim.SGD([p for p in cohort.parameters() if p.requires_grad], 0.1)
    torch.nn.functional.cross_entropy(cohort(*batch).logits.flatten(0, 1), torch.arange(12) % 3).backward()
    optimizer.step()
    assert any(not torch.equal(p, old) for p, old in zip(cohort.parameters(), before, strict=True))
    cohort.eval()
    logits = cohort(*batch).logits
    for k in range(2):
        save_student(cohort, k, tmp_path / "student")  # compares keys and logits itself
        model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "student").eval()
        got = model(input_ids=batch[0], attention_mask=batch[1]).logits
        torch.testing.assert_close(got, logits[k], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", sorted((STACKED | ONE_BY_ONE).keys() - {"eurobert"}))
def test_the_features_are_what_the_classifier_reads(kind: str, batch) -> None:
    teacher = draw({**STACKED, **ONE_BY_ONE}[kind])
    cohort = build_cohort(teacher, choose_layers("interleaved", 2, 2, teacher), ["a", "b", "c"], "full").eval()
    logits, features = cohort(*batch, features=cohort.classifier)
    layer = cohort.model.get_submodule(cohort.classifier)
    torch.testing.assert_close(features @ layer.weight.mT + layer.bias[:, None], logits, rtol=1e-4, atol=1e-4)


def test_a_head_that_reads_every_token_has_no_features(batch) -> None:
    teacher = draw(ONE_BY_ONE["eurobert"])
    cohort = build_cohort(teacher, [[0, 5], [0, 5]], ["a", "b", "c"], "full")
    with pytest.raises(InputError, match="--relation-weight: classifier of EuroBert.* reads every token"):
        cohort(*batch, features=cohort.classifier)


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_encoder_of_texts_is_refused(kind: str, tmp_path: Path) -> None:
    config, words = REFUSED[kind]
    draw(config).save_pretrained(tmp_path)
    with pytest.raises(InputError, match=words) as caught:
        check_encoder(load_encoder(str(tmp_path)), layers=True)
    assert "\n" not in str(caught.value) and str(caught.value).startswith("--teacher")


def test_the_encoder_of_t5_is_refused(tmp_path: Path) -> None:
    T5EncoderModel(copy.deepcopy(REFUSED["t5"][0])).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="--teacher .*t5 is an encoder with a decoder; give an encoder such as"):
        load_encoder(str(tmp_path))
