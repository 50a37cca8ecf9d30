"""The trainer for texts in memory, in scikit-learn's manners."""

from __future__ import annotations

import dataclasses
import inspect
import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_is_fitted

from nanonet.config.check import check_types
from nanonet.config.presets import PRESETS, expand
from nanonet.config.train import RUN_CONFIG, TrainConfig
from nanonet.data.lines import Limits
from nanonet.data.memory import as_list, dataset_of, from_names, label_indices, label_list, label_type, text_list
from nanonet.data.problems import shorten
from nanonet.data.soft_label_memory import NAME, soft_label_table, soft_labels_of
from nanonet.errors import InputError, as_arguments
from nanonet.files import read_small, write
from nanonet.inference.classifier import Classifier, load
from nanonet.training.output_folder import LABEL_TYPE, REPORT
from nanonet.training.pipeline import train

# the fields of the config that say which files a run reads and writes: what `fit` takes instead
OF_FILES = {
    "output", "data", "unlabelled", "text_column", "label_column", "max_data_bytes",
    "soft_labels", "soft_labels_are", "soft_label_weights",
}  # fmt: skip
CURE = "give a folder that Distiller.save or nanonet train wrote"
FIELDS = tuple(field for field in dataclasses.fields(TrainConfig) if field.name not in OF_FILES)


