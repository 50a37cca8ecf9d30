"""An encoder of MiniLM's shape with random weights, which cost as much: for timings where none can be had.

    python benchmarks/blank_encoder.py FOLDER
    nanonet bench --step --teacher FOLDER

Its words are a BPE of the docstrings that `pydocs` is.
"""

from __future__ import annotations

import sys

import torch
from transformers import BertConfig, BertModel

from nanonet.benchmarks.generator import END, train_tokenizer
from nanonet.data.read import load_dataset

if __name__ == "__main__":
    folder = sys.argv[1]
    tokenizer = train_tokenizer(load_dataset("pydocs").train.texts, 8000)
    tokenizer.pad_token = END
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    BertModel(BertConfig(hidden_size=384, num_hidden_layers=6, intermediate_size=1536)).save_pretrained(folder)
