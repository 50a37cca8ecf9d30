"""A trained text classifier as the teacher: its head says what its classes are, and its logits are the soft labels."""

from __future__ import annotations

from pathlib import Path

from transformers import AutoConfig

from nanonet.config.settings import TeacherSettings
from nanonet.errors import InputError
from nanonet.inference.classifier import Classifier, load_classifier
from nanonet.models.load import CURE, find_model, quiet, read_pretrained
from nanonet.progress import note

CLASSIFIER = "ForSequenceClassification"  # how transformers' names of text classifiers end
FILES = ["*.json", "*.safetensors", "*.txt", "*.model"]


def find_head(name: str, settings: TeacherSettings) -> Classifier | None:
    """The classifier that `name` means, if its head is to make the soft labels; None of a plain encoder.

    A line on standard error says so where a head is left out.

    Raises:
        InputError: it is damaged, or `--targets head` asks for a head that is not there.
    """
    source, local = find_model(name)
    what = f"--teacher {name}"
    with quiet():
        config = read_pretrained(AutoConfig, source, what, CURE, local_files_only=local)
    is_classifier = any(str(kind).endswith(CLASSIFIER) for kind in config.architectures or ())
    wanted = settings.targets in ("auto", "head") and not settings.online
    one_of_many = config.problem_type in (None, "single_label_classification") and len(config.id2label) > 1
    if is_classifier and wanted and one_of_many:
        return load_classifier(Path(source) if local else _download(source, what), what)
    if settings.targets == "head":
        reason = "has no trained head" if not is_classifier else "does not choose one of two or more classes"
        raise InputError(f"--targets head: {what} {reason}; give a trained text classifier, or leave the flag out")
    if is_classifier:
        why = "an online teacher gets a new one" if settings.online else f"--targets {settings.targets}"
        why = why if not wanted else "it does not choose one of two or more classes"
        note(f"{what}: its trained head is not used ({why})")
    return None


def _download(name: str, what: str) -> Path:
    """The folder of a model of the hub."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=FILES))
    except Exception as error:  # httpx, OSError, offline mode
        raise InputError(
            f"{what}: cannot be downloaded ({type(error).__name__}); try again, or give a folder"
        ) from error