class Distiller(ClassifierMixin, BaseEstimator):
    """`nanonet train` as an estimator: from a few labelled and many unlabelled texts to small classifiers.

    The parameters are the settings of `nanonet train` (fields of `TrainConfig`), those of files and columns apart; they
    are checked by `fit`.

    After `fit`:
        classes_: (C,) the labels, in the order of the columns of `predict_proba`
        students_: a `nanonet.inference.classifier.Classifier` for each student
        best_: that of them which is nearest to the teacher on rows that none was trained on
        report_: the content of report.json
        folder_: the folder of the run
    """

    _preset = ""

    def __init__(self, **parameters: Any) -> None:
        known = inspect.signature(type(self)).bind(**parameters)  # raises TypeError for a name that is no parameter
        known.apply_defaults()
        self.__dict__.update(known.arguments)

    @classmethod
    def preset(cls, name: str, **parameters: Any) -> Distiller:
        """The system of a paper, as `nanonet train --preset` has it; parameters that are given win over the preset's.

        name: nanonet, transformer-to-cnn or generation-distillation, whose `fit` wants generated texts as `unlabelled`.

        Raises:
            InputError: there is no such preset. It is a ValueError.
            TypeError: a name that is no parameter.
        """
        with as_arguments():
            distiller = cls(**expand(name, parameters))
        distiller._preset = name
        return distiller

    def fit(
        self,
        texts: Any,
        labels: Any = None,
        *,
        unlabelled: Any = None,
        soft_labels: Any = None,
        validation: Any = None,
        output: str | Path | None = None,
    ) -> Distiller:
        """Train a teacher and its students, as `nanonet train` does with files of the same rows.

        texts: N strings: a list, an array of numpy, a column of pandas, polars, pyarrow or datasets; or a list of N
            pairs of strings, (text, text). Further texts are then pairs too, also those of `predict`.
        labels: N names, numbers or booleans; None, NaN or -1 where a text has none.
        unlabelled: further texts.
        soft_labels: (n,C) probabilities from anywhere, in the teacher's place, as `nanonet train --soft-labels` takes
            them from a file: a row for each of `texts`, then of `unlabelled`; None or NaN where a text has none. A
            table with a column for every class, a list of {class: probability}, or an array, whose columns are the
            sorted classes of the labels (as in `classes_`), without any label 0 to C-1. No text needs a label then.
        validation: texts and labels on which the finished models are scored, as on a test table: nothing is trained on
            them, and nothing is chosen by them. The scores are in `report_`.
        output: the folder of the run; without one it is a temporary folder, which goes when this object does.

        Raises:
            InputError: a parameter, a text or a label; one line that names it. It is a ValueError.
        """
        if self._preset and PRESETS[self._preset].generated and unlabelled is None:
            raise InputError(
                f"unlabelled: the preset {self._preset} learns from the texts that this writes; give them: "
                "nanonet generate --model gpt2 --labelled DIR --count 20000 --output generated.jsonl"
            )
        with as_arguments():
            config = self._config()
            texts, labels = as_list(texts, "texts"), None if labels is None else label_list(labels)
            unlabelled = None if unlabelled is None else as_list(unlabelled, "unlabelled")
            table = None if soft_labels is None else soft_label_table(soft_labels, config.class_map)
            if table:
                config = dataclasses.replace(config, soft_labels=(NAME,))
                labels = [None] * len(texts) if labels is None else labels
            classes = table.classes if table else []
            limits = Limits(config.max_text_bytes, config.max_data_bytes)
            dataset = dataset_of(texts, labels, unlabelled, validation, limits, config.test_fraction, classes)
            every = text_list([*texts, *(unlabelled or [])]) if table else []
            given = soft_labels_of(table, every, dataset.classes) if table else None
            temporary, folder = None, Path(output or "").expanduser()
            if output is None:
                temporary = _temporary()
                folder = Path(temporary.name) / "run"
            train(dataclasses.replace(config, output=str(folder)), dataset, given)
        known = labels if table is None or any(label is not None for label in labels) else table.keys
        write(folder / LABEL_TYPE, json.dumps({"labels": label_type(known)}))
        return self._read(folder, temporary)

    def predict(self, texts: Any) -> np.ndarray:
        """The labels (N,) of N texts by the best student; None for a text without a word.

        Raises:
            InputError: they are no texts.
        """
        p = self.predict_proba(texts)
        known = ~np.isnan(p[:, 0])
        if known.all():
            return self.classes_[p.argmax(1)] if len(p) else self.classes_[:0]
        found = np.full(len(p), None, object)
        found[known] = self.classes_[p[known].argmax(1)]
        return found

    def predict_proba(self, texts: Any) -> np.ndarray:
        """The probabilities (N,C) float32 by the best student; NaN for a text without a word.

        Raises:
            InputError: they are no texts.
        """
        check_is_fitted(self)
        return self.best_.predict_proba(texts)

    def score(self, texts: Any, labels: Any, sample_weight: Any = None) -> float:
        """The accuracy of `predict`, a fraction, on the texts that have a label.

        Raises:
            InputError: a label that no text of `fit` had, not as many labels as texts, or none at all.
        """
        p = self.predict_proba(texts)
        with as_arguments():
            label = np.array(label_indices(labels, self.best_.classes), np.int64)
        if len(label) != len(p) or not (label >= 0).any():
            raise InputError(f"labels: {(label >= 0).sum()} for {len(p)} texts; give one a text")
        right = np.where(np.isnan(p[:, 0]), -1, p.argmax(1)) == label
        weight = np.ones(len(label)) if sample_weight is None else np.asarray(sample_weight, float)
        return float(np.average(right[label >= 0], weights=weight[label >= 0]))

    def save(self, folder: str | Path) -> None:
        """Copy the run to a new folder, from which `Distiller.load` reads it; its `best` is a Hugging Face folder.

        Raises:
            InputError: there is something in the folder.
        """
        check_is_fitted(self)
        target = Path(folder).expanduser()
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise InputError(f"folder {folder} is not empty: give another one")
        temporary = target.with_name(f".{target.name}.new")
        shutil.rmtree(temporary, ignore_errors=True)
        try:
            shutil.copytree(self.folder_, temporary)
            temporary.rename(target)  # an empty folder is replaced
        finally:  # of a full disk nothing half-written stays
            shutil.rmtree(temporary, ignore_errors=True)

    @classmethod
    def load(cls, folder: str | Path) -> Distiller:
        """The fitted estimator of a finished run, whether `save`, `fit` or `nanonet train` wrote it.

        Raises:
            InputError: it is none.
        """
        path = Path(folder).expanduser()
        if not (path / REPORT).is_file():
            raise InputError(f"folder {folder} holds no finished run: give one that Distiller.save wrote")
        with as_arguments():
            settings = _stored(path / RUN_CONFIG, yaml.safe_load)
        known = {field.name for field in FIELDS}
        return cls(**{name: value for name, value in settings.items() if name in known})._read(path, None)

    def _config(self) -> TrainConfig:
        """The settings of the run, of checked types."""
        values = self.get_params(deep=False)
        return check_types(TrainConfig(data="", **values))

    def _read(self, folder: Path, temporary: tempfile.TemporaryDirectory | None) -> Distiller:
        """Take what is learnt from the folder of a finished run."""
        report = _stored(folder / REPORT, json.loads)
        students, best = report.get("students"), report.get("best")
        if not isinstance(students, list) or not isinstance(best, int) or not 0 <= best < len(students):
            raise InputError(f"{folder / REPORT}: names no best of its students; {CURE}")
        file = folder / LABEL_TYPE
        kind = _stored(file, json.loads).get("labels") if file.exists() else "str"
        self.students_ = [load(folder, student) for student in range(len(students))]
        self.best_: Classifier = self.students_[best]
        try:
            self.classes_ = np.array(from_names(self.best_.classes, str(kind)))
        except (KeyError, TypeError, ValueError):
            raise InputError(f"{file}: {shorten(kind, 30)} is no type of its labels; {CURE}") from None
        self.report_, self.folder_, self._temporary = report, folder, temporary
        return self

    def __sklearn_clone__(self) -> Distiller:
        clone: Distiller = super().__sklearn_clone__()
        clone._preset = self._preset
        return clone

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.string = tags.input_tags.one_d_array = True
        tags.input_tags.two_d_array = False
        tags.no_validation = True
        return tags

    def __getstate__(self) -> dict[str, Any]:
        """A pickle holds the files of the run, and no model."""
        state = dict(super().__getstate__())
        if "folder_" in state:
            folder = state.pop("folder_")
            files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
            state = {name: value for name, value in state.items() if not name.endswith("_") and name != "_temporary"}
            state["_files"] = {str(path.relative_to(folder)): path.read_bytes() for path in files}
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        files = state.pop("_files", None)
        super().__setstate__(state)
        if files is not None:
            temporary = _temporary()
            folder = Path(temporary.name) / "run"
            for name, content in files.items():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).write_bytes(content)
            self._read(folder, temporary)


def _stored(path: Path, parse: Callable[[str], Any]) -> dict[str, Any]:
    """The content of a file of a run. Raises InputError unless it is one table of names."""
    try:
        found = parse(read_small(path))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise InputError(f"{path}: damaged ({shorten(str(error))}); {CURE}") from error
    if not isinstance(found, dict):
        raise InputError(f"{path}: damaged, no table of names; {CURE}")
    return found


def _temporary() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory(prefix="nanonet-", ignore_cleanup_errors=True)


# scikit-learn reads the parameters of an estimator from the signature of its __init__
Distiller.__init__.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
    [inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)]
    + [inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default) for field in FIELDS]
)
