"""The splits of a Hugging Face dataset. Without a network it fails within seconds and names the cure."""

from __future__ import annotations

import re
import sys
import threading
from collections.abc import Iterator, Mapping
from typing import Any

from nanonet.data.columns import Columns
from nanonet.data.formats import TableRow, check_columns
from nanonet.data.problems import problem, shorten

_ASK_TIMEOUT_S = 8.0
_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
_FILE_NAME = re.compile(r".*\.[A-Za-z]{2,8}")  # `reviews.xlsx` is a file that is missing, `org/set.v2` is not


def looks_like_id(data: str) -> bool:
    """Say whether `data` can be a dataset id: `name` or `owner/name`, not ending like a file name."""
    return len(data) <= 96 and bool(_ID.fullmatch(data)) and not _FILE_NAME.fullmatch(data)


def open_splits(name: str) -> Mapping[str, Any]:
    """Return {split: datasets.Dataset} of the dataset id `name`.

    One request with a timeout asks for the id first: without a network the library itself retries for half a
    minute. Under HF_HUB_OFFLINE=1 nothing is asked and the library reads its cache.
    Raises InputError where there is no such id, no network or no `datasets` library.
    """
    print(f"nanonet: no file or folder {name!r} here, asking the Hugging Face hub for it", file=sys.stderr, flush=True)
    try:
        import datasets
        from huggingface_hub import constants
    except ImportError as error:
        raise problem(name, "reading a Hugging Face dataset needs datasets: pip install nanonet[data]") from error
    if not constants.HF_HUB_OFFLINE:
        _ask_hub(name)
    try:
        return dict(datasets.load_dataset(name))
    # whatever the library, its loading script or the network raises is, to the user, an id that does not load
    except Exception as error:
        first_line = (str(error).strip() or "no message").splitlines()[0]
        raise problem(
            name, f"{_because(error, first_line)}: give a dataset id that loads, a file or a folder"
        ) from error


def hub_rows(name: str, table: Any, columns: Columns) -> Iterator[TableRow]:
    """Yield (place, [*texts, label]) as `formats.read_rows` does; the label of a ClassLabel column is its name."""
    check_columns(name, "", table.column_names, columns.settings)
    names = class_names(table, str(columns.label)) or []
    rows = zip(*(table[column] for column in columns.settings.values()), strict=True)
    for number, (*texts, label) in enumerate(rows, 1):
        yield f"row {number}", [*texts, names[label] if label in range(len(names)) else label]


def class_names(table: Any, label_column: str) -> list[str] | None:
    """Return the names of a ClassLabel column, None where the column is of another type."""
    names = getattr(table.features.get(label_column), "names", None)
    return list(names) if names else None


def _because(error: BaseException, detail: str) -> str:
    return f"the Hugging Face hub gave {type(error).__name__} ({shorten(detail, 80)})"


def _ask_hub(name: str) -> None:
    """Ask the hub for the id. In a thread, because looking up a host name obeys no timeout."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError

    outcome: list[BaseException | None] = []

    def ask() -> None:
        try:
            HfApi().dataset_info(name, timeout=_ASK_TIMEOUT_S / 2)
            outcome.append(None)
        except Exception as error:  # handed to the caller's thread, which raises
            outcome.append(error)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_ASK_TIMEOUT_S)
    error = outcome[0] if outcome else TimeoutError(f"no answer within {_ASK_TIMEOUT_S:.0f} s")
    if isinstance(error, RepositoryNotFoundError):
        what = "no file, folder or public Hugging Face dataset: check the spelling, or log in for a private one"
        raise problem(name, what) from error
    if error is not None:
        cure = "check the path or the network, or set HF_HUB_OFFLINE=1 to use a cached copy"
        raise problem(name, f"not here, and {_because(error, str(error))}: {cure}") from error
