"""A causal language model: loaded, fine-tuned on a few texts, and sampled from.

B rows of a batch, L tokens.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from nanonet.config.commands import GenerateConfig
from nanonet.data.batches import BatchPlan
from nanonet.device import device
from nanonet.errors import InputError
from nanonet.models.load import find_model, quiet, read_pretrained

CURE = "give a causal language model such as gpt2, with model.safetensors and its tokenizer"
LEARNING_RATE = {"lora": 1e-3, "full": 1e-4}
IGNORED = -100  # a token that the loss leaves out


def load_language_model(name: str) -> tuple[Any, Any]:
    """Tokenizer and model: safetensors only, no remote code, every weight present, float32."""
    source, local = find_model(name, "--model")
    options = {"dtype": torch.float32, "use_safetensors": True, "output_loading_info": True, "local_files_only": local}
    with quiet():
        model, info = read_pretrained(AutoModelForCausalLM, source, f"--model {name}", CURE, **options)
        tokenizer = read_pretrained(AutoTokenizer, source, f"--model {name}", CURE, local_files_only=local)
    if info["missing_keys"]:
        first = sorted(info["missing_keys"])[0]
        raise InputError(f"--model {name}: not a language model ({first} is missing, among others); {CURE}")
    if len(tokenizer) <= len(tokenizer.all_special_tokens):
        raise InputError(f"--model {name}: it has no tokenizer; put tokenizer.json beside its config.json")
    if tokenizer.eos_token_id is None:
        raise InputError(f"--model {name}: its tokenizer has no token that ends a text; {CURE}")
    return tokenizer, model


def encode_prompt(tokenizer: Any, name: str) -> list[int]:
    """The start token, and the class's name and a colon where the model is conditioned on it."""
    start = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    return [start, *(tokenizer(f"{name}:", add_special_tokens=False)["input_ids"] if name else [])]


def encode_text(tokenizer: Any, prompt: list[int], text: str, max_tokens: int) -> tuple[list[int], int]:
    """A training row: the ids of prompt, text and end token, and the length of the prompt."""
    body = tokenizer(" " + text, add_special_tokens=False, verbose=False)["input_ids"]
    # a row that is cut has no end token
    return [*prompt, *body, tokenizer.eos_token_id][:max_tokens], len(prompt)


def fine_tune(
    model: Any,
    rows: list[tuple[list[int], int]],
    labels: list[int],
    config: GenerateConfig,
    pad_id: int,
    tick: Callable[[str], Any] = lambda loss: None,
) -> Any:
    """Train on rows (ids, length of the prompt); returns the model in eval mode, adapters merged.

    The loss is over the text and its end token; the prompt is left out.
    """
    torch.manual_seed(config.seed)
    if config.tuning == "lora" and config.steps:
        from peft import LoraConfig, get_peft_model

        with quiet():
            settings = LoraConfig(
                task_type="CAUSAL_LM",
                r=config.lora_rank,
                lora_alpha=2 * config.lora_rank,
                target_modules="all-linear",
                # GPT-2 stores its matrices transposed
                fan_in_fan_out=model.config.model_type == "gpt2",
            )
            model = get_peft_model(model, settings)
    trained = [p for p in model.parameters() if p.requires_grad]
    peak = config.learning_rate or LEARNING_RATE[config.tuning]
    optimizer = torch.optim.AdamW(trained, lr=peak, weight_decay=0.01)
    plan = BatchPlan(labels, [], config.batch_rows, 1, config.seed)
    model.train()
    for step in range(config.steps):
        torch.manual_seed(config.seed * 1_000_003 + step)
        optimizer.param_groups[0]["lr"] = peak * (1 - step / config.steps)
        ids, mask, target = _pad([rows[row] for row in plan.rows(step)[0]], pad_id)
        loss = model(input_ids=ids, attention_mask=mask, labels=target).loss
        if not loss.isfinite():
            raise InputError(f"the training of the generator diverged at step {step}: lower --learning-rate")
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        tick(f"loss {loss.item():.3f}")
    return (model.merge_and_unload() if hasattr(model, "merge_and_unload") else model).eval()


@torch.inference_mode()
def samples(model: Any, tokenizer: Any, prompts: list[list[int]], config: GenerateConfig) -> Iterator[tuple[int, str]]:
    """An endless stream of samples (class, text), a batch of each class in turn; white space becomes single spaces."""
    sampling = dict(do_sample=True, temperature=config.temperature, top_p=config.top_p, top_k=0)
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.eos_token_id}
    # the folder's generation_config would fill whatever is not set here
    model.generation_config = GenerationConfig()
    if not config.conditioned:
        prompts = prompts[:1]
    for batch in itertools.count():
        which = batch % len(prompts)
        torch.manual_seed(config.seed * 1_000_003 + config.steps + batch)
        ids = torch.tensor([prompts[which]] * config.sample_rows, device=model.device)
        settings = GenerationConfig(**sampling, **ends, max_new_tokens=config.max_tokens - ids.shape[1])
        written = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=settings)
        for text in tokenizer.batch_decode(written[:, ids.shape[1] :], skip_special_tokens=True):
            yield which, " ".join(text.split())


def _pad(rows: list[tuple[list[int], int]], pad_id: int) -> tuple[Tensor, Tensor, Tensor]:
    """ids, mask and target (B,L); the target leaves prompts and padding out."""
    longest = max(len(ids) for ids, _ in rows)
    ids = torch.tensor([own + [pad_id] * (longest - len(own)) for own, _ in rows])
    place = torch.arange(longest)
    mask = place < torch.tensor([[len(own)] for own, _ in rows])
    text = mask & (place >= torch.tensor([[prompt] for _, prompt in rows]))
    where = device()
    return ids.to(where), mask.long().to(where), ids.where(text, IGNORED).to(where)
