"""A student leaves its cohort: as a plain Hugging Face model, or as a PEFT adapter beside its base.

What is written is read back and compared first; a folder appears under its name only when it is complete and right.
"""

from __future__ import annotations

import copy
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from nanonet.cohort.model import Cohort
from nanonet.errors import InputError
from nanonet.files import apply_umask
from nanonet.models.dummy_inputs import dummy_inputs
from nanonet.models.load import quiet
from nanonet.models.pairs import model_inputs

# largest difference of logits, relative to the largest logit, between a stacked and a plain student
TOLERANCE = 1e-3


@torch.no_grad()
def student(cohort: Cohort, k: int, merge: bool = True) -> PreTrainedModel:
    """Student k as a plain model on the CPU, in eval mode; its adapters merged, or left out where `merge` is False."""
    state = {name: tensor.cpu() for name, tensor in student_state(cohort, k, merge).items()}
    with torch.random.fork_rng(devices=[]):  # the initial weights are overwritten: they draw nothing from the caller
        model: Any = type(cohort.model)(copy.deepcopy(cohort.model.config))
    model.to(cohort.model.dtype).load_state_dict(state)
    return model.eval()


@torch.no_grad()
def student_state(cohort: Cohort, k: int, merge: bool = True) -> dict[str, Tensor]:
    """The state dict of student k as a plain model: views of the cohort's tensors, new where adapters are merged."""
    if not 0 <= k < cohort.students:
        raise ValueError(f"k: expected 0 to {cohort.students - 1}, got {k}")
    own = {name: t[k] if name in cohort.stacked else t for name, t in cohort.model.state_dict().items()}
    scale = dict(cohort.model.named_buffers())
    for name in [name for name in own if name.endswith(".lora_a")]:
        layer = name.removesuffix(".lora_a")
        a, b = own.pop(name), own.pop(layer + ".lora_b")
        if merge:
            own[layer + ".weight"] = own[layer + ".weight"] + scale[layer + ".scale"][k] * b @ a
    return own


def save_student(cohort: Cohort, k: int, folder: str | Path, tokenizer: Any = None) -> None:
    """Write student k as a directory that AutoModelForSequenceClassification loads; replaces what was there.

    Raises:
        RuntimeError: the written model, read back, has other keys or other logits; `folder` is as it was.
    """
    model = student(cohort, k)

    def write(temporary: Path) -> None:
        _write(model, temporary, tokenizer)
        _compare(cohort, k, _read(temporary))

    _replace(Path(folder).expanduser(), write)


def save_classifier(model: PreTrainedModel, folder: str | Path, tokenizer: Any) -> None:
    """Write a classifier as a directory that AutoModelForSequenceClassification loads; replaces what was there.

    Raises:
        RuntimeError: the written model, read back, has other keys or other logits; `folder` is as it was.
    """

    def write(temporary: Path) -> None:
        _write(model, temporary, tokenizer)
        inputs = model_inputs(model.config, *dummy_inputs(model.config))
        with torch.no_grad():
            wanted, got = (m(**inputs).logits for m in (model, _read(temporary)))
        if not torch.equal(got, wanted):
            raise RuntimeError(f"the classifier written to {temporary} and read back gives other logits")

    _replace(Path(folder).expanduser(), write)


def save_adapter(cohort: Cohort, k: int, folder: str | Path, tokenizer: Any = None) -> None:
    """Write student k's adapter and head in PEFT's format, and the layers it sits on in `folder`/base.

    Load with `PeftModel.from_pretrained(AutoModelForSequenceClassification.from_pretrained(folder/base), folder)`.

    Raises:
        InputError: the cohort has no adapters, or peft is not installed.
        RuntimeError: as `save_student`.
    """
    if cohort.tuning != "lora":
        raise InputError(f"an adapter comes from --tuning lora, not {cohort.tuning}: export a plain model instead")
    try:
        from peft import LoraConfig, PeftModel, get_peft_model
    except ImportError as error:
        raise InputError("writing an adapter needs peft: pip install peft, or export a plain model") from error
    folder = Path(folder).expanduser().absolute()
    layers = [name.removesuffix(".lora_a") for name in cohort.model.state_dict() if name.endswith(".lora_a")]
    base = student(cohort, k, merge=False)
    heads = sorted({_head_module(cohort, name) for name in base.state_dict() if cohort.parts.of(name) == "head"})
    settings = LoraConfig(
        task_type="SEQ_CLS",
        r=cohort.lora.rank,
        lora_alpha=cohort.lora.alpha,  # type: ignore[arg-type]  # declared int, used as a factor
        lora_dropout=cohort.lora.dropout,
        target_modules=layers,
        modules_to_save=heads,
    )

    def write(temporary: Path) -> None:
        _write(base, temporary / "base", tokenizer)
        with quiet():
            adapted = get_peft_model(copy.deepcopy(base), settings)
        with torch.no_grad():
            for layer in layers:
                ours: Any = cohort.model.get_submodule(layer)
                theirs: Any = adapted.get_base_model().get_submodule(layer)
                theirs.lora_A["default"].weight.copy_(ours.lora_a[k])
                theirs.lora_B["default"].weight.copy_(ours.lora_b[k])
        adapted.peft_config["default"].base_model_name_or_path = str(folder / "base")
        adapted.save_pretrained(str(temporary), save_embedding_layers=False)
        _compare(cohort, k, PeftModel.from_pretrained(_read(temporary / "base"), str(temporary)))

    _replace(folder, write)


def _head_module(cohort: Cohort, name: str) -> str:
    """The highest module that belongs to the head: `pooler` inside the base, else the first step of the name."""
    return name.removeprefix(cohort.parts.base).split(".")[0]


def _write(model: PreTrainedModel, folder: Path, tokenizer: Any) -> None:
    with quiet():
        model.save_pretrained(folder)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)


def _read(folder: Path) -> PreTrainedModel:
    with quiet():
        model, info = AutoModelForSequenceClassification.from_pretrained(
            folder, output_loading_info=True, local_files_only=True, use_safetensors=True
        )
    wrong = {kind: sorted(map(str, keys)) for kind, keys in info.items() if keys}
    if wrong:
        raise RuntimeError(f"the student written to {folder} has other weights than its config says: {wrong}")
    return model.eval()


@torch.no_grad()
def _compare(cohort: Cohort, k: int, model: Any) -> None:
    """Raise RuntimeError unless `model` has student k's logits on the dummy inputs."""
    device, training = next(cohort.parameters()).device, cohort.training
    ids, mask = dummy_inputs(cohort.model.config)
    cohort.eval()
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):  # a convolution's default on a GPU
            wanted = cohort.run(k, k + 1, ids[None].to(device), mask[None].to(device)).logits[0].cpu()
    finally:
        torch.set_float32_matmul_precision(precision)
        cohort.train(training)
    got = model(**model_inputs(cohort.model.config, ids, mask)).logits.to(wanted.dtype)
    error = float((got - wanted).abs().max())
    if not error <= TOLERANCE * max(1.0, float(wanted.abs().max())):
        raise RuntimeError(f"student {k}, written and read back, gives other logits: they differ by {error:.3g}")


def _replace(folder: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a sibling of `folder`, then rename it to `folder`; a failure leaves no trace."""
    folder = folder.resolve()
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary, old = (folder.with_name(f".{folder.name}.{kind}-{os.getpid()}") for kind in ("new", "old"))
    try:
        temporary.mkdir()
        write(temporary)
        apply_umask(temporary)
        if folder.exists():
            folder.rename(old)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
