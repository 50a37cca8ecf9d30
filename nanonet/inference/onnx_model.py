"""An ONNX classifier in onnxruntime: what `nanonet export` wrote, by its folder or by a file's own path.

It stands where a Hugging Face model would: `model(input_ids=..., attention_mask=...).logits`. B rows, L tokens, C
classes.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import SequenceClassifierOutput

from nanonet.errors import InputError
from nanonet.files import read_small
from nanonet.models.pairs import model_inputs

FLOAT, QUANTIZED = "onnx/model.onnx", "onnx/model_quantized.onnx"
INPUTS = ("input_ids", "attention_mask", "token_type_ids")
EXPORTED = "nanonet_version"  # config.json of a folder that `nanonet export` wrote has it
CURE = "export the model again"


class OnnxModel(nn.Module):
    """forward: input_ids, attention_mask (B,L) -> logits (B,C) float32 on the CPU; it has no parameters.

    config: the Hugging Face configuration of the model's folder
    positions: tokens that a text may have; 0 where the file does not say
    """

    def __init__(self, session: Any, config: Any) -> None:
        super().__init__()
        self.session, self.config = session, config
        positions = session.get_modelmeta().custom_metadata_map.get("positions", "")
        self.positions = int(positions) if positions.isdecimal() and len(positions) < 9 else 0
        self.types = any(found.name == "token_type_ids" for found in session.get_inputs())

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> SequenceClassifierOutput:
        feeds = {"input_ids": input_ids.cpu().numpy(), "attention_mask": attention_mask.cpu().numpy()}
        if self.types:  # a graph without this input finds them by itself
            types = torch.zeros_like(input_ids) if token_type_ids is None else token_type_ids
            feeds["token_type_ids"] = types.cpu().numpy()
        logits = torch.from_numpy(self.session.run(["logits"], feeds)[0]).float()
        return SequenceClassifierOutput(logits=logits)  # type: ignore[arg-type]

    def get_input_embeddings(self) -> nn.Embedding:
        """As many rows as the model has tokens, of no width: the file does not say which array they are."""
        return nn.Embedding(self.config.vocab_size, 0)


def open_session(path: Path) -> Any:
    """An onnxruntime.InferenceSession of the file on the CPU, with as many threads as torch has."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    options.intra_op_num_threads = torch.get_num_threads()
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def onnx_session(path: Path, config: Any = None) -> Callable[[Tensor, Tensor], Tensor]:
    """forward(input_ids, attention_mask) -> logits of a file that `export` wrote, on the CPU; config: of its model,
    which says whether it reads pairs."""
    model = OnnxModel(open_session(path), config)
    return lambda ids, mask: model(**model_inputs(config, ids, mask)).logits


def load_onnx(path: Path, config: Any, what: str) -> OnnxModel:
    """The model in the file, whose settings are `config`; `what` names the flag and its value in errors.

    Raises:
        InputError: onnxruntime is missing, the file is damaged, or it is no classifier of texts into these classes.
    """
    if importlib.util.find_spec("onnxruntime") is None:
        raise InputError(f"{what}: an ONNX model needs onnxruntime: pip install onnxruntime")
    try:
        session = open_session(path)
    except Exception as error:  # onnxruntime has a type for each kind of damage
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"{what}: onnxruntime cannot read {path.name} ({reason:.120}); {CURE}") from error
    inputs = [found.name for found in session.get_inputs()]
    outputs = {found.name: found for found in session.get_outputs()}
    if not set(INPUTS[:2]) <= set(inputs) <= set(INPUTS) or "logits" not in outputs:
        raise InputError(f"{what}: {path.name} does not make logits from input_ids and attention_mask; {CURE}")
    model = OnnxModel(session, config)
    classes = outputs["logits"].shape[-1]
    if classes != len(config.id2label):
        raise InputError(f"{what}: {path.name} has {classes} classes, config.json {len(config.id2label)}; {CURE}")
    return model


def find_graph(name: str) -> tuple[Path, Path] | None:
    """(file, folder of its config.json) of an ONNX file that lies in such a folder, or in its onnx/; None for what is
    no ONNX file.

    Raises:
        InputError: there is no such folder.
    """
    path = Path(name).expanduser()
    if path.suffix != ".onnx" or not path.is_file():
        return None
    folder = path.absolute().parent
    for place in (folder, folder.parent):
        if (place / "config.json").is_file():
            return path, place
    raise InputError(
        f"--model {name}: no config.json and tokenizer beside the ONNX file; give the folder of nanonet export"
    )


def exported_graph(folder: Path) -> Path | None:
    """The float32 file of a folder that `nanonet export` wrote; None for any other folder."""
    return folder / FLOAT if (folder / FLOAT).is_file() and is_export(folder) else None


def is_export(folder: Path) -> bool:
    """Whether `nanonet export` wrote the config.json of this folder."""
    try:
        return EXPORTED in json.loads(read_small(folder / "config.json"))
    except (OSError, ValueError, TypeError, RecursionError):
        return False
