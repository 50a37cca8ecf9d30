"""An encoder of MiniLM's shape with random weights, for timings without a download: they cost as much.

    python benchmarks/blank_encoder.py FOLDER
    nanonet bench --step --teacher FOLDER

Its vocabulary is a BPE of the texts of `pydocs`.
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
