"""What the stages of a run took."""

from __future__ import annotations

import pytest

from nanonet.progress import Progress, note


def test_a_stage_counts_every_time_that_it_came_and_not_what_lies_within_it(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("nanonet.progress.time.perf_counter", lambda: now[0])
    progress = Progress(active=False)
    with progress.stage("outer", 1):
        now[0] += 1
        for seconds in (2, 3):
            with progress.stage("inner", 1) as tick:
                now[0] += seconds
                tick(1, "done")
        now[0] += 4
    with progress.stage("after", 1):
        now[0] += 6
    assert progress.seconds == {"outer": 5, "inner": 5, "after": 6}


def test_a_note_is_one_line_of_the_first_process(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    note("two\nlines\x1b[2J")
    monkeypatch.setenv("RANK", "1")
    note("of another process")
    assert capsys.readouterr().err == "nanonet: two lines\\x1b[2J\n"
