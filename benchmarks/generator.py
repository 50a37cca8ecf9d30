"""A small GPT-2-shaped language model from scratch, where none can be downloaded: own BPE, a few minutes on two cores.

    python benchmarks/generator.py --data pydocs --output runs/generator
    nanonet generate --model runs/generator --labelled DIR --labels-per-class 10 --output generated.jsonl --tuning full

It replaces gpt2 or a Qwen (`nanonet generate --model gpt2`) where nothing can be downloaded, and shows that the path
works end to end. It does not show the value of texts from a real generator: it is trained only on the texts that other
runs use unlabelled, so its samples hold no more information than these.
N tokens of a block, V words.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from nanonet.data.read import load_dataset

END = "<|endoftext|>"


def train_tokenizer(texts: Sequence[str], words: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE of at most `words` pieces, as GPT-2's."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=words, special_tokens=[END], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=END, eos_token=END, unk_token=END)


def train_generator(
    texts: Sequence[str],
    tokenizer: PreTrainedTokenizerFast,
    *,
    layers: int = 4,
    width: int = 192,
    block: int = 128,
    rows: int = 8,
    steps: int = 800,
    learning_rate: float = 2e-3,
    seed: int = 0,
    report: Callable[[int, float], Any] = lambda step, loss: None,
) -> GPT2LMHeadModel:
    """A GPT-2 of heads of 48, trained on the texts one after the other, shuffled, in blocks of `block` tokens."""
    torch.manual_seed(seed)
    order = torch.randperm(len(texts)).tolist()
    encoded = tokenizer([f"{END} {texts[i]}" for i in order], add_special_tokens=False, verbose=False)["input_ids"]
    flat = torch.tensor([token for ids in encoded for token in ids])
    blocks = flat[: len(flat) // block * block].view(-1, block)
    end = tokenizer.eos_token_id
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=block,
        n_embd=width,
        n_layer=layers,
        n_head=max(1, width // 48),
        bos_token_id=end,
        eos_token_id=end,
    )
    model = GPT2LMHeadModel(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.1, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps, pct_start=0.1)
    place = torch.randperm(len(blocks))
    for step in range(steps):
        start = step * rows % max(1, len(blocks) - rows + 1)
        ids = blocks[place[start : start + rows]]
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        report(step, loss.item())
    return model.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="pydocs", help="what `nanonet train --data` takes; its train texts are read")
    parser.add_argument("--output", required=True, type=Path, help="folder that receives the model")
    parser.add_argument("--words", default=4096, type=int, help="pieces of the BPE (default: 4096)")
    parser.add_argument("--steps", default=800, type=int, help="optimizer steps of 8 x 128 tokens (default: 800)")
    parser.add_argument("--seed", default=0, type=int)
    arguments = parser.parse_args()
    texts = load_dataset(arguments.data).train.texts
    tokenizer = train_tokenizer(texts, arguments.words)
    began = time.perf_counter()

    def report(step: int, loss: float) -> None:
        if step % 100 == 0 or step == arguments.steps - 1:
            print(f"step {step}: loss {loss:.3f}, {time.perf_counter() - began:.0f} s", flush=True)

    model = train_generator(texts, tokenizer, steps=arguments.steps, seed=arguments.seed, report=report)
    model.save_pretrained(arguments.output)
    tokenizer.save_pretrained(arguments.output)
    print(f"{sum(p.numel() for p in model.parameters())} parameters in {arguments.output}")


if __name__ == "__main__":
    main()
