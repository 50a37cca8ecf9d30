"""A kept teacher: a classifier with the logits of the encoder, its pooling and its head."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.text import jsonl, read_jsonl, write_files
from torch.nn.functional import normalize
from transformers import AutoModel, pipeline

import nanonet
from nanonet.config.train import TrainConfig
from nanonet.errors import InputError
from nanonet.models.load import load_encoder
from nanonet.models.pooled import pool, pooled_classifier
from nanonet.models.pooling import pooling_of
from nanonet.models.static import StaticConfig, StaticForSequenceClassification
from nanonet.training.output_folder import OURS
from nanonet.training.pipeline import train


@pytest.mark.parametrize("pooling", ["mean", "cls", "max"])
def test_it_has_the_logits_of_its_parts(tiny_encoder: Path, pooling: str) -> None:
    encoder, weight, bias = AutoModel.from_pretrained(tiny_encoder).eval(), torch.randn(3, 32), torch.randn(3)
    model = pooled_classifier(encoder, pooling, weight, bias, ["a", "b", "c"])
    ids, mask = torch.tensor([[2, 5, 6, 3], [2, 7, 3, 0]]), torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])
    with torch.no_grad():
        hidden = encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        rows = {"mean": [hidden[0].mean(0), hidden[1, :3].mean(0)], "cls": list(hidden[:, 0])}
        rows["max"] = [hidden[0].amax(0), hidden[1, :3].amax(0)]
        wanted = normalize(torch.stack(rows[pooling]), dim=-1) @ weight.T + bias
        got = model(input_ids=ids, attention_mask=mask, labels=torch.tensor([0, 1]))
        torch.testing.assert_close(pool(hidden, mask, pooling), torch.stack(rows[pooling]))
    torch.testing.assert_close(got.logits, wanted)
    torch.testing.assert_close(got.loss, torch.nn.functional.cross_entropy(wanted, torch.tensor([0, 1])))


@pytest.mark.parametrize("mode", ["frozen", "online"])
def test_a_run_keeps_its_teacher(mode: str, tiny_encoder: Path, tiny_data: Path, tmp_path: Path) -> None:
    config = TrainConfig(
        output=str(tmp_path / "run"),
        data=str(tiny_data),
        teacher=str(tiny_encoder),
        teacher_mode=mode,  # type: ignore[arg-type]
        labels_per_class=4,
        teacher_steps=3,
        steps=3,
        students=1,
        targets="classifier",
        max_tokens=32,
        keep_teacher=True,
    )
    report = train(config)
    kept = nanonet.load(tmp_path / "run" / "teacher-classifier")
    rows = read_jsonl(tiny_data / "test.jsonl")
    found = kept.predict([row["text"] for row in rows])
    accuracy = sum(a == row["label"] for a, row in zip(found, rows, strict=True)) / len(rows)
    assert accuracy == pytest.approx(report["teacher"]["accuracy"], abs=1e-6)
    classify = pipeline("text-classification", model=str(tmp_path / "run" / "teacher-classifier"))
    assert [answer["label"] for answer in classify([row["text"] for row in rows[:9]])] == found[:9]
    assert not (tmp_path / "run" / "teacher").exists()
    assert OURS.fullmatch("teacher-classifier")  # --overwrite replaces it
    # and it teaches: its head makes the soft labels, its encoder is what the students start from
    unlabelled = write_files(tmp_path, {"few.jsonl": jsonl({"text": row["text"]} for row in rows)}) / "few.jsonl"
    teacher = str(tmp_path / "run" / "teacher-classifier")
    pupil = TrainConfig(output=str(tmp_path / "pupil"), data=str(unlabelled), teacher=teacher, steps=2, max_tokens=32)
    assert train(pupil)["teacher"]["targets"] == "head"
    word = nanonet.load(tmp_path / "pupil" / "student-0").model.get_input_embeddings().weight[-1]
    assert (kept.model.get_input_embeddings().weight == word).all(-1).any()  # embeddings are not trained


@pytest.mark.parametrize("pooling", ["mean", "cls", "max"])
def test_a_kept_teacher_is_an_encoder_again(pooling: str, tiny_encoder: Path, tmp_path: Path) -> None:
    encoder = load_encoder(str(tiny_encoder))
    model = pooled_classifier(encoder, pooling, torch.randn(2, 32), torch.zeros(2), ["a", "b"])
    model.save_pretrained(tmp_path)
    assert pooling_of(str(tmp_path), True) == pooling
    again = load_encoder(str(tmp_path))
    assert type(again) is type(encoder)
    write_files(tmp_path, {"config.json": (tmp_path / "config.json").read_text().replace(f'"{pooling}"', '"median"')})
    with pytest.raises(InputError, match="cannot load it .*pooling is 'median'"):
        load_encoder(str(tmp_path))
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in encoder.state_dict().items())


def test_a_student_without_layers_is_no_start(tmp_path: Path) -> None:
    StaticForSequenceClassification(StaticConfig(vocab_size=20)).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="nanonet_static has no layers .*an encoder as --student-model"):
        load_encoder(str(tmp_path))
