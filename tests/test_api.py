"""The estimator: the same run as the command line's, scikit-learn's manners, and every kind of column."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from sklearn.utils import estimator_checks
from support.text import read_jsonl, write_files
from transformers import AutoTokenizer, pipeline

import nanonet
from nanonet import Distiller
from nanonet.cli.main import main
from nanonet.cnn_model import CnnConfig, CnnForSequenceClassification
from nanonet.config.check import check_types
from nanonet.config.parse import parse
from nanonet.config.train import TrainConfig
from nanonet.data.memory import as_list, from_names, label_list, label_type
from nanonet.errors import InputError
from nanonet.training.pipeline import train

SETTINGS: dict[str, Any] = {
    "teacher_steps": 2, "steps": 12, "labelled_batch": 5, "unlabelled_batch": 11, "learning_rate": 3e-3,
    "max_tokens": 32, "targets": "classifier", "threads": 1,
}  # fmt: skip
Rows = list[dict[str, Any]]


@pytest.fixture
def rows(tiny_data: Path) -> Rows:
    return read_jsonl(tiny_data / "train.jsonl")[:60]


@pytest.fixture
def distiller(tiny_encoder: Path) -> Distiller:
    return Distiller(teacher=str(tiny_encoder), **SETTINGS)


@pytest.fixture(scope="module")
def fitted(tiny_encoder: Path, tiny_data: Path) -> Distiller:
    rows = read_jsonl(tiny_data / "train.jsonl")[:60]
    numbers = [["animals", "food", "weather"].index(row["label"]) for row in rows]
    estimator = Distiller(teacher=str(tiny_encoder), **SETTINGS | {"students": 1})
    return estimator.fit([row["text"] for row in rows], numbers)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {str(path.relative_to(folder)): load_file(path) for path in sorted(folder.glob("student-*/*.safetensors"))}


def assert_same(one: Path, other: Path) -> None:
    a, b = weights(one), weights(other)
    assert len(a) > 1 and a.keys() == b.keys()
    for file in a:
        assert a[file].keys() == b[file].keys() and all(torch.equal(a[file][name], b[file][name]) for name in a[file])


def test_lists_train_the_weights_of_the_files(
    rows: Rows, tiny_data: Path, tiny_encoder: Path, tmp_path: Path, distiller: Distiller
) -> None:
    few = [row | {"label": row["label"] if i % 2 else None} for i, row in enumerate(rows)]
    more, test = read_jsonl(tiny_data / "train.jsonl")[60:90], read_jsonl(tiny_data / "test.jsonl")
    files = {"data/train": few, "data/test": test, "more": [{"text": row["text"]} for row in more]}
    write_files(tmp_path, {f"{name}.jsonl": "".join(json.dumps(r) + "\n" for r in t) for name, t in files.items()})
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in SETTINGS.items()]
    places = f"--data {tmp_path}/data --unlabelled {tmp_path}/more.jsonl --teacher {tiny_encoder}"
    assert main(["train", *places.split(), f"--output={tmp_path}/run", *flags]) == 0
    distiller.fit(
        [row["text"] for row in few],
        [row["label"] for row in few],
        unlabelled=[row["text"] for row in more],
        validation=([row["text"] for row in test], [row["label"] for row in test]),
        output=tmp_path / "lists",
    )
    assert_same(tmp_path / "run", tmp_path / "lists")
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert distiller.report_["students"] == report["students"] and report["students"][0]["accuracy"] is not None
    assert distiller.report_["data"] == report["data"] | {"name": "texts"}
    # and what was written is an estimator too
    again = Distiller.load(tmp_path / "run")
    texts = [row["text"] for row in test]
    assert again.predict(texts).tolist() == distiller.predict(texts).tolist()
    assert np.array_equal(again.predict_proba(texts), distiller.predict_proba(texts))
    assert again.get_params() == distiller.get_params() | {"precision": "float32"}  # what `auto` chose
    assert distiller.score(texts, [row["label"] for row in test]) == pytest.approx(
        report["students"][report["best"]]["accuracy"], abs=1e-6
    )


def test_a_table_with_blanks_trains_the_weights_of_two_tables(
    rows: Rows, tiny_encoder: Path, tmp_path: Path, distiller: Distiller
) -> None:
    # 10 labels a class stand in the first 30 rows, and the rest of the column is blank
    table = [row | {"label": row["label"] if i < 30 else ""} for i, row in enumerate(rows)]
    as_csv = {
        "one/train.csv": "text,label\n" + "".join(f"{row['text']},{row['label']}\n" for row in table),
        "two/labelled.csv": "text,label\n" + "".join(f"{row['text']},{row['label']}\n" for row in table[:30]),
        "two/unlabelled.csv": "text\n" + "".join(f"{row['text']}\n" for row in table[30:]),
    }
    write_files(tmp_path, as_csv)
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in SETTINGS.items()]
    for name in ("one", "two"):
        words = f"train --data {tmp_path}/{name} --output {tmp_path}/run-{name} --teacher {tiny_encoder}"
        assert main([*words.split(), *flags]) == 0
    assert_same(tmp_path / "run-one", tmp_path / "run-two")


def test_soft_labels_train_the_weights_of_a_file_of_them(
    rows: Rows, tiny_encoder: Path, tmp_path: Path, distiller: Distiller
) -> None:
    names = ["animals", "food", "weather"]
    p = np.random.default_rng(0).dirichlet([1, 1, 1], len(rows)).astype(np.float32)
    p[3] = np.nan  # one text has no soft label
    soft = [row | dict(zip(names, map(float, p[i]), strict=True)) for i, row in enumerate(rows) if i != 3]
    few = [row | {"label": row["label"] if i % 2 else None} for i, row in enumerate(rows[:40])]
    tables = {"train": few, "more": [{"text": row["text"]} for row in rows[40:]]}
    tables["soft"] = [{name: value for name, value in row.items() if name != "label"} for row in soft]
    write_files(tmp_path, {f"{name}.jsonl": "".join(json.dumps(r) + "\n" for r in t) for name, t in tables.items()})
    own = {name: value for name, value in SETTINGS.items() if name not in ("teacher_steps", "targets")}
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in own.items()]
    places = f"--data {tmp_path}/train.jsonl --unlabelled {tmp_path}/more.jsonl --teacher {tiny_encoder}"
    words = f"train {places} --soft-labels {tmp_path}/soft.jsonl --output {tmp_path}/run"
    assert main([*words.split(), *flags]) == 0
    distiller = Distiller(teacher=str(tiny_encoder), **own)
    texts, labels, unlabelled = [r["text"] for r in few], [r["label"] for r in few], [r["text"] for r in rows[40:]]
    dicts = [None if np.isnan(row).any() else dict(zip(names, row, strict=True)) for row in p]
    # the same as an array, as a table with its columns in another order, and as dicts
    for i, given in enumerate((p, pd.DataFrame(p, columns=names)[names[::-1]], dicts)):
        distiller.fit(texts, labels, unlabelled=unlabelled, soft_labels=given, output=tmp_path / f"run-{i}")
        assert_same(tmp_path / "run", tmp_path / f"run-{i}")
    assert distiller.report_["teacher"]["targets"] == "files"


def test_soft_labels_need_no_label(rows: Rows, tiny_encoder: Path) -> None:
    distiller = Distiller(teacher=str(tiny_encoder), steps=2, students=1, max_tokens=32, threads=1)
    p = np.random.default_rng(0).dirichlet([1, 1], len(rows))
    texts = [row["text"] for row in rows]
    assert distiller.fit(texts, soft_labels=p).classes_.tolist() == [0, 1]
    assert distiller.fit(texts, soft_labels=pd.DataFrame(p, columns=["b", "a"])).classes_.tolist() == ["b", "a"]
    with pytest.raises(ValueError, match="^soft_labels: its classes are 'b', 'a', those of the data are '0', '1'"):
        distiller.fit(texts, [i % 2 for i in range(len(texts))], soft_labels=pd.DataFrame(p, columns=["b", "a"]))


def test_predictions_are_labels_as_they_were_given(fitted: Distiller, rows: Rows) -> None:
    texts = [row["text"] for row in rows[:5]]
    p, labels = fitted.predict_proba(np.array(texts)), fitted.predict(pd.Series(texts))
    assert fitted.classes_.tolist() == [0, 1, 2] and labels.dtype.kind == "i"
    assert p.shape == (5, 3) and np.allclose(p.sum(1), 1, atol=1e-5) and labels.tolist() == p.argmax(1).tolist()
    assert fitted.predict(["", texts[0]]).tolist() == [None, labels[0]]
    assert len(fitted.predict([])) == 0 and fitted.predict_proba([]).shape == (0, 3)
    assert fitted.best_ is fitted.students_[fitted.report_["best"]] and len(fitted.students_) == 1


def test_a_score_counts_what_has_a_label(fitted: Distiller, rows: Rows) -> None:
    texts = [row["text"] for row in rows[:6]]
    own = fitted.predict(texts).tolist()
    assert fitted.score(texts, own) == 1 and fitted.score(texts, [(own[0] + 1) % 3, *own[1:]]) == 5 / 6
    assert fitted.score(texts, [(own[0] + 1) % 3, *own[1:3], None, -1, np.nan]) == 2 / 3
    assert fitted.score(texts, [(own[0] + 1) % 3, *own[1:]], [0, 1, 1, 1, 1, 1]) == 1
    for labels, message in (([7] * 6, "unknown label '7'"), (own[:3], "3 for 6 texts"), ([-1] * 6, "0 for 6 texts")):
        with pytest.raises(ValueError, match=message):
            fitted.score(texts, labels)


def test_it_is_saved_and_pickled(fitted: Distiller, rows: Rows, tmp_path: Path) -> None:
    texts = [row["text"] for row in rows[:5]]
    wanted = fitted.predict_proba(texts)
    fitted.save(tmp_path / "saved")
    loaded, copied = Distiller.load(tmp_path / "saved"), pickle.loads(pickle.dumps(fitted))
    chosen = {"precision": "float32"}  # by `auto`, which the folder no longer knows
    for other, given in ((loaded, chosen), (copied, {})):
        assert np.array_equal(other.predict_proba(texts), wanted) and other.predict(texts).dtype.kind == "i"
        assert other.get_params() == fitted.get_params() | given and other.report_ == fitted.report_
    assert copied.folder_ != fitted.folder_ and copied.folder_.exists()
    with pytest.raises(ValueError, match="is not empty"):
        fitted.save(tmp_path / "saved")
    with pytest.raises(ValueError, match="no finished run"):
        Distiller.load(tmp_path)


def test_a_copy_that_fails_leaves_nothing(fitted: Distiller, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(source: Path, target: Path) -> None:
        target.mkdir()
        (target / "half").write_text("x")
        raise OSError(28, "No space left on device", str(target))

    monkeypatch.setattr(shutil, "copytree", full)
    with pytest.raises(OSError, match="No space left"):
        fitted.save(tmp_path / "saved")
    assert not list(tmp_path.iterdir())


DAMAGES = {
    "report.json": [
        "[]",
        '{"students": [',
        "[" * 100_000,
        '{"students": [], "best": 0}',
        '{"students": [{}], "best": 9}',
    ],
    "config.yaml": ["- 1", "a: [b", "a: !!python/object/apply:os.getcwd []", "[" * 100_000],
    "label_type.json": ["[]", '{"labels": "date"}', '{"labels": ["int"]}', "{}"],
}
DAMAGES["report.json"] += ['{"students": [{}], "best": "first"}', '{"students": {"a": 1}, "best": 0}']


@pytest.mark.parametrize(("name", "content"), [(name, one) for name, several in DAMAGES.items() for one in several])
def test_a_damaged_run_is_named(name: str, content: str, trained_run: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(trained_run, tmp_path / "run"))
    (run / name).write_text(content)
    with pytest.raises(InputError) as caught:
        Distiller.load(run)
    message = str(caught.value)
    assert name in message and "give a folder that Distiller.save" in message and message.isprintable()


def test_a_run_of_pipes_is_not_waited_for(trained_run: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(trained_run, tmp_path / "run"))
    for name in ("config.yaml", "label_type.json"):
        (run / name).unlink(missing_ok=True)
        os.mkfifo(run / name)
    with pytest.raises(InputError, match="config.yaml: damaged"):
        Distiller.load(run)
    with pytest.raises(InputError, match="config.json"):  # it is no run without its settings
        nanonet.load(run)
    assert nanonet.load(run / "student-0").predict(["a cat"])[0]


def test_an_escape_in_a_folder_is_shown_not_obeyed(trained_run: Path, tmp_path: Path) -> None:
    bad = Path(shutil.copytree(trained_run / "best", tmp_path / "m"))
    settings = json.loads((bad / "config.json").read_text())
    (bad / "config.json").write_text(json.dumps(settings | {"model_type": "\x1b[2J"}))
    with pytest.raises(InputError) as caught:
        nanonet.load(bad)
    assert str(caught.value).isprintable() and r"\x1b[2J" in str(caught.value)


def test_the_temporary_folder_goes_with_the_object(fitted: Distiller) -> None:
    copied = pickle.loads(pickle.dumps(fitted))
    folder = copied.folder_
    assert folder.is_dir()
    del copied
    assert not folder.exists()


DATALESS = (
    "check_estimator_cloneable check_estimator_repr check_estimator_tags_renamed check_no_attributes_set_in_init"
    " check_get_params_invariance check_set_params check_parameters_default_constructible check_mixin_order"
    " check_valid_tag_types check_do_not_raise_errors_in_init_or_set_params check_estimators_unfitted"
)


@pytest.mark.parametrize("name", DATALESS.split())
def test_a_check_of_scikit_learn_passes(name: str) -> None:
    if not hasattr(estimator_checks, name):
        pytest.skip("not in this scikit-learn")
    getattr(estimator_checks, name)("Distiller", Distiller())


def test_the_parameters_are_the_fields_of_the_config() -> None:
    parameters = Distiller().get_params()
    assert {name: getattr(TrainConfig, name) for name in parameters} == parameters and len(parameters) > 40
    assert "output" not in parameters and "data" not in parameters
    assert clone(Distiller(steps=5)).get_params() == Distiller(steps=5).get_params()
    with pytest.raises(TypeError, match="stepz"):
        Distiller(stepz=5)


def test_a_grid_is_searched(distiller: Distiller, rows: Rows) -> None:
    search = GridSearchCV(distiller.set_params(students=1, teacher_steps=0), {"steps": np.array([2, 3])}, cv=2)
    search.fit([row["text"] for row in rows], [row["label"] for row in rows])
    assert 0 < search.best_score_ <= 1 and search.best_estimator_.classes_.tolist() == ["animals", "food", "weather"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"students": "2"}, "students '2': give int"),
        ({"students": True}, "students True: give int"),
        ({"tuning": "ful"}, "tuning 'ful': give one of bias, lora, full, head"),
        ({"labels_per_class": 2.5}, "labels_per_class 2.5: give int or NoneType"),
        ({"temperature": 0}, "^temperature 0.0: give 0.01 to 100"),
    ],
)
def test_a_wrong_parameter_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Distiller(**settings).fit(["a", "b"], [0, 1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"texts": "a text", "labels": [0]}, "texts is one string"),
        ({"texts": {"a": 1}, "labels": [0]}, "texts is a dict"),
        ({"texts": pd.DataFrame({"text": ["a", "b"]}), "labels": [0, 1]}, "texts is a table"),
        ({"texts": np.array([["a"], ["b"]]), "labels": [0, 1]}, "texts is a table"),
        ({"texts": ["a", "b"], "labels": None}, "labels is None"),
        ({"texts": ["a", "b"], "labels": [0]}, "labels: 1 for 2 texts"),
        ({"texts": ["a", None], "labels": [0, 1]}, "texts, index 1.*the text is None, not a string"),
        ({"texts": ["a", " "], "labels": [0, 1]}, "every label is '0'"),  # a row without a text is left out
        ({"texts": ["a", "b"], "labels": [0, []]}, r"texts, index 1.*the label \[\]"),
        ({"texts": ["a", "b"], "labels": [-1, None]}, "no row has a label"),
        ({"texts": ["a", "b"], "labels": [1, -1]}, "every label is '1'"),
        ({"texts": ["a", "b"], "labels": [0, 1], "validation": ["c"]}, "validation: give two things"),
        ({"texts": ["a", "b"], "labels": [0, 1], "validation": (["c"], [2])}, "validation, index 0.*unknown label"),
        ({"texts": ["a", "b"], "labels": [0, 1], "soft_labels": [[1, 0]]}, "soft_labels: 1 rows for 2 texts"),
        (
            {"texts": ["a", "b"], "labels": [0, 1], "soft_labels": [[1, 0, 0]] * 2},
            "3 columns for the 2 classes '0', '1'",
        ),
        ({"texts": ["a", "b"], "soft_labels": [[1, 0], [0.5, 0.6]]}, "soft_labels, index 1: .* sum to 1.1, not 1"),
        ({"texts": ["a", "a"], "soft_labels": [[1, 0], [0, 1]]}, "index 1: the text of index 0 again, with other"),
        ({"texts": ["a", "b"], "soft_labels": [[1, 0], [1]]}, "soft_labels: give an array with a column"),
        ({"texts": ["a", "b"], "soft_labels": [{"x": 1, "y": 0}, {"x": 1}]}, "index 1: its classes are 'x'"),
        ({"texts": ["a", "b"], "soft_labels": [None, None]}, "soft_labels: give an array"),
        ({"texts": ["a", "b"], "soft_labels": "ab"}, "soft_labels is one string"),
    ],
)
def test_wrong_data_is_refused(arguments: dict[str, Any], message: str, tmp_path: Path, distiller: Distiller) -> None:
    with pytest.raises(ValueError, match=message):
        distiller.fit(**arguments, output=tmp_path / "run")
    assert not (tmp_path / "run").exists() and not hasattr(distiller, "best_")


def test_columns_of_every_library_are_lists() -> None:
    datasets, pyarrow = pytest.importorskip("datasets"), pytest.importorskip("pyarrow")
    words = ["a", "b"]
    columns = [words, tuple(words), np.array(words), np.array(words, object), pd.Series(words), pyarrow.array(words)]
    columns += [datasets.Dataset.from_dict({"text": words})["text"], iter(words), pd.Series(words, dtype="category")]
    for column in columns:
        assert as_list(column, "texts") == words
    assert as_list(torch.tensor([1, 2]), "labels") == [1, 2]


def test_columns_of_polars_are_lists() -> None:
    polars = pytest.importorskip("polars")
    assert as_list(polars.Series(["a", None]), "texts") == ["a", None]


@pytest.mark.parametrize(
    ("labels", "read", "kind", "classes"),
    [
        ([0, 1, -1, None], [0, 1, None, None], "int", [0, 1]),
        (pd.Series([0, 1, None, -1]), [0.0, 1.0, None, None], "float", [0.0, 1.0]),
        (pd.Series([0, pd.NA], dtype="Int64"), [0, None], "int", [0, 1]),
        (np.array([True, False]), [True, False], "bool", [False, True]),
        (pd.Series(["a", None]), ["a", None], "str", ["0", "1"]),
        (["-1", "a"], ["-1", "a"], "str", ["0", "1"]),
        (["a", 1], ["a", 1], "str", ["0", "1"]),
    ],
)
def test_labels_keep_their_type(labels: Any, read: list, kind: str, classes: list) -> None:
    names = ["False", "True"] if kind == "bool" else ["0", "1"]
    assert label_list(labels) == read and label_type(read) == kind and from_names(names, kind) == classes


def test_load_gives_a_classifier(trained_run: Path, rows: Rows) -> None:
    classifier, second = nanonet.load(trained_run / "student-0"), nanonet.load(str(trained_run), student=1)
    texts = [row["text"] for row in rows]
    found, p = classifier.predict(texts), classifier.predict_proba(texts)
    assert found == [classifier.classes[i] for i in p.argmax(1)] and len(set(found)) == 3
    assert not np.array_equal(p, second.predict_proba(texts))
    assert classifier.predict([" ", texts[0]]) == [None, found[0]] and np.isnan(classifier.predict_proba([""])).all()
    for wrong, message in (("a text", "one string"), ([None], r"texts\[0\] is a NoneType")):
        with pytest.raises(ValueError, match=message):
            classifier.predict(wrong)
    with pytest.raises(ValueError, match="^model .*does not exist"):
        nanonet.load(trained_run / "none")


@pytest.mark.parametrize("mode", ["frozen", "online"])
def test_a_class_weight_changes_the_loss_of_the_labels(mode: str, distiller: Distiller, rows: Rows) -> None:
    rare = [row for row in rows if row["label"] != "food"] + [row for row in rows if row["label"] == "food"][:4]
    settings = {"teacher_mode": mode, "steps": 1, "students": 1, "labelled_batch": 99}
    settings |= {"teacher_steps": 0, "targets": "classifier"}
    first = []
    for weight in ("none", "balanced"):
        run = clone(distiller).set_params(class_weight=weight, **settings)
        run.fit([row["text"] for row in rare], [row["label"] for row in rare])
        first.append(read_jsonl(run.folder_ / "metrics.jsonl")[0])
    for name in ("ce", "teacher_ce") if mode == "online" else ("ce",):
        assert first[0][name] != first[1][name]
    assert first[0]["peers"] == first[1]["peers"]


def test_a_pipeline_takes_what_is_exported(trained_run: Path, tiny_encoder: Path, tmp_path: Path, rows: Rows) -> None:
    torch.manual_seed(0)
    config = CnnConfig(vocab_size=100, embedding_size=8, hidden_size=8, num_hidden_layers=2, num_labels=3)
    CnnForSequenceClassification(config).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(tiny_encoder).save_pretrained(tmp_path)
    texts = [row["text"] for row in rows[:9]]
    for folder in (trained_run / "best", tmp_path):
        classifier = nanonet.load(folder)
        answers = pipeline("text-classification", model=str(folder))(texts)
        assert [answer["label"] for answer in answers] == classifier.predict(texts)
        assert np.allclose([answer["score"] for answer in answers], classifier.predict_proba(texts).max(1), atol=1e-5)


def test_predicting_loads_nothing_that_trains() -> None:
    code = (
        "import sys, transformers.models.auto.modeling_auto\n"  # loads scikit-learn itself in some versions
        "before = set(sys.modules)\n"
        "import nanonet.inference.predict\n"
        "print([m for m in ('sklearn', 'peft', 'matplotlib', 'pandas', 'transformers.trainer', 'nanonet.training')"
        " if m in set(sys.modules) - before])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_importing_nanonet_loads_torch_alone() -> None:
    code = "import nanonet, sys; nanonet.__all__; print([m for m in ('sklearn', 'transformers') if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        nanonet.nothing  # noqa: B018


def test_a_preset_is_that_of_the_command_line() -> None:
    distiller = Distiller.preset("nanonet", tuning="lora", seed=3)
    plain = parse(TrainConfig, "--preset nanonet --tuning lora --seed 3".split(), "nanonet train", "")
    parameters = distiller.get_params()
    assert {name: getattr(plain, name) for name in parameters} == parameters
    assert parameters["teacher_mode"] == "online" and parameters["tuning"] == "lora"
    with pytest.raises(ValueError, match=r"^preset nano: give one of nanonet, "):
        Distiller.preset("nano")
    with pytest.raises(TypeError, match="tunings"):
        Distiller.preset("nanonet", tunings="full")


def test_the_preset_of_generated_texts_asks_for_them() -> None:
    for distiller in (Distiller.preset("generation-distillation"), clone(Distiller.preset("generation-distillation"))):
        with pytest.raises(ValueError, match=r"^unlabelled: .*nanonet generate --model gpt2"):
            distiller.fit(["a b", "c d"], [0, 1])


def test_parameters_that_take_several_values() -> None:
    assert check_types(TrainConfig(soft_label_weights=[1, 0.5])).soft_label_weights == (1.0, 0.5)  # type: ignore[arg-type]
    for wrong, cure in (("a.csv", "a list"), ((1,), "str")):
        with pytest.raises(ValueError, match=f"^--soft-labels .*: give {cure}$"):
            check_types(TrainConfig(soft_labels=wrong))  # type: ignore[arg-type]


def test_pairs_train_the_weights_of_a_table_of_them(pair_encoder: Path, pair_data: Path, tmp_path: Path) -> None:
    table = pd.read_csv(pair_data / "train.csv")
    settings = SETTINGS | {"targets": "auto", "max_tokens": 24}
    distiller = Distiller(teacher=str(pair_encoder), **settings)
    pairs = list(zip(table.premise, table.hypothesis, strict=True))
    distiller.fit(pairs, table.label.where(table.label.notna(), None).tolist(), output=tmp_path / "memory")
    config = TrainConfig(
        data=str(pair_data / "train.csv"), text_column="premise,hypothesis", teacher=str(pair_encoder), **settings
    )
    train(dataclasses.replace(config, output=str(tmp_path / "file")))
    assert_same(tmp_path / "memory", tmp_path / "file")
    p = distiller.predict_proba(pairs[:4])
    assert p.shape == (4, 3) and (distiller.predict_proba([(b, a) for a, b in pairs[:4]]) != p).any()
    assert np.array_equal(Distiller.load(tmp_path / "file").predict(pairs[:4]), distiller.predict(pairs[:4]))
    assert distiller.predict([("cat", ""), ("cat", "dog")])[0] is None
    with pytest.raises(InputError, match="takes pairs of texts: give a list of"):
        distiller.predict(["a cat"])
    soft = [{"animals": 0.8, "food": 0.1, "weather": 0.1}, {"animals": 0.1, "food": 0.8, "weather": 0.1}] * 20
    given = SETTINGS | {"max_tokens": 24, "targets": "auto", "teacher_steps": TrainConfig.teacher_steps, "students": 1}
    other = Distiller(teacher=str(pair_encoder), **given).fit(pairs[:30], unlabelled=pairs[30:40], soft_labels=soft)
    assert other.best_.pairs and other.report_["data"]["unlabelled"] + other.report_["data"]["validation"] == 40
