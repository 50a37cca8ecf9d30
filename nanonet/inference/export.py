"""Export of a classifier: a folder for all clients, one ONNX file, or a copy of a student's folder.

The export is loaded again and compared with the model before it gets its name.
"""

from __future__ import annotations

import itertools
import json
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nanonet.config.commands import EvaluateConfig, ExportConfig
from nanonet.config.describe import describe
from nanonet.config.train import TrainConfig
from nanonet.data.batches import Encoded
from nanonet.data.dataset import Split
from nanonet.data.pairs import MARK
from nanonet.errors import InputError
from nanonet.inference.card import check_license, write_card
from nanonet.inference.classifier import Classifier, find_classifier, load_classifier, open_classifier
from nanonet.inference.evaluate import labelled_texts
from nanonet.inference.export_folder import file_names, write_files
from nanonet.inference.forward import logits_of, run
from nanonet.inference.onnx_graph import check_packages, write_graph, write_properties
from nanonet.inference.onnx_int8 import write_quantized
from nanonet.inference.onnx_model import FLOAT, QUANTIZED, is_export, onnx_session
from nanonet.inference.scores import scores

# largest difference of logits between model and export, relative to the largest logit
TOLERANCE = 1e-3
ONNX = "its ONNX form"
Forward = Callable[[Tensor, Tensor], Tensor]


def export(config: ExportConfig) -> dict[str, Any]:
    """Write the model; output, format, size_mb, and max_difference of the logits from the model's own.

    An 8-bit file adds agreement: the fraction of texts with the same label. The texts compared are the help texts of
    `nanonet train`, which every installation has. `data` adds `accuracy_and_speed`: before, of the model in torch, and
    after, of the file in onnxruntime; of a folder also after_int8.

    Raises:
        InputError: the model, the output, a missing package, or an architecture that ONNX cannot represent.
    """
    folder = find_classifier(config.model, config.student)
    if not config.output:
        what = {"onnx": "file, such as model.onnx", "auto": "folder, or a file such as model.onnx"}
        raise InputError(f"--output is missing: name the {what.get(config.format, 'folder')}")
    output = Path(config.output).expanduser().resolve()
    form = config.format if config.format != "auto" else "onnx" if output.suffix == ".onnx" else "folder"
    _check_options(config, form)
    _check_output(config, form, output, folder.resolve())
    classifier = load_classifier(folder)
    table = _table(config, classifier)
    encoded = classifier.encode(_texts(classifier), 0)
    wanted = _logits(logits_of(classifier.model), encoded, classifier)
    try:
        temporary = tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.")
    except OSError as error:
        raise InputError(f"--output {config.output}: {output.parent}: {error.strerror}; give another place") from error
    with temporary as place:
        written, files = Path(place) / "written", {}
        if form == "onnx":
            facts = _write_file(classifier, written, config.int8, encoded, wanted)
            files = {"after": written}
        elif form == "folder":
            facts = _write_folder(classifier, written, encoded, wanted)
            files = {"after": written / FLOAT, "after_int8": written / QUANTIZED}
        else:
            shutil.copytree(folder, written)
            copy = load_classifier(written)
            facts = {"max_difference": _compare(_logits(logits_of(copy.model), encoded, copy), wanted, "the copy")}
        if table:
            forwards = {"before": logits_of(classifier.model)} | {
                name: onnx_session(file, classifier.model.config) for name, file in files.items()
            }
            facts |= {name: accuracy_and_speed(forward, table, classifier) for name, forward in forwards.items()}
        if form == "folder":
            write_card(classifier, written, output.name, facts, len(table.texts) if table else 0, config.license)
        size = sum(path.stat().st_size for path in (written, *written.rglob("*")) if path.is_file())
        _put_in_place(written, output, Path(place) / "replaced")
    return {"output": str(output), "format": form, "size_mb": round(size / 1e6, 2), **facts}


def _check_options(config: ExportConfig, form: str) -> None:
    if form == "huggingface":
        if config.int8:
            raise InputError("--int8 goes with --format onnx; leave it out to copy the folder as it is")
        if config.data:
            raise InputError("--data goes with ONNX: the copy of a folder is as good and as fast as the folder")
    else:
        check_packages()
    if form == "folder" and config.int8:
        raise InputError("--int8 goes with --format onnx: the folder holds both forms; leave it out")
    if form != "folder" and config.license:
        raise InputError("--license goes with --format folder: it stands in the folder's card")
    check_license(config.license)


def _texts(classifier: Classifier) -> list[str]:
    """The texts, or pairs of them, on which model and export are compared."""
    texts = list(describe(TrainConfig).values())
    return [MARK.join(pair) for pair in itertools.pairwise(texts)] if classifier.pairs else texts


def _table(config: ExportConfig, classifier: Classifier) -> Split | None:
    """The texts and labels of --data."""
    if not config.data:
        return None
    evaluated = EvaluateConfig(
        data=config.data,
        text_column=config.text_column,
        label_column=config.label_column,
        max_text_bytes=config.max_text_bytes,
        max_data_bytes=config.max_data_bytes,
    )
    return labelled_texts(evaluated, classifier.classes)


