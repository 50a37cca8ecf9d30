"""Generation-Distillation: where unlabelled text is scarce, a language model writes some (arXiv 2002.00733).

    few labelled texts -> a causal language model fine-tuned on them -> samples -> filters -> a file of texts

The file is input of `nanonet train --unlabelled`: its teacher labels the texts, whatever class they were asked for.
All input is checked before the training starts, and the file appears when it is complete.
"""

from __future__ import annotations

import itertools
import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

from nanonet.config.commands import GenerateConfig
from nanonet.data.lines import Limits
from nanonet.data.pairs import check_one_kind
from nanonet.data.read import load_dataset, read_table
from nanonet.data.split import draw_labels
from nanonet.device import device, threads
from nanonet.errors import InputError
from nanonet.files import write
from nanonet.generation.filters import REASONS, filter_samples
from nanonet.generation.language_model import CURE, encode_prompt, encode_text, fine_tune, load_language_model, samples
from nanonet.models.load import check_vocabulary, quiet
from nanonet.progress import Progress


def generate(config: GenerateConfig) -> dict[str, Any]:
    """Write the texts; returns output, asked, texts (written), sampled, and dropped by reason.

    Raises:
        InputError: any bad input, before anything is written; or every sample was dropped.
    """
    _check(config)
    output = _check_output(config)
    texts, labels, classes = _labelled(config)
    if check_one_kind(texts):
        raise InputError(f"--text-column {config.text_column}: nanonet generate writes single texts; give one column")
    tokenizer, model = load_language_model(config.model)
    room = getattr(model.config, "max_position_embeddings", None) or 10**6
    if config.max_tokens > room:
        raise InputError(f"--max-tokens {config.max_tokens}: the model has positions for {room} tokens; give fewer")
    prompts = [encode_prompt(tokenizer, name if config.conditioned else "") for name in classes]
    longest = max(map(len, prompts))
    if longest + 2 > config.max_tokens:
        raise InputError(f"--max-tokens {config.max_tokens}: a prompt alone takes {longest}; give more")
    rows = [
        encode_text(tokenizer, prompts[label], text, config.max_tokens)
        for text, label in zip(texts, labels, strict=True)
    ]
    check_vocabulary(max(max(ids) for ids, _ in rows), model, f"--model {config.model}")
    model.to(device())
    dropped: Counter[str] = Counter()
    with Progress() as progress, quiet(), threads(config.threads):
        with progress.stage("training the generator", config.steps) as tick:
            model = fine_tune(model, rows, labels, config, tokenizer.eos_token_id, lambda loss: tick(1, loss))
        with progress.stage("writing texts", config.count) as tick:
            drawn = itertools.islice(samples(model, tokenizer, prompts, config), config.count * config.tries)
            limits = {name: getattr(config, name) for name in ("least_words", "most_repeated", "most_copied")}
            written = []
            for which, text in itertools.islice(filter_samples(drawn, texts, dropped, **limits), config.count):
                written.append({"text": text} | ({"asked": classes[which]} if config.conditioned else {}))
                tick(1)
    sampled = len(written) + sum(dropped.values())
    counts = {reason: dropped[reason] for reason in REASONS}
    if not written:
        reasons = ", ".join(f"{count} {reason}" for reason, count in counts.items())
        raise InputError(
            f"--model {config.model}: no sample of {sampled} passed the filters ({reasons}); raise --steps"
        )
    write(output, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in written))
    return {
        "output": str(output),
        "asked": config.count,
        "texts": len(written),
        "sampled": sampled,
        "dropped": counts,
    }


def _check(config: GenerateConfig) -> None:
    def refuse(name: str, cure: str) -> None:
        raise InputError(f"--{name.replace('_', '-')} {getattr(config, name)}: {cure}")

    if not config.model:
        raise InputError(f"--model is missing: {CURE}")
    if not config.labelled:
        raise InputError("--labelled is missing: give a file or folder of the few texts and their labels")
    least = {"count": 1, "tries": 1, "batch_rows": 1, "sample_rows": 1, "lora_rank": 1, "max_tokens": 4}
    least |= {"steps": 0, "seed": 0, "threads": 0, "labels_per_class": 0, "least_words": 1}
    for name, number in least.items():
        if getattr(config, name) < number:
            refuse(name, f"give {number} or more")
    for name, most in {"seed": 2**32 - 1, "threads": os.cpu_count() or 1}.items():
        if getattr(config, name) > most:
            refuse(name, f"give {most} or less")
    if config.tuning != "lora" and config.lora_rank != GenerateConfig.lora_rank:
        refuse("lora_rank", f"it means nothing to --tuning {config.tuning}; leave it out")
    if not 0 < config.temperature < float("inf"):
        refuse("temperature", "give a number above 0")
    if not 0 <= config.learning_rate < float("inf"):
        refuse("learning_rate", "give 0 or more")
    if not 0 < config.top_p <= 1:
        refuse("top_p", "give a fraction above 0, at most 1")
    for name in ("most_repeated", "most_copied"):
        if not 0 <= getattr(config, name) <= 1:
            refuse(name, "give a fraction from 0 to 1")
    if not 0 <= config.test_fraction < 1:
        refuse("test_fraction", "give a fraction of at least 0 and below 1")


def _check_output(config: GenerateConfig) -> Path:
    if not config.output:
        raise InputError("--output is missing: name the file that receives the texts, such as generated.jsonl")
    output = Path(config.output).expanduser().absolute()
    what = f"--output {config.output}"
    if output.suffix != ".jsonl":
        raise InputError(f"{what}: give a name that ends in .jsonl, as nanonet train --unlabelled reads it")
    if not output.parent.is_dir():
        raise InputError(f"{what}: there is no folder {output.parent}; make it first")
    if not os.access(output.parent, os.W_OK):
        raise InputError(f"{what}: {output.parent} cannot be written to; give another place")
    if output.exists() and not output.is_file():
        raise InputError(f"{what} is no file; give one, such as generated.jsonl")
    source = Path(config.labelled).expanduser()
    if output.exists() and source.exists() and output.samefile(source):
        raise InputError(f"{what} is the input itself; give another file")
    target = output.resolve()
    if source.is_dir() and target.parent.samefile(source) and target.name.split(".")[0] in ("train", "test"):
        raise InputError(f"{what} would be read as data of --labelled; give another name")
    if output.exists() and not config.overwrite:
        raise InputError(f"{what} is there already; give --overwrite to replace it")
    return output


def _labelled(config: GenerateConfig) -> tuple[list[str], list[int], list[str]]:
    """Texts, the class of each, and the classes' names; one class without a name where labels are not used."""
    path, limits = Path(config.labelled).expanduser(), Limits(config.max_text_bytes, config.max_data_bytes)
    if not config.conditioned and not config.labels_per_class and not config.test_fraction and path.is_file():
        table, _ = read_table(path, config.text_column, None, None, limits)
        return table.texts, [0] * len(table.texts), [""]
    columns = {"text_column": config.text_column, "label_column": config.label_column}
    dataset = load_dataset(config.labelled, **columns, limits=limits, test_fraction=config.test_fraction)
    table, classes = dataset.train, dataset.classes
    labels = table.labels or []
    drawn = draw_labels(labels, config.labels_per_class, config.seed, len(classes), classes).labelled
    return [table.texts[row] for row in drawn], [labels[row] for row in drawn], classes
