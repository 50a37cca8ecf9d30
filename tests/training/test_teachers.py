"""Teachers of every kind: a tuned encoder, a trained classifier, files of soft labels; students of another encoder."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.text import jsonl, read_jsonl, write_files
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GPT2Config,
    GPT2Model,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaModel,
)

from nanonet.cli.main import main
from nanonet.config.settings import data_settings
from nanonet.config.train import TrainConfig
from nanonet.data.prepare import draw
from nanonet.errors import InputError
from nanonet.inference.classifier import load_classifier
from nanonet.training.pipeline import train

CLASSES = ["animals", "food", "weather"]


@pytest.fixture(scope="session")
def other_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random RoBERTa of 3 layers, width 24, and a tokenizer of characters."""
    folder = tmp_path_factory.mktemp("other")
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    letters = [*special, *"abcdefghijklmnopqrstuvwxyz"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(letters)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    names = dict(zip(("bos_token", "pad_token", "eos_token", "unk_token"), special, strict=True))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=64, **names).save_pretrained(folder)
    torch.manual_seed(1)
    RobertaModel(
        RobertaConfig(
            vocab_size=len(letters),
            hidden_size=24,
            num_hidden_layers=3,
            num_attention_heads=4,
            intermediate_size=40,
            max_position_embeddings=80,
        )
    ).save_pretrained(folder)
    return folder


@pytest.fixture
def texts(tiny_data: Path, tmp_path: Path) -> Path:
    """A file of the train texts alone."""
    rows = read_jsonl(tiny_data / "train.jsonl")
    return write_files(tmp_path, {"texts.jsonl": jsonl({"text": row["text"]} for row in rows)}) / "texts.jsonl"


@pytest.fixture
def config(trained_run: Path, texts: Path, tmp_path: Path) -> TrainConfig:
    """Students of a trained classifier, without a label."""
    return TrainConfig(
        output=str(tmp_path / "run"),
        data=str(texts),
        teacher=str(trained_run / "best"),
        steps=3,
        labelled_batch=4,
        unlabelled_batch=16,
        max_tokens=32,
        student_layers=1,
    )


def weights(config: TrainConfig, student: int = 0) -> dict[str, torch.Tensor]:
    return load_file(Path(config.output) / f"student-{student}" / "model.safetensors")


def soft_labels(config: TrainConfig) -> torch.Tensor:
    return load_file(Path(config.output) / "targets.safetensors")["soft_labels"]


def elsewhere(config: TrainConfig, name: str, **changes) -> TrainConfig:
    return dataclasses.replace(config, output=str(Path(config.output).with_name(name)), **changes)


def test_a_trained_classifier_needs_no_labels(config: TrainConfig, trained_run: Path, texts: Path) -> None:
    report = train(config)
    assert report["teacher"]["targets"] == "head" and report["linear_probe"] is None
    assert report["data"]["labelled"] == 0 and report["data"]["classes"] == CLASSES
    assert report["teacher"]["cross_validation"] == {} and report["teacher"]["accuracy"] is None
    rows = draw(data_settings(config), CLASSES).rows.texts
    classifier = load_classifier(trained_run / "best")
    encoded = classifier.tokenizer(rows, padding=True, return_tensors="pt")
    with torch.no_grad():
        wanted = classifier.model(**encoded).logits
    assert len(rows) == 135  # of 150; the others are validation rows
    torch.testing.assert_close(soft_labels(config), wanted, rtol=1e-4, atol=1e-5)  # uncalibrated, as they are


def test_files_in_the_place_of_a_head_make_the_same_students(config: TrainConfig, tmp_path: Path, texts: Path) -> None:
    train(config)
    known = dict(zip(draw(data_settings(config), CLASSES).rows.texts, soft_labels(config).tolist(), strict=True))
    rows = [row["text"] for row in read_jsonl(texts)]
    logits = [known.get(text, [0.0, 0.0, 1.0]) for text in rows]
    table = [{"text": t, **dict(zip(CLASSES[::-1], p[::-1], strict=True))} for t, p in zip(rows, logits, strict=True)]
    write_files(tmp_path, {"soft.jsonl": jsonl(table)})
    files = elsewhere(config, "files", soft_labels=(str(tmp_path / "soft.jsonl"),), soft_labels_are="logits")
    report = train(files)
    assert report["teacher"]["name"] == str(tmp_path / "soft.jsonl") and report["teacher"]["parameters"] is None
    # its classes stand in another order: so do the students'
    assert report["data"]["classes"] == CLASSES[::-1]
    assert soft_labels(files).flip(-1).equal(soft_labels(config))
    named = write_files(tmp_path, {"data/unlabelled.jsonl": texts.read_text(), "data/labels.json": json.dumps(CLASSES)})
    again = elsewhere(files, "again", data=str(named / "data"))
    train(again)
    assert soft_labels(again).equal(soft_labels(config))
    for k in range(2):
        assert all(tensor.equal(weights(config, k)[name]) for name, tensor in weights(again, k).items())


