"""The corpus of docstrings: what it promises on any installation."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import pytest

from nanonet.data import pydocs as module
from nanonet.data.dataset import Dataset, Split
from nanonet.data.pydocs import TOPICS, collect, pydocs
from nanonet.data.read import load_dataset
from nanonet.data.split import in_test_fifth
from nanonet.errors import InputError


@pytest.fixture(scope="module")
def corpus() -> Dataset:
    return pydocs()


def labels(split: Split | None) -> list[int]:
    assert split is not None and split.labels is not None and len(split.labels) == len(split.texts)
    return split.labels


def texts(data: Dataset) -> list[str]:
    assert data.test is not None
    return data.train.texts + data.test.texts


def test_no_text_is_on_both_sides_or_twice(corpus: Dataset) -> None:
    every = texts(corpus)
    assert len(set(every)) == len(every)
    assert corpus.test is not None and all(map(in_test_fifth, corpus.test.texts))
    assert not any(map(in_test_fifth, corpus.train.texts))
    assert 0.17 < len(corpus.test.texts) / len(every) < 0.23


def test_texts_are_paragraphs_of_six_words_or_more(corpus: Dataset) -> None:
    for text in texts(corpus):
        assert len(text.split()) >= 6 and text == " ".join(text.split())


def test_topics_are_balanced(corpus: Dataset) -> None:
    # tkinter may be missing, torch and transformers are there: nanonet depends on them
    assert len(corpus.classes) >= len(TOPICS) - 1 and set(corpus.classes) <= set(TOPICS)
    counts = Counter(labels(corpus.train) + labels(corpus.test))
    assert set(counts) == set(range(len(corpus.classes))) and set(counts.values()) == {550}
    assert corpus.name == "pydocs"


def test_every_text_is_of_one_topic_only() -> None:
    found = collect()
    assert sum(map(len, found.values())) == len(frozenset().union(*found.values()))


def test_a_smaller_cap_keeps_a_part_and_moves_nothing(corpus: Dataset) -> None:
    small = pydocs(60)
    assert set(Counter(labels(small.train) + labels(small.test)).values()) == {60}
    large_side = dict.fromkeys(corpus.train.texts, "train") | dict.fromkeys(
        corpus.test.texts if corpus.test else [], "test"
    )
    assert all(large_side[text] == "train" for text in small.train.texts)
    assert small.test is not None and all(large_side[text] == "test" for text in small.test.texts)
    for cap in (0, 1001):
        with pytest.raises(ValueError, match="cap: expected 1 to 1000"):
            pydocs(cap)


def test_load_dataset_knows_it(corpus: Dataset) -> None:
    assert load_dataset("pydocs") == corpus


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A standard library of our own in place of the real one, with two topics."""
    monkeypatch.setattr(module.sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path)})
    monkeypatch.setattr(module, "TOPICS", {"a": "alpha beta/inner", "b": "beta", "c": "gamma"})
    monkeypatch.setattr(module, "collect", module.collect.__wrapped__)
    return tmp_path


def source(path: Path, code: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(code)


def numbered(word: str, count: int) -> str:
    return "\n".join(
        f'def f{n}():\n    """The {word} function that has number {n}.\n\n    More."""' for n in range(count)
    )


def test_paths_choose_topics_and_tests_are_left_out(library: Path) -> None:
    method = 'class A:\n  async def f(self):\n    "Six words of an async method."'
    source(library / "alpha.py", f'"""First paragraph,  with\n  six words here.\n\nSecond."""\n{method}')
    inner = '  def g(): "A function inside of a function."\n"not a docstring, but a string"'
    source(library / "beta" / "x.py", f'def f():\n  "Five words are too few."\n{inner}')
    source(library / "beta" / "tests" / "y.py", '"""A test file is not a source of text."""')
    source(library / "beta" / "inner" / "z.py", '"""The longest prefix decides on the topic."""')
    source(library / "gamma" / "broken.py", '"""What does not parse is passed over."""\ndef f(:')
    source(library / "delta.py", '"""A file that is in no topic at all."""')
    assert module.collect() == {
        "a": {
            "First paragraph, with six words here.",
            "Six words of an async method.",
            "The longest prefix decides on the topic.",
        },
        "b": {"A function inside of a function."},
        "c": set(),
    }


def test_sources_are_parsed_never_imported(library: Path) -> None:
    source(library / "alpha.py", '"""A module that does not like to be imported."""\nraise SystemExit')
    assert module.collect()["a"] == {"A module that does not like to be imported."}
    assert "alpha" not in sys.modules


def test_no_more_files_are_parsed_than_needed(library: Path) -> None:
    for n in range(30):
        source(library / "gamma" / f"m{n}.py", numbered(f"module {n}", 100))
    found = module.collect()["c"]
    assert len(found) == 1000
    modules = {text.split()[2] for text in found}
    assert len(modules) == 10 and modules != {str(n) for n in range(10)}  # chosen by hash, not by name


def test_shared_texts_and_thin_topics_are_dropped(library: Path) -> None:
    shared = '\nclass S:\n    "A sentence that both of the topics have."'
    source(library / "alpha.py", numbered("alpha", 120) + shared)
    source(library / "beta.py", numbered("beta", 100) + shared)
    source(library / "gamma.py", numbered("gamma", 99))
    data = pydocs()
    assert data.classes == ["a", "b"] and len(texts(data)) == 220


def test_without_sources_the_message_says_what_to_do(library: Path) -> None:
    source(library / "alpha.py", numbered("alpha", 120))
    with pytest.raises(InputError, match="pydocs: no sources"):
        pydocs()