def _check_output(config: ExportConfig, form: str, output: Path, folder: Path) -> None:
    if not output.parent.is_dir():
        raise InputError(f"--output {config.output}: there is no folder {output.parent}; make it first")
    if output == folder or output in folder.parents or (form != "onnx" and folder in output.parents):
        raise InputError(f"--output {config.output} is, holds or lies in the model's own folder; give another place")
    if form == "onnx":
        if output.exists() and not output.is_file():
            raise InputError(f"--output {config.output} is no file; give one, such as model.onnx")
        if output.exists() and not config.overwrite:
            raise InputError(f"--output {config.output} is there already; give --overwrite to replace it")
    elif output.exists() and not output.is_dir():
        raise InputError(f"--output {config.output}: a file is in the way; give a folder")
    elif output.is_dir() and any(output.iterdir()):
        if not config.overwrite:
            raise InputError(f"--output {config.output} is not empty; give --overwrite to replace it")
        if not _is_model(output):
            raise InputError(f"--overwrite: {config.output} is no model's folder; empty it yourself")
        ours = _files(folder) | (file_names(output) if is_export(output) else set())
        if others := _files(output) - ours:
            raise InputError(
                f"--overwrite: {config.output} holds {min(others)}, which nanonet export did not write; move it away,"
                " or give another place"
            )


def _files(folder: Path) -> set[str]:
    """The files in a folder and below it, and the folders without one, relative to it."""
    found = folder.rglob("*")
    return {str(path.relative_to(folder)) for path in found if not path.is_dir() or not any(path.iterdir())}


def _put_in_place(written: Path, output: Path, aside: Path) -> None:
    """Rename `written` to `output`; a folder that is there is renamed to `aside` first, and back if this fails."""
    if not output.is_dir():
        written.rename(output)  # over a file: atomically
        return
    output.rename(aside)
    try:
        written.rename(output)
    except BaseException:
        aside.rename(output)
        raise


def _is_model(folder: Path) -> bool:
    try:
        return "model_type" in json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        return False


def _write_file(classifier: Classifier, path: Path, int8: bool, encoded: Encoded, wanted: Tensor) -> dict[str, Any]:
    """One ONNX file, without a tokenizer; facts of it."""
    write_graph(classifier.model, path)
    logits = _logits(onnx_session(path, classifier.model.config), encoded, classifier)
    facts: dict[str, Any] = {"int8": int8, "max_difference": _compare(logits, wanted, ONNX)}
    if int8:
        write_quantized(path, path)
        facts["max_difference"], facts["agreement"] = _closeness(path, encoded, wanted, classifier)
    write_properties(path, {"labels": classifier.classes})
    return facts


def _write_folder(classifier: Classifier, written: Path, encoded: Encoded, wanted: Tensor) -> dict[str, Any]:
    """The folder without its card; facts of it. It is read as `nanonet predict` reads it, and its weights by
    transformers."""
    write_files(classifier, written)
    copy, opened = load_classifier(written), open_classifier(str(written))
    again = opened.encode(_texts(opened), 0)
    if not torch.equal(again.ids, encoded.ids):
        raise InputError("--model: its tokenizer.json gives other tokens than itself; give --format huggingface")
    _compare(_logits(logits_of(copy.model), encoded, copy), wanted, "the copy")
    facts: dict[str, Any] = {"max_difference": _compare(_logits(logits_of(opened.model), again, opened), wanted, ONNX)}
    facts["max_difference_int8"], facts["agreement_int8"] = _closeness(written / QUANTIZED, again, wanted, opened)
    sizes = {"onnx_mb": written / FLOAT, "onnx_int8_mb": written / QUANTIZED}
    return facts | {name: round(path.stat().st_size / 1e6, 2) for name, path in sizes.items()}


def _closeness(path: Path, encoded: Encoded, wanted: Tensor, classifier: Classifier) -> tuple[float, float]:
    """Of an 8-bit file: the largest difference of the logits, and the fraction of the texts with the same label."""
    logits = _logits(onnx_session(path, classifier.model.config), encoded, classifier)
    same = (logits.argmax(-1) == wanted.argmax(-1)).float().mean()
    return round(float((logits - wanted).abs().max()), 9), round(float(same), 4)


def accuracy_and_speed(forward: Forward, table: Split, classifier: Classifier) -> dict[str, float]:
    """accuracy and macro_f1 [fractions]; rows_per_s, 32 texts at a time; ms_per_text, one at a time, of at most 200.

    Tokenisation is not timed; texts of similar length share a batch.
    """
    encoded, pad_id = classifier.encode(table.texts, 0, table.where), classifier.tokenizer.pad_token_id
    few = encoded[range(min(len(encoded), 200))]
    run(forward, few, pad_id, rows_per_batch=32)  # warm
    began = time.perf_counter()
    logits = run(forward, encoded, pad_id, rows_per_batch=32)
    middle = time.perf_counter()
    run(forward, few, pad_id, rows_per_batch=1)
    return {
        **{name: round(value, 6) for name, value in scores(logits, table.labels or []).items()},
        "rows_per_s": round(len(encoded) / (middle - began), 1),
        "ms_per_text": round(1000 * (time.perf_counter() - middle) / len(few), 3),
    }


def _logits(forward: Forward, encoded: Encoded, classifier: Classifier) -> Tensor:
    """Logits of all texts in batches of 7, and of the first text alone: batches of different sizes and lengths."""
    pad_id = classifier.tokenizer.pad_token_id
    return torch.cat([run(forward, encoded, pad_id, rows_per_batch=7), run(forward, encoded[[0]], pad_id)])


def _compare(got: Tensor, wanted: Tensor, what: str) -> float:
    difference = float((got - wanted).abs().max())
    if not difference <= TOLERANCE * max(1.0, float(wanted.abs().max())):
        raise InputError(
            f"--model: {what} gives other logits, by {difference:.3g}: not written; use the Hugging Face folder instead"
        )
    return round(difference, 9)
