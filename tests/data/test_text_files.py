"""`--unlabelled FILE.txt`: a text a line."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from nanonet.data.lines import Limits
from nanonet.data.pairs import parts
from nanonet.data.read import load_dataset, read_texts
from nanonet.errors import InputError

LINES = '\ufefffirst, "with" a comma\r\n\r\n  second\tand a tab\n \nlast'
TEXTS = ['first, "with" a comma', "  second\tand a tab", "last"]


@pytest.mark.parametrize("name", ["u.txt", "U.TXT", "u.txt.gz"])
def test_each_line_is_a_text_and_says_where_it_stands(tmp_path: Path, name: str) -> None:
    content = LINES.encode()
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    (split,) = read_texts(tmp_path / name, "whatever the tables call it")
    assert split.texts == TEXTS and split.labels is None
    assert split.where(2).endswith(f"{name}, line 5")


def test_a_line_of_a_pair_has_one_tab(tmp_path: Path) -> None:
    file = tmp_path / "u.txt"
    file.write_text("a b\tc\n\nd\te\n")
    (split,) = read_texts(file, "premise,hypothesis")
    assert [tuple(parts(text)) for text in split.texts] == [("a b", "c"), ("d", "e")]
    file.write_text("a\tb\nc\td\te\n")
    with pytest.raises(InputError, match="line 2: 2 tabs: a line of a pair has one"):
        read_texts(file, "premise,hypothesis")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b" \n\n", "no rows"),
        (b"a\n\xff\n", "line 2: not utf-8"),
        (b"a\n" + b"b" * 100 + b"\n", "line 2: the line has more than 50 bytes"),
    ],
)
def test_a_bad_file_is_refused(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "u.txt").write_bytes(content)
    with pytest.raises(InputError, match=said):
        read_texts(tmp_path / "u.txt", "text", Limits(text=50))


def test_a_table_of_labels_is_no_text_file(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("a\nb\n")
    with pytest.raises(InputError, match="unknown extension"):
        load_dataset(str(tmp_path / "train.txt"))
    with pytest.raises(InputError, match="does not exist"):
        read_texts(tmp_path / "none.txt")
