"""A text classifier from disk: any folder that transformers loads as one, checked before it is used."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel

import nanonet.models.cnn  # noqa: F401  tells transformers of CNN students, and of kept teachers
import nanonet.models.pooled  # noqa: F401
import nanonet.models.static  # noqa: F401
from nanonet.config.train import RUN_CONFIG
from nanonet.data.batches import Encoded, encode, encode_any, rows_with_words
from nanonet.data.memory import text_list
from nanonet.data.pairs import check_one_kind, is_pair
from nanonet.device import device
from nanonet.errors import InputError, as_arguments
from nanonet.files import read_small
from nanonet.inference.checks import CURE, check_logits, check_padding, checked_classes
from nanonet.inference.forward import BATCH_ROWS, logits_of, run
from nanonet.inference.onnx_model import OnnxModel, exported_graph, find_graph, is_export, load_onnx
from nanonet.inference.side_by_side import ROWS_AT_ONCE, in_order
from nanonet.models.dummy_inputs import dummy_inputs
from nanonet.models.load import check_layers, check_vocabulary, quiet, read_pretrained
from nanonet.models.pairs import text_pair

MAX_TOKENS = 128  # where neither the user nor the model's run says


@dataclass(frozen=True, eq=False)
class Classifier:
    """A model in eval mode, its tokenizer, its class names in logit order, and the folder they came from. An OnnxModel
    stands for the model where the folder is an export."""

    model: PreTrainedModel
    tokenizer: Any
    classes: list[str]
    folder: Path

    @property
    def pairs(self) -> bool:
        """Whether it was trained on pairs of texts."""
        return text_pair(self.model.config) is not None

    @property
    def max_tokens(self) -> int:
        """The tokens that a text is cut to where the user does not say [tokens]."""
        return self._length(0)

    @cached_property
    def _tokens(self) -> tuple[int, int]:
        """The tokens of its run or export, 0 where neither says, and those that the model has positions for: found
        once, as texts come in many parts."""
        usual = self.tokenizer.model_max_length if is_export(self.folder) else _run_tokens(self.folder)
        return usual, most_tokens(self.model)

    def encode(self, texts: list[str], max_tokens: int, where: Callable[[int], str] | None = None) -> Encoded:
        """Token ids, cut to `max_tokens`; 0 takes the setting of the model's run or export, else MAX_TOKENS.

        Raises:
            InputError: more tokens than the model has positions, a tokenizer of another model, or single texts where
                it reads pairs.
        """
        self._check_kind(texts)
        return self._checked(encode(self.tokenizer, texts, self._length(max_tokens), where))

    def encode_any(
        self, texts: list[str], max_tokens: int, where: Callable[[int], str] | None = None
    ) -> tuple[Encoded, list[int]]:
        """As `encode`, of the texts of which the tokenizer leaves something; and their numbers."""
        self._check_kind(texts)
        encoded = self._checked(encode_any(self.tokenizer, texts, self._length(max_tokens), where))
        rows = rows_with_words(self.tokenizer, encoded, self.pairs)
        return encoded if len(rows) == len(encoded) else encoded[rows], rows

    def predict(self, texts: Any) -> list[str | None]:
        """The name of each text's class; None for a text without a word, such as an empty one.

        texts: N strings: a list, an array or a column of a table; of a model of pairs a list of (text, text).

        Raises:
            InputError: something else.
        """
        found = self.predict_proba(texts)
        return [None if row[0] != row[0] else self.classes[row.argmax()] for row in found]

    def predict_proba(self, texts: Any) -> np.ndarray:
        """The probabilities (N,C) float32 of the classes, in the order of `classes`; NaN for a text without a word.

        texts: as `predict` takes them.
        """
        with as_arguments():
            given = text_list(texts)
            if given and is_pair(given[0]) != self.pairs:
                takes = "pairs of texts: give a list of (text, text)" if self.pairs else "single texts: give strings"
                raise InputError(f"texts: {self.folder} takes {takes}")
            starts = range(0, len(given), ROWS_AT_ONCE)

            def work(start: int, alive: Callable[[], None]) -> tuple[Tensor, list[int]]:
                return self.probabilities(given[start : start + ROWS_AT_ONCE], done=lambda rows: alive())

            every = np.full((len(given), len(self.classes)), np.nan, np.float32)
            for start, (found, rows) in zip(starts, in_order(work, starts), strict=True):
                every[start + np.array(rows, int)] = found.numpy()
        return every

    def probabilities(
        self,
        texts: list[str],
        max_tokens: int = 0,
        batch_rows: int = BATCH_ROWS,
        where: Callable[[int], str] | None = None,
        done: Callable[[int], Any] = lambda rows: None,
    ) -> tuple[Tensor, list[int]]:
        """Probabilities (n,C) of the n texts of which the tokenizer leaves something, and their numbers. `done` is told
        the number of rows after each batch."""
        encoded, rows = self.encode_any(texts, max_tokens, where)
        if not rows:
            return torch.empty(0, len(self.classes)), rows
        pad_id = self.tokenizer.pad_token_id
        logits = run(logits_of(self.model), encoded, pad_id, self.model.device, batch_rows, done)
        return torch.softmax(logits, -1), rows

    def _check_kind(self, texts: Sequence[str]) -> None:
        if not texts or check_one_kind(texts) == self.pairs:
            return
        what = f"--model {self.folder} was trained on"
        if self.pairs:
            raise InputError(f"{what} pairs of texts: give both columns, such as --text-column premise,hypothesis")
        raise InputError(f"{what} single texts: give --text-column one column, or a model of pairs")

    def _length(self, max_tokens: int) -> int:
        usual, room = self._tokens
        wanted = max_tokens or min(usual or MAX_TOKENS, room)
        check_tokens(wanted, room)
        return wanted

    def _checked(self, encoded: Encoded) -> Encoded:
        if len(encoded.ids):
            check_vocabulary(int(encoded.ids.max()), self.model, f"--model {self.folder}")
        return encoded


def load(folder: str | Path, student: int = -1) -> Classifier:
    """The classifier in a folder: a run's best (or its student of that number), one of its students, or any other text
    classifier that transformers loads. It is moved to the accelerator, if torch finds one. What `nanonet export` wrote
    runs in onnxruntime on the CPU: its folder in float32, or the ONNX file of that name.

    Raises:
        InputError: one line that names the fault of the folder.
    """
    with as_arguments():
        classifier = open_classifier(str(folder), student)
    classifier.model.to(device())  # type: ignore[arg-type]
    return classifier


def open_classifier(name: str, student: int = -1) -> Classifier:
    """As `load`, on the CPU; errors name flags.

    Raises:
        InputError: one line that names the fault of the folder or file.
    """
    if found := find_graph(name):
        if student >= 0:
            raise InputError(f"--student {student}: {name} is one model; leave it out")
        return _load_onnx(*found, f"--model {name}")
    folder = find_classifier(name, student)
    graph = exported_graph(folder)
    return _load_onnx(graph, folder, f"--model {folder}") if graph else load_classifier(folder)


def most_tokens(model: PreTrainedModel | OnnxModel) -> int:
    """Tokens that the model has positions for, a multiple of 8 as in batches; 10**6 where its config has no limit."""
    if isinstance(model, OnnxModel) and model.positions:
        return model.positions
    room = getattr(model.config, "max_position_embeddings", None) or 10**6
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            # RoBERTa's positions start after the padding index
            first = 0 if module.padding_idx is None else module.padding_idx + 1
            room = min(room, module.num_embeddings - first)
    return room // 8 * 8


def check_tokens(max_tokens: int, room: int) -> None:
    """Raise InputError unless `max_tokens` fits."""
    if max_tokens < 1:
        raise InputError(f"--max-tokens {max_tokens}: give 1 or more")
    if max_tokens > room:
        raise InputError(f"--max-tokens {max_tokens}: the model has positions for {room} tokens; give {room} or fewer")


def find_classifier(name: str, student: int = -1) -> Path:
    """The folder of the classifier that `name` means: itself, or a run's best (student -1) or its student.

    Raises:
        InputError: there is none.
    """
    if not name:
        raise InputError(f"--model is missing: {CURE}")
    folder = Path(name).expanduser()
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        raise InputError(f"--model {name}: {what}; {CURE}")
    is_run = (folder / RUN_CONFIG).is_file() and not (folder / "config.json").exists()
    if student >= 0:
        if not (is_run and (folder / f"student-{student}").is_dir()):
            there = ", ".join(sorted(path.name for path in folder.glob("student-*[0-9]"))) if is_run else ""
            cure = f"it has {there}" if there else "give the output folder of nanonet train"
            raise InputError(f"--student {student}: {name} holds no student-{student}; {cure}")
        folder = folder / f"student-{student}"
    elif student < -1:
        raise InputError(f"--student {student}: give a number from 0, or -1 for the best")
    elif is_run:
        if not (folder / "best").is_dir():
            raise InputError(f"--model {name}: this run is not finished; go on with nanonet train --resume")
        folder = folder / "best"
    if (folder / "adapter_config.json").exists():
        raise InputError(f"--model {name}: an adapter, not a full model; merge it with peft's merge_and_unload first")
    if not (folder / "config.json").is_file():
        raise InputError(f"--model {name}: the folder has no config.json; {CURE}")
    return folder


def load_classifier(folder: Path, what: str = "") -> Classifier:
    """Load the folder of a classifier: safetensors only, no remote code, every weight present, float32.

    what: the flag that named it and its value, with which errors begin; --model without it.

    Raises:
        InputError: one line that names the fault of the folder.
    """
    what = what or f"--model {folder}"
    if not any(folder.glob("*.safetensors")):
        pickled = sorted(path.name for path in folder.glob("*.bin"))
        there = f"only pickled weights ({pickled[0]}), which can run code when loaded" if pickled else "no weights"
        raise InputError(f"{what} has {there}; give model.safetensors, as save_pretrained writes it")
    with quiet():
        model, info = read_pretrained(
            AutoModelForSequenceClassification,
            str(folder),
            what,
            CURE,
            local_files_only=True,
            dtype=torch.float32,
            use_safetensors=True,
            output_loading_info=True,
        )
        tokenizer = read_pretrained(AutoTokenizer, str(folder), what, CURE, local_files_only=True)
    if info["missing_keys"]:
        first = sorted(info["missing_keys"])[0]
        raise InputError(
            f"{what}: not a trained text classifier ({len(info['missing_keys'])} weights are missing,"
            f" first {first}); {CURE}"
        )
    check_layers(info["unexpected_keys"], what)
    classes = checked_classes(model, tokenizer, what)
    check_padding(model.eval(), tokenizer.pad_token_id, what)
    return Classifier(model, tokenizer, classes, folder)


@torch.inference_mode()
def _load_onnx(graph: Path, folder: Path, what: str) -> Classifier:
    """The model in an ONNX file, with the tokenizer and the class names of the folder."""
    with quiet():
        config = read_pretrained(AutoConfig, str(folder), what, CURE, local_files_only=True)
        tokenizer = read_pretrained(AutoTokenizer, str(folder), what, CURE, local_files_only=True)
    model: Any = load_onnx(graph, config, what)
    classes = checked_classes(model, tokenizer, what)
    ids, mask = dummy_inputs(config)
    # its padding was checked when it was exported; with 8-bit activations all logits of a batch depend on one another
    check_logits(logits_of(model)(ids, mask), what)
    return Classifier(model, tokenizer, classes, folder)


def _run_tokens(folder: Path) -> int:
    """--max-tokens of the run that `folder` lies in; 0 where there is none."""
    try:
        settings = yaml.safe_load(read_small(folder.absolute().parent / RUN_CONFIG))
        return max(int(settings["max_tokens"]), 0)
    except (
        OSError,
        ValueError,
        OverflowError,
        KeyError,
        TypeError,
        RecursionError,
        yaml.YAMLError,
    ):  # some other folder's file of that name
        return 0
