"""A generator writes what train can read, the same under the same seed; and each filter drops what it is for."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import pytest

from nanonet.benchmarks.generator import train_generator, train_tokenizer
from nanonet.cli.main import main
from nanonet.config.commands import GenerateConfig
from nanonet.config.parse import parse
from nanonet.data.read import load_dataset, read_table, read_texts
from nanonet.data.split import draw_labels
from nanonet.device import threads
from nanonet.generation.filters import REASONS, words
from nanonet.generation.pipeline import _labelled


@pytest.fixture(scope="module")
def generator(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A language model of the tiny data's kind, a second old."""
    folder, texts = tmp_path_factory.mktemp("generator"), read_texts(tiny_data / "train.jsonl")[0].texts
    with threads(1):
        tokenizer = train_tokenizer(texts, 320)
        model = train_generator(texts, tokenizer, layers=2, width=48, block=32, rows=8, steps=60, learning_rate=5e-3)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def words_of(generator: Path, tiny_data: Path, tmp_path: Path):
    shared = f"generate --model {generator} --labelled {tiny_data} --labels-per-class 5 --output {tmp_path}/g.jsonl"
    shared += " --max-tokens 30 --count 24 --tries 8 --sample-rows 16 --steps 10 --most-copied 0.8"
    return lambda more="": f"{shared} {more}".split()


def read_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("more", ["", "--no-conditioned --tuning full"])
def test_texts_that_train_takes(
    words_of, more: str, tmp_path: Path, tiny_data: Path, tiny_encoder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words_of(more)) == 0
    said, path = json.loads(capsys.readouterr().out), tmp_path / "g.jsonl"
    found = read_lines(path)
    assert [p.name for p in tmp_path.iterdir()] == ["g.jsonl"]
    assert said["texts"] == len(found) == 24 and said["asked"] == 24 and list(said["dropped"]) == list(REASONS)
    assert said["sampled"] == 24 + sum(said["dropped"].values()) <= 24 * 8
    assert len({words(row["text"]) for row in found}) == 24 and all(len(words(row["text"])) >= 5 for row in found)
    asked = Counter(row.get("asked") for row in found)
    assert set(asked) == ({None} if more else {"animals", "food", "weather"})
    train = f"train --data {tiny_data} --teacher {tiny_encoder} --output {tmp_path}/run --unlabelled {path} --steps 2"
    train += " --max-tokens 32 --labels-per-class 5 --targets classifier --max-unlabelled 0"
    assert main(train.split()) == 0
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    # of the 150 rows 15 are labelled; a tenth of the others and of the 24 are validation rows
    assert report["data"]["unlabelled"] == 135 + 24 - (135 + 24) // 10


def test_a_seed_decides_the_texts(words_of, tmp_path: Path) -> None:
    written = []
    for seed in (3, 3, 4):
        assert main(words_of(f"--overwrite --count 8 --seed {seed}")) == 0
        written.append((tmp_path / "g.jsonl").read_text())
    assert written[0] == written[1] != written[2]


@pytest.mark.parametrize(
    "change",
    ["--temperature 0.5", "--top-p 0.5", "--steps 2", "--learning-rate 1e-2", "--tuning full", "--lora-rank 2"],
)
def test_each_setting_changes_the_texts(words_of, tmp_path: Path, change: str) -> None:
    assert main(words_of("--count 8 --most-repeated 1")) == 0
    base = (tmp_path / "g.jsonl").read_text()
    assert main(words_of(f"--count 8 --most-repeated 1 --overwrite {change}")) == 0
    assert (tmp_path / "g.jsonl").read_text() != base


@pytest.mark.parametrize("flags", ["", "--no-conditioned", "--labels-per-class 3"])
@pytest.mark.parametrize("fraction", [0.0, 0.2])
def test_rows_that_are_tested_on_are_not_learned_from(
    flags: str, fraction: float, tiny_data: Path, tmp_path: Path
) -> None:
    """What `nanonet train` sets aside is left out, and the draw is its draw."""
    file = tmp_path / "all.jsonl"
    file.write_text((tiny_data / "train.jsonl").read_text())
    words = ["--labelled", str(file), *flags.split(), "--test-fraction", str(fraction)]
    texts = _labelled(parse(GenerateConfig, words, "", ""))[0]
    dataset = load_dataset(str(file), test_fraction=fraction)
    expected = dataset.train.texts
    if flags.startswith("--labels"):
        expected = [expected[row] for row in draw_labels(dataset.train.labels, 3, 0, 3).labelled]
    assert texts == expected and len(dataset.train.texts) == 150 - round(150 * fraction)


