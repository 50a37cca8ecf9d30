"""The model card of an exported folder: README.md, as the Hugging Face hub reads it.

What the run's report.json knows is told with its intervals; what nobody measured is not told.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from nanonet.errors import InputError, escape_controls
from nanonet.files import read_small
from nanonet.inference.card_usage import usage
from nanonet.inference.classifier import Classifier
from nanonet.inference.onnx_model import FLOAT, QUANTIZED
from nanonet.inference.scores import wilson

MOST_LABELS = 200  # that the card names; config.json has them all


def check_license(name: str) -> None:
    """Raise InputError unless this may be the hub's name of a licence, or none is given."""
    if name and not re.fullmatch(r"[a-z0-9][a-z0-9.+-]{0,60}", name):
        raise InputError(f"--license {name}: give the hub's short name of it, such as apache-2.0")


def write_card(classifier: Classifier, folder: Path, name: str, facts: dict[str, Any], rows: int, license: str) -> None:
    """Write the README.md of an exported folder.

    name: of the folder; facts: what `export` returns; rows: on which it measured before, after and after_int8.
    """
    run = _Run(classifier.folder)
    custom = classifier.model.config.model_type.startswith("nanonet_")
    data = ModelCardData(
        license=license or None,
        library_name="nanonet" if custom else "transformers",
        pipeline_tag="text-classification",
        tags=["text-classification", "knowledge-distillation", "nanonet", "onnx", "transformers.js"],
        metrics=["accuracy", "f1"] if run.scores or rows else None,
    )
    title = _inline(name)
    parts = [
        f"# {title}",
        *_about(classifier, run),
        "## Labels",
        _labels(classifier.classes),
        *_accuracy(run, facts, rows),
        "## Files",
        *_files(folder, facts),
        *usage(classifier, custom),
    ]
    ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(parts) + "\n").save(folder / "README.md")


class _Run:
    """What the report.json of the model's run says of it; empty where there is none.

    scores: model -> its scores on the test rows; test: number of these rows.
    """

    def __init__(self, folder: Path) -> None:
        self.data: dict[str, Any] = {}
        self.teacher = ""
        self.scores: dict[str, dict[str, float]] = {}
        try:
            report = json.loads(read_small(folder.absolute().parent / "report.json"))
            number = report["best"] if folder.name == "best" else int(folder.name.removeprefix("student-"))
            scores = {"this model": report["students"][number], "its teacher": report["teacher"]}
            data, name = dict(report["data"]), report["teacher"]["name"] or ""
            known = {
                who: {key: float(s[key]) for key in ("accuracy", "macro_f1")}
                for who, s in scores.items()
                if s["accuracy"] is not None
            }
            counts = {key: int(data[key]) for key in ("labelled", "unlabelled", "test", "test_in_train")}
            self.data = counts | {"name": str(data["name"])}
            self.teacher, self.scores = str(name), known
        except (OSError, ValueError, KeyError, TypeError, IndexError, RecursionError):
            return  # another program's file of that name, or none


def _about(classifier: Classifier, run: _Run) -> Iterator[str]:
    model, what = classifier.model, "pairs of texts" if classifier.pairs else "texts"
    parameters = sum(p.numel() for p in model.parameters()) / 1e6
    yield (
        f"A classifier of {what} into {len(classifier.classes)} classes, made with nanonet: `{type(model).__name__}`,"
        f" {parameters:.2f} million parameters. Input is cut to {classifier.max_tokens} tokens."
    )
    if run.data:
        data = run.data
        taught = f", taught by {_name(run.teacher)}" if run.teacher else ""
        yield (
            f"Trained on the data `{_name(data['name'])}`: {data['labelled']} labelled and"
            f" {data['unlabelled']} unlabelled texts{taught}."
        )


def _labels(classes: list[str]) -> str:
    named = ", ".join(f"`{_inline(name)}`" for name in classes[:MOST_LABELS])
    rest = len(classes) - MOST_LABELS
    return named + (f", and {rest} more in config.json" if rest > 0 else "") + "."


def _accuracy(run: _Run, facts: dict[str, Any], rows: int) -> Iterator[str]:
    test = run.data.get("test", 0)
    measured = [(who, test, scores) for who, scores in run.scores.items() if test]
    forms = {"after": f"this model, `{FLOAT}`", "after_int8": f"this model, `{QUANTIZED}`"}
    measured += [(who, rows, facts[form]) for form, who in forms.items() if form in facts]
    if not measured:
        return
    yield "## Accuracy"
    lines = ["| model | test texts | accuracy | 95% interval | macro F1 |", "|---|---|---|---|---|"]
    for who, count, scores in measured:
        low, high = wilson(scores["accuracy"], count)
        lines.append(
            f"| {who} | {count} | {scores['accuracy']:.4f} | {low:.4f} to {high:.4f} | {scores['macro_f1']:.4f} |"
        )
    yield "\n".join(lines)
    yield "The interval is Wilson's; it tells what the number of test texts alone leaves open."
    if run.data.get("test_in_train"):
        yield f"{run.data['test_in_train']} of the {test} test texts are also training texts."


def _files(folder: Path, facts: dict[str, Any]) -> Iterator[str]:
    lines = ["| file | MB |", "|---|---|"]
    for path in (*sorted(folder.glob("*.safetensors")), folder / FLOAT, folder / QUANTIZED):
        lines.append(f"| `{path.relative_to(folder)}` | {path.stat().st_size / 1e6:.2f} |")
    yield "\n".join(lines)
    yield (
        f"`{QUANTIZED}` has 8-bit weights and embeddings. Of the texts that the export was compared on,"
        f" {100 * facts['agreement_int8']:g}% get the same label from it. Its activations are rounded by batch, so"
        " that a probability depends a little on the other texts of its batch."
    )


def _name(source: str) -> str:
    """A data set or model by its name; of a folder the last part alone, which says nothing of somebody's machine."""
    return _inline(Path(source).name if source.startswith(("/", ".", "~")) or Path(source).exists() else source)


def _inline(text: str) -> str:
    """One line that is no markup, in backquotes or in a table."""
    return re.sub(r"[`|<>]", "'", escape_controls(text))[:200]
