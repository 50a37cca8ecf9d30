"""The hub without a hub: a stand-in `datasets`, a stand-in for the one request."""

from __future__ import annotations

import sys
import time
from types import SimpleNamespace
from typing import Any

import pytest

from nanonet.data import hub
from nanonet.data.hub import looks_like_id
from nanonet.data.pairs import MARK
from nanonet.data.read import load_dataset
from nanonet.errors import InputError

pytest.importorskip("huggingface_hub")


class Table(dict[str, list[object]]):
    """What is used of datasets.Dataset; `names` make its label column a ClassLabel."""

    def __init__(self, names: list[str] | None = None, **columns: list[object]) -> None:
        super().__init__(columns)
        self.column_names = list(columns)
        self.features = {column: SimpleNamespace(names=names) if column == "label" else object() for column in columns}


def serve(monkeypatch: pytest.MonkeyPatch, answer: object, probe: BaseException | None = None) -> None:
    def load(name: str) -> Any:
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def ask(self: object, name: str, timeout: float) -> None:
        if probe is not None:
            raise probe

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load))
    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", ask)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)


@pytest.mark.parametrize("data", ["imdb", "owner/name", "org/set-v1.0", "org/set.v2"])
def test_ids(data: str) -> None:
    assert looks_like_id(data)


@pytest.mark.parametrize(
    "data", ["", "a.csv", "dir/a.parquet", "/abs/dir", "./dir", "a/b/c", "a b", "x" * 97, "a/b.jsonl.gz"]
)
def test_not_ids(data: str) -> None:
    assert not looks_like_id(data)


def test_a_class_label_column_gives_names(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    # names that are numbers, against values that count them
    train = Table(["1", "2", "3"], text=["a", "b"], label=[2, 0])
    serve(monkeypatch, {"train": train, "test": Table(["1", "2", "3"], text=["c"], label=[1])})
    data = load_dataset("owner/stars")
    assert data.classes == ["1", "2", "3"] and data.name == "owner/stars"
    assert data.train.labels == [2, 0] and data.test is not None and data.test.labels == [1]
    captured = capsys.readouterr()
    assert "'owner/stars'" in captured.err and captured.out == ""


def test_plain_columns_and_no_test_split(monkeypatch: pytest.MonkeyPatch) -> None:
    texts: list[object] = [f"text {n}" for n in range(100)]
    serve(monkeypatch, {"train": Table(body=texts, topic=["x", "y"] * 50)})
    data = load_dataset("plain", text_column="body", label_column="topic")
    assert data.classes == ["x", "y"] and data.test is None and data.train.texts == texts
    data = load_dataset("plain", text_column="body", label_column="topic", test_fraction=0.2)
    assert data.test is not None and len(data.test.texts) == 20
    assert sorted(data.train.texts + data.test.texts) == sorted(map(str, texts))


FAULTS: list[tuple[object, BaseException | None, list[str]]] = [
    ({"test": Table(text=["a"], label=[0])}, None, ["owner/set", "no train split", "'test'"]),
    ({"train": Table(body=["a"], label=[0])}, None, ["owner/set [train]", "'text'", "'body'", "text_column"]),
    (
        {"train": Table(["a", "b"], text=["a"], label=[-1])},
        None,
        ["owner/set [train]: no row has a label"],
    ),
    (
        ValueError("Config name is missing.\nPick one"),
        None,
        ["owner/set", "ValueError", "Config name is missing.", "file"],
    ),
    (
        None,
        ConnectionError("[Errno -2] Name or service not known"),
        ["owner/set", "ConnectionError", "HF_HUB_OFFLINE=1"],
    ),
]


@pytest.mark.parametrize(("answer", "probe", "fragments"), FAULTS)
def test_faults(
    monkeypatch: pytest.MonkeyPatch, answer: object, probe: BaseException | None, fragments: list[str]
) -> None:
    serve(monkeypatch, answer, probe)
    with pytest.raises(InputError) as error:
        load_dataset("owner/set")
    assert "\n" not in str(error.value)
    for fragment in fragments:
        assert fragment in str(error.value)


def test_an_id_that_the_hub_does_not_know(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub.errors import RepositoryNotFoundError

    # its constructor wants a response of the HTTP library of the day
    serve(monkeypatch, None, RepositoryNotFoundError.__new__(RepositoryNotFoundError))
    with pytest.raises(
        InputError, match="owner/set: no file, folder or public Hugging Face dataset: check the spelling"
    ):
        load_dataset("owner/set")


def test_a_silent_network_fails_within_the_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    serve(monkeypatch, None)
    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", lambda *a, **k: time.sleep(2))
    monkeypatch.setattr(hub, "_ASK_TIMEOUT_S", 0.1)
    start = time.perf_counter()
    with pytest.raises(InputError, match="TimeoutError"):
        load_dataset("owner/set")
    assert time.perf_counter() - start < 1.5


def test_offline_asks_the_cache_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    serve(
        monkeypatch,
        {"train": Table(text=["a", "b"], label=[0, 1]), "test": Table(text=["c"], label=[1])},
        OSError("asked"),
    )
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert load_dataset("owner/set").train.texts == ["a", "b"]


def test_a_missing_library_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match=r"pip install nanonet\[data\]"):
        load_dataset("owner/set")


def test_two_columns_of_the_hub_are_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    columns = {"premise": ["a", "b"], "hypothesis": ["c", "d"], "a,b": ["x", "y"], "label": [1, 0]}
    serve(monkeypatch, {"train": Table(["no", "yes"], **columns), "test": Table(["no", "yes"], **columns)})
    data = load_dataset("owner/nli", text_column="hypothesis,premise")
    assert data.train.texts == [f"c{MARK}a", f"d{MARK}b"] and data.train.labels == [1, 0]
    assert data.test is not None and data.test.texts == data.train.texts
    assert load_dataset("owner/nli", text_column="a,b").train.texts == ["x", "y"]
    with pytest.raises(InputError, match="column 'other': no such column: set the second name of text_column"):
        load_dataset("owner/nli", text_column="premise,other")
