"""Whatever a tokenizer makes of a text, in one line."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Iterator

from nanonet.errors import InputError


@contextlib.contextmanager
def tokenizer_faults(what: str, cure: str = "get the model again") -> Iterator[None]:
    """Within, whatever a tokenizer raises becomes one line; a Rust panic, which is no Exception, as well.

    Raises:
        InputError: the reason in short.
    """
    with _no_panic_reports():
        try:
            yield
        except InputError:
            raise
        except BaseException as error:
            if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
                raise
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise InputError(f"{what}: its tokenizer fails ({reason:.120}); {cure}") from error


_lock = threading.Lock()
_silent = [0, -1]  # blocks, in all threads, for which file descriptor 2 is closed; a copy of it


@contextlib.contextmanager
def _no_panic_reports() -> Iterator[None]:
    """Close file descriptor 2: Rust writes a panic and its stack there, before Python hears of it."""
    with _lock:
        if not _silent[0]:
            if sys.stderr:
                sys.stderr.flush()
            try:
                _silent[1] = os.dup(2)
            except OSError:  # it is closed already
                _silent[1] = -1
            else:
                with open(os.devnull, "wb") as nowhere:
                    os.dup2(nowhere.fileno(), 2)
        _silent[0] += 1
    try:
        yield
    finally:
        with _lock:
            _silent[0] -= 1
            if not _silent[0] and _silent[1] >= 0:
                os.dup2(_silent[1], 2)
                os.close(_silent[1])