def test_predictions_stand_alone(config: TrainConfig, trained_run: Path, texts: Path, tmp_path: Path) -> None:
    assert main(["predict", str(texts), "--model", str(trained_run), "--output", str(tmp_path / "soft.jsonl")]) == 0
    flags = f"--soft-labels {tmp_path}/soft.jsonl --teacher {config.teacher} --output {tmp_path}/run --steps 2"
    assert main(f"train {flags} --student-layers 1 --max-tokens 32".split()) == 0
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["teacher"]["targets"] == "files" and report["data"]["name"] == "soft"
    assert report["data"]["unlabelled"] + report["data"]["validation"] == 150 and report["data"]["classes"] == CLASSES
    page = (tmp_path / "run" / "report.html").read_text()
    assert "teacher (files)" in page and "files: no label to measure them on" in page


def test_labels_measure_a_head_and_set_its_confidence(config: TrainConfig, tiny_data: Path, tmp_path: Path) -> None:
    order = ["weather", "animals", "food"]
    write_files(tmp_path, {f"d/{name}": (tiny_data / name).read_text() for name in ("train.jsonl", "test.jsonl")})
    write_files(tmp_path, {"d/labels.json": json.dumps(order)})
    report = train(elsewhere(config, "labels", data=str(tmp_path / "d"), labels_per_class=10))
    accuracy = report["teacher"]["cross_validation"]["head"]
    assert report["teacher"]["cross_validated_labels"] == 30 and accuracy > 0.6
    assert report["teacher"]["accuracy"] > 0.6  # the classes are matched by name
    confidence = soft_labels(elsewhere(config, "labels")).softmax(-1).amax(-1).mean().item()
    assert confidence == pytest.approx(min(accuracy, 0.999), abs=2e-3)
    # a file that lacks the labelled rows: their labels are their soft labels, and measure nothing
    rows = read_jsonl(tiny_data / "train.jsonl")[:40]
    table = [{"text": row["text"], **{c: 0.6 if c == row["label"] else 0.2 for c in CLASSES}} for row in rows]
    write_files(tmp_path, {"few.jsonl": jsonl(table[30:]), "d/train.jsonl": jsonl(rows)})
    few = elsewhere(config, "few", data=str(tmp_path / "d"), soft_labels=(str(tmp_path / "few.jsonl"),))
    report = train(few)
    assert report["teacher"]["cross_validated_labels"] == 10 and report["teacher"]["accuracy"] is None
    assert (soft_labels(few)[:30].softmax(-1).amax(-1) > 0.99).all()


def test_other_class_names_are_refused_or_renamed(config: TrainConfig, tiny_data: Path, tmp_path: Path, capsys) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(config.teacher)
    model.config.id2label = {0: "LABEL_0", 1: "food", 2: "LABEL_2"}
    model.save_pretrained(tmp_path / "odd")
    AutoTokenizer.from_pretrained(config.teacher).save_pretrained(tmp_path / "odd")
    odd = elsewhere(config, "odd-run", teacher=str(tmp_path / "odd"), data=str(tiny_data), labels_per_class=5)
    with pytest.raises(InputError) as error:
        train(odd)
    said = str(error.value)
    assert "its classes are 'LABEL_0', 'food', 'LABEL_2', those of the data are 'animals', 'food', 'weather'" in said
    assert "--class-map" in said and "--targets self_training" in said and not Path(odd.output).exists()
    write_files(tmp_path, {"map.yaml": "LABEL_0: animals\nLABEL_2: weather\n"})
    renamed = dataclasses.replace(odd, class_map=str(tmp_path / "map.yaml"))
    assert train(renamed)["teacher"]["accuracy"] > 0.6
    capsys.readouterr()
    train(elsewhere(odd, "rule", targets="classifier", teacher_steps=0))
    assert "its trained head is not used (--targets classifier)" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["head", "files", "encoder"])