def test_fine_tuning_learns_the_prompt(generator: Path, tmp_path: Path) -> None:
    """What the model is asked for is what it was taught under that name."""
    texts = {"up": "the rain had some wind today", "down": "a cat saw the bread near soup"}
    lines = [json.dumps({"text": text, "label": label}) for label, text in texts.items()] * 4
    (tmp_path / "l.jsonl").write_text("\n".join(lines))
    command = f"generate --model {generator} --labelled {tmp_path}/l.jsonl --output {tmp_path}/g.jsonl --tuning full"
    command += " --steps 40 --learning-rate 5e-3 --temperature 0.1 --most-copied 1 --count 2 --tries 40 --max-tokens 30"
    assert main(command.split()) == 0
    assert {row["asked"]: row["text"] for row in read_lines(tmp_path / "g.jsonl")} == texts


# --- bad input


@pytest.mark.parametrize(
    ("words", "fragments"),
    [
        ("--labelled {d} --output {o}", ["--model is missing", "gpt2"]),
        ("--model {g} --output {o}", ["--labelled is missing", "give a file"]),
        ("--model {g} --labelled {d}", ["--output is missing", "generated.jsonl"]),
        ("--model {here}/nope --labelled {d} --output {o}", ["--model", "no such folder"]),
        ("--model {encoder} --labelled {d} --output {o}", ["not a language model", "gpt2"]),
        ("--model {pickled} --labelled {d} --output {o}", ["--model", "model.safetensors"]),
        ("--model {g} --labelled {here}/nope.jsonl --output {o}", ["nope.jsonl", "does not exist"]),
        ("--model {g} --labelled {d} --output {here}/o.txt", ["o.txt", ".jsonl"]),
        ("--model {g} --labelled {d} --output {here}/no/o.jsonl", ["there is no folder"]),
        ("--model {g} --labelled {d} --output {here}/there.jsonl", ["there already", "--overwrite"]),
        ("--model {g} --labelled {here}/there.jsonl --output {here}/there.jsonl", ["is the input itself"]),
        ("--model {g} --labelled {here}/own --output {here}/link.jsonl --overwrite", ["read as data of --labelled"]),
        ("--model {g} --labelled {d} --output {o} --temperature 0", ["--temperature 0", "above 0"]),
        ("--model {g} --labelled {d} --output {o} --top-p 1.5", ["--top-p 1.5", "at most 1"]),
        ("--model {g} --labelled {d} --output {o} --most-copied 2", ["--most-copied 2", "from 0 to 1"]),
        ("--model {g} --labelled {d} --output {o} --count 0", ["--count 0", "1 or more"]),
        ("--model {g} --labelled {d} --output {o} --least-words 0", ["--least-words 0", "1 or more"]),
        ("--model {g} --labelled {d} --output {o} --threads 100000", ["--threads 100000", "or less"]),
        ("--model {g} --labelled {d} --output {o} --tuning full --lora-rank 4", ["--lora-rank 4", "leave it out"]),
        ("--model {g} --labelled {d} --output {o} --tuning bias", ["--tuning bias", "lora, full"]),
        ("--model {g} --labelled {d} --output {o} --max-tokens 96", ["--max-tokens 96", "32 tokens"]),
        ("--model {g} --labelled {d} --output {o} --max-tokens 5", ["--max-tokens 5", "a prompt alone takes"]),
        (
            "--model {g} --labelled {d} --output {o} --labels-per-class 80 --max-tokens 30",
            ["labels_per_class 80", "lower it"],
        ),
        (
            "--model {g} --labelled {d} --output {o} --max-tokens 30 --steps 0 --count 2 --least-words 99",
            ["no sample of 8 passed the filters", "8 short", "raise --steps"],
        ),
        (
            "--model {g} --labelled {d} --output {o} --max-tokens 30 --learning-rate 1e30 --tuning full",
            ["diverged", "lower --learning-rate"],
        ),
    ],
)
def test_bad_input(
    words: str,
    fragments: list[str],
    generator: Path,
    tiny_data: Path,
    tiny_encoder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copy(tiny_data / "test.jsonl", tmp_path / "there.jsonl")
    shutil.copytree(tiny_data, tmp_path / "own")
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "own" / "train.jsonl")
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    (pickled / "config.json").write_text('{"model_type": "gpt2"}')
    (pickled / "pytorch_model.bin").write_text("x")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    places = {"g": generator, "d": tiny_data, "o": tmp_path / "o.jsonl", "here": tmp_path, "encoder": tiny_encoder}
    assert main(["generate", *words.format(**places, pickled=pickled).split()]) == 2
    out, err = capsys.readouterr()
    lines = [line for line in err.splitlines() if line.startswith("nanonet: error: ")]
    assert out == "" and len(lines) == 1 and err.splitlines()[-1] == lines[0]
    assert all(fragment in lines[0] for fragment in fragments), lines[0]
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_labels_are_not_needed_without_a_condition(generator: Path, tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text(json.dumps({"text": "a cat saw some rain today"}) + "\n")
    command = f"generate --model {generator} --labelled {tmp_path}/t.jsonl --no-conditioned --max-tokens 30 --count 3"
    assert main([*command.split(), "--output", str(tmp_path / "g.jsonl"), "--steps", "1"]) == 0
    assert len(read_table(tmp_path / "g.jsonl", "text", None, None)[0].texts) == 3
