"""README and the guides: their Python blocks run, their commands parse, and what they list is complete."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from nanonet.benchmarks import evidence_tables
from nanonet.cli.main import COMMANDS
from nanonet.config.check import check_train
from nanonet.config.parse import parse
from nanonet.config.train import TrainConfig
from nanonet.reference import DEFAULT_BETA, DIVERGENCES

ROOT = Path(__file__).parents[1]
README, CONTRIBUTING = ROOT / "README.md", ROOT / "CONTRIBUTING.md"
PAGES = [README, CONTRIBUTING, *sorted((ROOT / "docs").rglob("*.md"))]
LAB = ROOT / "docs" / "lab"


def blocks(page: Path) -> Iterator[tuple[str, str]]:
    """(language, code) of every block of a page, fenced or indented by four."""
    fenced = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
    text = page.read_text()
    yield from fenced.findall(text)
    yield "", "\n".join(re.findall(r"^ {4}(\S.*)$", fenced.sub("", text), re.M))


def python_blocks() -> Iterator[tuple[str, str]]:
    for page in PAGES:
        codes = [code for language, code in blocks(page) if language == "python"]
        yield from ((f"{page.name}-{number}", code) for number, code in enumerate(codes))


def commands() -> Iterator[tuple[str, list[str]]]:
    """(page, words after `nanonet`) of every command in a code block."""
    for page in PAGES:
        lines = "\n".join(code for language, code in blocks(page) if language in ("", "bash")).splitlines()
        for line in lines:
            found = re.search(r"^(?:.*\| |torchrun .*-m )?nanonet (\w.*)$", line)
            if found and page.parent != LAB and "..." not in line:
                yield page.name, shlex.split(found[1], comments=True)


BLOCKS, CALLS = list(python_blocks()), list(commands())


def test_the_readme_is_short_and_names_the_tests() -> None:
    text = README.read_text()
    assert len(text.splitlines()) <= 120
    assert "make test" in text and "make demo" in text


@pytest.mark.parametrize("code", [code for _, code in BLOCKS], ids=[name for name, _ in BLOCKS])
def test_a_python_block_runs(code: str) -> None:
    exec(compile(code, "block", "exec"), {"__name__": "block"})


def test_there_are_blocks_and_commands() -> None:
    assert sum(name.startswith("README") for name, _ in BLOCKS) >= 1 and len(BLOCKS) >= 6
    assert sum(page == "README.md" for page, _ in CALLS) >= 8 and len(CALLS) >= 20


@pytest.mark.parametrize(("page", "words"), CALLS, ids=[f"{page}-{' '.join(words[:4])}" for page, words in CALLS])
def test_a_command_parses(page: str, words: list[str], tmp_path: Path) -> None:
    name, *flags = words
    command = COMMANDS[name]
    if "--help" in flags:
        return
    if "--config" in flags:  # a file of a run that is not here
        at = flags.index("--config")
        flags = flags[:at] + flags[at + 2 :]
    config = parse(command.config, flags, f"nanonet {name}", command.summary, command.positional)
    if isinstance(config, TrainConfig):
        check_train(config)


def test_every_make_target_exists() -> None:
    targets = set(re.findall(r"^([\w./-]+):", (ROOT / "Makefile").read_text(), re.M))
    named = {(page.name, target) for page in PAGES for target in re.findall(r"`make ([a-z-]+)`", page.read_text())}
    named |= {("README.md", target) for target in re.findall(r"^ {4}make ([a-z-]+)", README.read_text(), re.M)}
    assert len(named) > 5 and [(page, target) for page, target in sorted(named) if target not in targets] == []


def test_links_lead_to_files() -> None:
    missing = []
    for page in PAGES:
        for target in re.findall(
            r"\]\(([^)#\s]+)[^)]*\)", re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S)
        ):
            if not target.startswith("http") and not (page.parent / target).exists():
                missing.append(f"{page.name}: {target}")
    assert missing == []


def test_the_table_of_divergences_is_complete() -> None:
    table = (ROOT / "docs" / "explanation" / "loss.md").read_text()
    rows = dict(re.findall(r"^\| `(\w+)` \|.*\| (\S+) \| [^|]+ \|$", table, re.M))
    assert list(rows) == list(DIVERGENCES)
    assert {name: float(beta) for name, beta in rows.items() if beta != "-"} == DEFAULT_BETA


def test_the_tables_of_accuracies_are_those_of_the_committed_lines() -> None:
    records = evidence_tables.read_lines(evidence_tables.LINES)
    assert f"<!-- results -->\n{evidence_tables.readme_table(records)}\n<!-- end -->" in README.read_text()
    evidence = (ROOT / "docs" / "explanation" / "evidence.md").read_text()
    assert f"<!-- comparison -->\n{evidence_tables.comparison(records)}\n<!-- end -->" in evidence