def test_students_of_another_encoder_have_its_tokens_and_widths(
    kind: str,
    config: TrainConfig,
    other_encoder: Path,
    tiny_encoder: Path,
    tiny_data: Path,
    texts: Path,
    tmp_path: Path,
) -> None:
    config = dataclasses.replace(config, student_model=str(other_encoder), student_layers=0)
    if kind == "encoder":
        labels = dict(data=str(tiny_data), labels_per_class=5, teacher_steps=2, relation_weight=0.1)
        config = dataclasses.replace(config, teacher=str(tiny_encoder), **labels)
    elif kind == "files":
        found = [{"text": row["text"], **dict.fromkeys(CLASSES, 1 / 3)} for row in read_jsonl(texts)]
        write_files(texts.parent, {"soft.jsonl": jsonl(found)})
        # the teacher is not even looked at
        config = dataclasses.replace(config, soft_labels=(str(texts.parent / "soft.jsonl"),), teacher="no such model")
    report = train(config)
    assert [student["layers"] for student in report["students"]] == [[0, 1, 2]] * 2
    best = load_classifier(Path(config.output) / "best")
    assert type(best.model).__name__ == "RobertaForSequenceClassification" and best.model.config.hidden_size == 24
    assert best.tokenizer("cat")["input_ids"] == AutoTokenizer.from_pretrained(other_encoder)("cat")["input_ids"]
    assert sorted(best.classes) == CLASSES


# settings, fragments of the line
FAULTS: dict[str, tuple[dict, list[str]]] = {
    "no head": ({"teacher": "{encoder}", "targets": "head"}, ["--targets head: --teacher", "has no trained head"]),
    "no label and no head": ({"teacher": "{encoder}"}, ["column 'label'", "no such column"]),
    "nothing to rename": ({"teacher": "{encoder}", "class_map": "x"}, ["--class-map x", "has no classes to rename"]),
    "online and other tokens": (
        {"teacher_mode": "online", "student_model": "x"},
        ["--student-model x", "an online teacher reads the students' tokens"],
    ),
    "no embeddings of a head": ({"relation_weight": 1.0}, ["--relation-weight 1.0", "logits of its head"]),
    "no embeddings of files": ({"relation_weight": 1.0, "soft_labels": ("x",)}, ["--relation-weight 1.0", "files"]),
    "weights without files": (
        {"soft_label_weights": (1.0,)},
        ["--soft-label-weights 1.0", "one weight for every file"],
    ),
    "a weight of 0": ({"soft_label_weights": (0.0,), "soft_labels": ("x",)}, ["--soft-label-weights 0.0", "above 0"]),
    "logits of nothing": ({"soft_labels_are": "logits"}, ["--soft-labels-are logits", "give --soft-labels with it"]),
    "a rule for files": ({"targets": "diffusion", "soft_labels": ("x",)}, ["--targets diffusion", "--soft-labels"]),
    "too many layers": ({"student_layers": 9}, ["--student-layers 9: the encoder has 2"]),
    "no student model": ({"student_model": "./none"}, ["--student-model ./none: there is no such folder"]),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_is_one_line_before_anything_is_written(
    fault: str, config: TrainConfig, tiny_encoder: Path
) -> None:
    changes, fragments = FAULTS[fault]
    changes = {name: str(tiny_encoder) if value == "{encoder}" else value for name, value in changes.items()}
    with pytest.raises(InputError) as error:
        train(dataclasses.replace(config, **changes))
    assert "\n" not in str(error.value) and all(fragment in str(error.value) for fragment in fragments), error.value
    assert not Path(config.output).exists()


def test_a_student_model_that_is_no_encoder_is_named_by_its_flag(config: TrainConfig, tmp_path: Path) -> None:
    gpt = GPT2Config(vocab_size=60, n_embd=8, n_layer=1, n_head=2, n_positions=64)
    GPT2Model(gpt).save_pretrained(tmp_path / "gpt")
    AutoTokenizer.from_pretrained(config.teacher).save_pretrained(tmp_path / "gpt")
    with pytest.raises(InputError, match=r"^--student-model"):
        train(dataclasses.replace(config, student_model=str(tmp_path / "gpt")))
