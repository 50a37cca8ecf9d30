"""Export of a classifier: one ONNX file, or a copy of a student's folder.

The export is loaded again and compared with the model before it gets its name.
"""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import json
import logging
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nanonet.config.commands import EvaluateConfig, ExportConfig
from nanonet.config.describe import describe
from nanonet.config.train import TrainConfig
from nanonet.data.batches import Encoded
from nanonet.data.dataset import Split
from nanonet.data.pairs import MARK
from nanonet.errors import InputError
from nanonet.inference.classifier import Classifier, find_classifier, load_classifier
from nanonet.inference.evaluate import labelled_texts
from nanonet.inference.forward import logits_of, run
from nanonet.inference.scores import scores

# largest difference of logits between model and export, relative to the largest logit
TOLERANCE = 1e-3
NEEDED = ("onnx", "onnxscript", "onnxruntime")


def export(config: ExportConfig) -> dict[str, Any]:
    """Write the model; output, format, size_mb, and max_difference of the logits from the model's own.

    int8 adds agreement: the fraction of texts with the same label. The texts compared are the help texts of `nanonet
    train`, which every installation has. `data` adds before and after: `accuracy_and_speed` of the model in torch and
    of the file in onnxruntime.

    Raises:
        InputError: the model, the output, a missing package, or an architecture that ONNX cannot represent.
    """
    folder = find_classifier(config.model, config.student)
    if not config.output:
        what = "file, such as model.onnx" if config.format == "onnx" else "folder"
        raise InputError(f"--output is missing: name the {what}")
    output = Path(config.output).expanduser().resolve()
    _check_output(config, output, folder.resolve())
    if config.format == "onnx":
        missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
        if missing:
            raise InputError(f"--format onnx needs {', '.join(missing)}: pip install nanonet[onnx]")
    elif config.int8:
        raise InputError("--int8 goes with --format onnx; leave it out to copy the folder as it is")
    elif config.data:
        raise InputError("--data goes with --format onnx: the copy of a folder is as good and as fast as the folder")
    classifier = load_classifier(folder)
    table = None
    if config.data:
        evaluated = EvaluateConfig(
            data=config.data,
            text_column=config.text_column,
            label_column=config.label_column,
            max_text_bytes=config.max_text_bytes,
            max_data_bytes=config.max_data_bytes,
        )
        table = labelled_texts(evaluated, classifier.classes)
    texts = list(describe(TrainConfig).values())
    if classifier.pairs:
        texts = [MARK.join(pair) for pair in itertools.pairwise(texts)]
    encoded = classifier.encode(texts, 0)
    wanted = _logits(logits_of(classifier.model), encoded, classifier)
    try:
        temporary = tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.")
    except OSError as error:
        raise InputError(f"--output {config.output}: {output.parent}: {error.strerror}; give another place") from error
    with temporary as place:
        if config.format == "onnx":
            written, facts = _onnx(classifier, Path(place), config.int8, encoded, wanted)
            size = written.stat().st_size
            if table:
                forwards = {"before": logits_of(classifier.model), "after": onnx_session(written)}
                facts |= {name: accuracy_and_speed(forward, table, classifier) for name, forward in forwards.items()}
        else:
            written = Path(place) / "copy"
            shutil.copytree(folder, written)
            copy = load_classifier(written)
            facts = {"max_difference": _compare(_logits(logits_of(copy.model), encoded, copy), wanted, "the copy")}
            size = sum(path.stat().st_size for path in written.rglob("*") if path.is_file())
        _put_in_place(written, output, Path(place) / "replaced")
    return {"output": str(output), "format": config.format, "size_mb": round(size / 1e6, 2), **facts}


def _check_output(config: ExportConfig, output: Path, folder: Path) -> None:
    if not output.parent.is_dir():
        raise InputError(f"--output {config.output}: there is no folder {output.parent}; make it first")
    if output == folder or output in folder.parents or (config.format == "huggingface" and folder in output.parents):
        raise InputError(f"--output {config.output} is, holds or lies in the model's own folder; give another place")
    if config.format == "onnx":
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
        others = {path.name for path in output.iterdir()} - {path.name for path in folder.iterdir()}
        if others:
            raise InputError(
                f"--overwrite: {config.output} holds {min(others)}, which the model's folder does not have; move it"
                " away, or give another place"
            )


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


def _onnx(
    classifier: Classifier, place: Path, int8: bool, encoded: Encoded, wanted: Tensor
) -> tuple[Path, dict[str, Any]]:
    import onnx

    class Logits(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = classifier.model

        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
            return logits_of(self.model)(input_ids, attention_mask)

    path = place / "model.onnx"
    # two rows of different length: the exporter takes a size of 1 for a constant
    ids = torch.arange(32).view(2, 16) % 7 + 3
    mask = torch.ones_like(ids)
    mask[1, 9:] = 0
    axes = {0: "batch", 1: "length"}
    try:
        with _without_warnings():
            # eval() on the wrapper too: the exporter restores the wrapper's mode, which includes the model's dropout
            torch.onnx.export(
                Logits().eval(),
                (ids, mask),
                str(path),
                dynamo=True,
                dynamic_shapes=(axes, axes),
                external_data=False,
                input_names=["input_ids", "attention_mask"],
                output_names=["logits"],
                verbose=False,
            )
    except Exception as error:  # the exporter raises many types, with messages of pages
        kind = type(classifier.model).__name__
        why = f"{type(error).__name__}: {(str(error).strip() or '?').splitlines()[0]:.100}"
        raise InputError(f"--model: torch cannot write {kind} as ONNX ({why}); give --format huggingface") from error
    difference = _compare(_logits(onnx_session(path), encoded, classifier), wanted, "its ONNX form")
    facts: dict[str, Any] = {"int8": int8, "max_difference": difference}
    if int8:
        from onnxruntime.quantization import QuantType, quantize_dynamic

        graph = onnx.load(path)
        # the quantiser transposes weights; without the exporter's shapes it infers the new ones
        del graph.graph.value_info[:]
        path = place / "int8.onnx"
        # onnxruntime's 8-bit convolution is several times slower than float32
        convolutions = [node.name for node in graph.graph.node if node.op_type == "Conv"]
        with _without_warnings():
            quantize_dynamic(graph, path, weight_type=QuantType.QInt8, nodes_to_exclude=convolutions)
        logits = _logits(onnx_session(path), encoded, classifier)
        facts["max_difference"] = round(float((logits - wanted).abs().max()), 9)
        facts["agreement"] = round(float((logits.argmax(-1) == wanted.argmax(-1)).float().mean()), 4)
    graph = onnx.load(path)
    onnx.helper.set_model_props(graph, {"labels": json.dumps(classifier.classes)})
    onnx.save(graph, path)
    return path, facts


def onnx_session(path: Path) -> Callable[[Tensor, Tensor], Tensor]:
    """forward(input_ids, attention_mask) -> logits of a file that `export` wrote, on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def forward(ids: Tensor, mask: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {"input_ids": ids.numpy(), "attention_mask": mask.numpy()})[0])

    return forward


def accuracy_and_speed(
    forward: Callable[[Tensor, Tensor], Tensor], table: Split, classifier: Classifier
) -> dict[str, float]:
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


def _logits(forward: Callable[[Tensor, Tensor], Tensor], encoded: Encoded, classifier: Classifier) -> Tensor:
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


@contextlib.contextmanager
def _without_warnings() -> Iterator[None]:
    """Without the exporters' warnings: their output is compared with the model."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
