"""Places come back as they were given."""

from __future__ import annotations

import pytest

from nanonet.data.places import Places


def test_places_come_back() -> None:
    given = [
        "line 7",
        "line 8",
        "a.csv, line 7",
        "index 0",
        "row 007",
        "nowhere",
        "",
        " 3",
        "x ٣",
        f"row {10**30}",
        "7",
    ]
    places = Places()
    for place in given:
        places.append(place)
    assert list(places) == given and len(places) == len(given) and places[-1] == "7"
    assert places[1:3] == given[1:3]
    with pytest.raises(IndexError):
        places[len(given)]


def test_a_place_takes_a_few_bytes() -> None:
    places = Places()
    for row in range(10_000):
        places.append(f"a-long-name-of-a-shard.jsonl, line {row}")
    assert sum(part.itemsize * len(part) for part in (places._word, places._number)) == 12 * 10_000
    assert len(places._words) == 1 and places[9_999].endswith("line 9999")
