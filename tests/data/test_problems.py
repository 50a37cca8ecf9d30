"""The one line of a fault."""

from __future__ import annotations

from pathlib import Path

from nanonet.data.problems import listing, problem, shorten


def test_shorten_keeps_the_end_of_a_path_and_the_start_of_a_value() -> None:
    path = shorten(Path("/" + "long/" * 40 + "train.csv"))
    assert len(path) == 60 and path.startswith("...") and path.endswith("/train.csv")
    assert shorten("x" * 100, 10) == "'xxxxxx..."
    assert "\n" not in shorten("a\nb") and "\n" not in shorten(Path("a\nb"))


def test_listing_counts_what_it_leaves_out() -> None:
    assert listing(["a", "b"]) == "'a', 'b'"
    assert listing(map(str, range(100)), most=2) == "'0', '1', ... (100 in all)"


def test_problem_names_what_it_knows() -> None:
    assert str(problem(Path("a.csv"), "bad: mend it", "line 3", "text")) == "a.csv, line 3, column 'text': bad: mend it"
    assert str(problem("imdb", "bad: mend it")) == "imdb: bad: mend it"
