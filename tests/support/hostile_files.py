"""Hostile tables, soft labels, class maps, runs and models: each a function that writes one into a folder."""

from __future__ import annotations

import gzip
import json
import os
import socket
from collections.abc import Callable
from pathlib import Path

from support import hostile
from support.hostile import ROWS, replace

Make = Callable[[Path], None]
BIG = 2_500_000  # characters of a line


def text(name: str, content: str | bytes) -> Make:
    return lambda folder: (
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode()) and None
    )


def special(name: str, kind: str) -> Make:
    return lambda folder: replace(folder / name, kind)


def zipped(name: str, content: bytes, times: int) -> Make:
    def make(folder: Path) -> None:
        with gzip.open(folder / name, "wb", compresslevel=1) as file:
            for _ in range(times):
                file.write(content)

    return make


def parquet(name: str, rows: int, length: int) -> Make:
    """One long text and its many repetitions, which a dictionary stores once."""

    def make(folder: Path) -> None:
        import pyarrow as pa
        from pyarrow import parquet

        one = pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), pa.array(["a cat " * (length // 6)]))
        labels = pa.DictionaryArray.from_arrays(
            pa.array([i % 2 for i in range(rows)], pa.int32()), pa.array(["a", "b"])
        )
        parquet.write_table(pa.table({"text": one, "label": labels}), folder / name)

    return make


def lists(folder: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    parquet.write_table(
        pa.table({"text": [["a"], ["b"]] * 20, "label": [{"x": 1}, {"x": 2}] * 20}), folder / "t.parquet"
    )


def sparse(name: str, begin: bytes, size: int) -> Make:
    def make(folder: Path) -> None:
        (folder / name).write_bytes(begin)
        os.truncate(folder / name, size)

    return make


def loop(folder: Path) -> None:
    (folder / "train.csv").symlink_to("train.csv")


def listening(folder: Path) -> None:
    where = os.getcwd()
    os.chdir(folder)  # a socket's path may have 107 characters
    try:
        socket.socket(socket.AF_UNIX).bind("t.csv")
    finally:
        os.chdir(where)


def jsonl(*rows: object) -> bytes:
    return "".join(f"{json.dumps(row)}\n" for row in rows).encode()


GOOD = [{"text": f"a {word} {i}", "label": word} for i in range(20) for word in ("cat", "tea")]
LONG = "a " * (BIG // 2)
# by the file that the command is given, or "" for the folder
TABLES: dict[str, tuple[str, Make]] = {
    "gzip bomb": ("t.csv.gz", zipped("t.csv.gz", ROWS.encode() * 1000, 1000)),
    "gzip bomb of one line": ("t.csv.gz", zipped("t.csv.gz", bytes([97]) * 10**6, 3000)),
    "gzip bomb, jsonl": ("t.jsonl.gz", zipped("t.jsonl.gz", jsonl(*GOOD) * 1000, 1000)),
    "gzip cut off": ("t.csv.gz", lambda folder: text("t.csv.gz", gzip.compress(ROWS.encode())[:-20])(folder)),
    "no gzip": ("t.csv.gz", text("t.csv.gz", ROWS)),
    "parquet bomb": ("t.parquet", parquet("t.parquet", 2_000, 600_000)),
    "parquet, long texts": ("t.parquet", parquet("t.parquet", 600, 6_000_000)),
    "parquet of lists": ("t.parquet", lists),
    "no parquet": ("t.parquet", text("t.parquet", b"PAR1" + bytes(range(256)) * 40 + b"PAR1")),
    "a line of 2 MB, csv": ("t.csv", text("t.csv", ROWS + f"{LONG},food\n")),
    "a line of 2 MB, tsv": ("t.tsv", text("t.tsv", ROWS.replace(",", "\t") + f"{LONG}\tfood\n")),
    "a line of 2 MB, jsonl": ("t.jsonl", text("t.jsonl", jsonl(*GOOD, {"text": LONG, "label": "cat"}))),
    "a text of many lines": ("t.csv", text("t.csv", ROWS + '"' + "a cat\n" * (BIG // 6) + '",food\n')),
    "an array without end": ("t.json", sparse("t.json", b"[", 300_000_000)),
    "nested": ("t.jsonl", text("t.jsonl", jsonl(*GOOD) + b"[" * 900_000 + b"\n")),
    "a number of 5,000 digits": (
        "t.jsonl",
        text("t.jsonl", jsonl(*GOOD) + b'{"text": "a", "label": ' + b"7" * 5000 + b"}\n"),
    ),
    "a label of infinity": ("t.jsonl", text("t.jsonl", jsonl(*GOOD) + b'{"text": "a", "label": -Infinity}\n')),
    "a label that is an object": ("t.jsonl", text("t.jsonl", jsonl(*GOOD, {"text": "a", "label": {"a": 1}}))),
    "a text that is a number": ("t.jsonl", text("t.jsonl", jsonl(*GOOD, {"text": 7, "label": "cat"}))),
    "half a character": ("t.jsonl", text("t.jsonl", jsonl(*GOOD) + b'{"text": "\\ud800 a", "label": "cat"}\n')),
    "a loop of links": ("", loop),
    "a socket": ("t.csv", listening),
    "random bytes": ("t.csv", special("t.csv", "/dev/urandom")),
}

PROBABILITIES = [{"text": f"a {word} {i}", "cat": 0.75, "tea": 0.25} for i in range(20) for word in ("cat", "tea")]
COLUMNS = "text,cat,tea\n" + "".join(f"a cat {i},0.75,0.25\na tea {i},0.25,0.75\n" for i in range(20))


def soft(row: str) -> Make:
    return text("soft.csv", COLUMNS + row + "\n")


SOFT_LABELS: dict[str, Make] = {
    "nan": soft("a cow,nan,0.5"),
    "infinity": soft("a cow,inf,0"),
    "negative": soft("a cow,-0.5,1.5"),
    "huge": soft("a cow,1e308,1e308"),
    "a number of 5,000 digits": soft("a cow," + "9" * 5000 + ",0"),
    "no number": soft("a cow,much,little"),
    "a sum of 2": soft("a cow,1,1"),
    "all zero": soft("a cow,0,0"),
    "one text twice": soft("a cat 1,0.25,0.75"),
    "a column too many": soft("a cow,0.5,0.5,0.5"),
    "no column of texts": text("soft.csv", "words,cat,tea\na,1,0\n"),
    "a column twice": text("soft.csv", "text,cat,cat\na,1,0\n"),
    "one class": text("soft.csv", "text,cat\na,1\nb,1\n"),
    "no numbers at all": text("soft.csv", "text,cat,tea\na,,\nb,,\n"),
    "other classes than the data": text("soft.csv", COLUMNS.replace("tea", "sea", 1)),
    "an escape in a class": text("soft.csv", COLUMNS.replace("tea", "te\x1b[2Ja", 1)),
    "an object of objects": text("soft.csv", 'text,probabilities\na,"{""cat"": {""x"": 1}}"\n'),
    "nested": text("soft.csv", 'text,probabilities\na,"' + "[" * 500_000 + '"\n'),
    "a class of no text": text("soft.csv", 'text,probabilities\na,"{"""": 1, ""cat"": 0}"\n'),
    "true": text("soft.jsonl", jsonl({"text": "a", "probabilities": {"cat": True, "tea": False}})),
    "a bomb": zipped("soft.csv.gz", (COLUMNS.split("\n", 1)[1]).encode() * 1000, 1000),
    "100,000 classes": text("soft.csv", "text," + ",".join(f"c{i}" for i in range(10**5)) + "\n"),
    "fifo": special("soft.csv", "fifo"),
    "zero": special("soft.csv", "zero"),
    "a folder": lambda folder: (folder / "soft.csv").mkdir(),
}

CLASS_MAPS: dict[str, Make] = {
    "no yaml": text("map", "a: [b"),
    "a list": text("map", "- cat\n- tea\n"),
    "two to one": text("map", "cat: tea\n"),
    "no such class": text("map", "cow: tea\n"),
    "a class twice": text("map", "cat: a\ncat: b\n"),
    "code": text("map", "cat: !!python/object/apply:os.system [touch ran]\n"),
    "a bomb of aliases": text(
        "map",
        "a: &a [x, x]\n" + "".join(f"{c}: &{c} [*{p}, *{p}]\n" for p, c in zip("abcdefgh", "bcdefghi", strict=True)),
    ),
    "nested": text("map", "[" * 100_000),
    "nul": text("map", b"cat: te\x00a\n"),
    "not utf-8": text("map", b"cat: te\xff\n"),
    "empty": text("map", ""),
    "20 MB": sparse("map", b"cat: a\n", 20_000_000),
    "fifo": special("map", "fifo"),
    "zero": special("map", "zero"),
    "a folder": lambda folder: (folder / "map").mkdir(),
}


def spoil_json(name: str, **values: object) -> Make:
    def make(folder: Path) -> None:
        found = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(found | values))

    return make


def shards(name: str) -> Make:
    return lambda folder: hostile.shards(folder, name)


def instead(name: str, content: str | bytes) -> Make:
    def make(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        text(name, content)(folder)

    return make


def a_folder(name: str) -> Make:
    def make(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).mkdir()

    return make


NORMALIZER = {"type": "Replace", "pattern": {"Regex": "(("}, "content": "a"}
HEADER = b'{"a":{"dtype":"F32","shape":[%d],"data_offsets":[0,8]}}'
# folders of a classifier
MODELS: dict[str, Make] = {
    "10 million layers by a list": spoil_json(
        "config.json", layer_types=["full_attention"] * 10**6, num_hidden_layers=10**7
    ),
    "a width that is text": spoil_json("config.json", hidden_size="wide"),
    "10 million positions": spoil_json("config.json", max_position_embeddings=10**10),
    "id2label of a list": spoil_json("config.json", id2label=["a", "b"]),
    "id2label of nulls": spoil_json("config.json", id2label={"0": None, "1": None, "2": None}),
    "id2label of lists": spoil_json("config.json", id2label={"0": ["a"], "1": ["b"], "2": ["c"]}),
    "id2label of other numbers": spoil_json("config.json", id2label={"7": "a", "8": "b", "9": "c"}),
    "id2label of one name": spoil_json("config.json", id2label={"0": "a", "1": "a", "2": "a"}),
    "a model type that is an escape": spoil_json("config.json", model_type="\x1b[2J\x07bert"),
    "architectures of numbers": spoil_json("config.json", model_type=7),
    "config.json is a list": instead("config.json", "[1, 2]"),
    "config.json of nul": instead("config.json", bytes(3000)),
    "config.json is a folder": a_folder("config.json"),
    "weights are a folder": a_folder("model.safetensors"),
    "a header of 100 MB": instead("model.safetensors", (10**8).to_bytes(8, "little") + b"{" * 1000),
    "a shape past int64": instead(
        "model.safetensors", len(HEADER % 2**70).to_bytes(8, "little") + HEADER % 2**70 + bytes(8)
    ),
    "a shard of an absolute path": shards("/etc/passwd"),
    "a shard that is not there": shards("model-00001-of-00002.safetensors"),
    "an index of nothing": lambda folder: (
        shards("weights.bin")(folder),
        instead("model.safetensors.index.json", "{}")(folder),
    )[1],
    "an index that is a list": lambda folder: (
        shards("weights.bin")(folder),
        instead("model.safetensors.index.json", "[]")(folder),
    )[1],
    "an index of numbers": lambda folder: (
        shards("x")(folder),
        instead("model.safetensors.index.json", '{"weight_map": {"a": 7}}')(folder),
    )[1],
    "no tokenizer": instead("tokenizer.json", "{}"),
    "a tokenizer of an expression that is none": spoil_json("tokenizer.json", normalizer=NORMALIZER),
    "a tokenizer of numbers past the end": spoil_json("tokenizer.json", added_tokens=[{"id": 2**40, "content": "x"}]),
    "a tokenizer with a model of no kind": spoil_json("tokenizer.json", model={"type": "Evil"}),
    "a tokenizer that is nested": instead("tokenizer.json", "[" * 10**6),
    "a tokenizer config of zeros": special("tokenizer_config.json", "zero"),
}

# what transformers passes over: these load, and no code runs
HARMLESS: dict[str, Make] = {
    "a tokenizer class of ours": spoil_json("tokenizer_config.json", tokenizer_class="evil.Tokenizer"),
    "tokenizer code": spoil_json("tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.T", None]}),
    "model code": spoil_json("config.json", auto_map={"AutoModel": "evil.Model"}),
}

# runs of nanonet train, for Distiller.load
RUNS: dict[str, Make] = {
    "report of 10^9 students": spoil_json("report.json", students=[{}] * 1000),
    "report of no students": spoil_json("report.json", students=[]),
    "report whose best is not there": spoil_json("report.json", best=99),
    "report whose best is text": spoil_json("report.json", best="first"),
    "report is a list": instead("report.json", "[]"),
    "report is half": instead("report.json", '{"students": ['),
    "report is nested": instead("report.json", "[" * 10**6),
    "settings are a list": instead("config.yaml", "- 1\n"),
    "settings are half": instead("config.yaml", "a: [b"),
    "settings of code": instead("config.yaml", "data: !!python/object/apply:os.system [touch ran]\n"),
    "settings of zeros": special("config.yaml", "zero"),
    "settings are a fifo": special("config.yaml", "fifo"),
    "label types of another kind": instead("label_type.json", '{"labels": "date"}'),
    "label types are a list": instead("label_type.json", "[]"),
    "label types of zeros": special("label_type.json", "zero"),
    "a student is a file": lambda folder: (
        (folder / "student-0").rename(folder / "s"),
        instead("student-0", "x")(folder),
    )[1],
}
