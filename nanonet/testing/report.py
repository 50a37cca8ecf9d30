"""What a check of a loss found, as lines of a table."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Check:
    """One line of a report; it passed if error <= bar. Errors are relative, of the worst row."""

    case: str
    dtype: str
    what: str
    error: float
    bar: float
    note: str = ""

    @property
    def passed(self) -> bool:
        return self.error <= self.bar  # NaN is not

    def __str__(self) -> str:
        verdict = "ok" if self.passed else "FAILED"
        return (
            f"{self.case:<24}{self.dtype:<10}{self.what:<12}{self.error:>9.1e}{self.bar:>9.1e}  {verdict} {self.note}"
        )


@dataclass(frozen=True)
class Report:
    """What was checked, in order; `untried` are arguments of the callable that no case gave another value."""

    checks: tuple[Check, ...]
    untried: tuple[str, ...]

    @property
    def failures(self) -> tuple[Check, ...]:
        return tuple(check for check in self.checks if not check.passed)

    def raise_failures(self) -> None:
        """AssertionError that names every case that failed, and its error."""
        if self.failures:
            raise AssertionError("\n".join(["the loss does not conform:", *map(str, self.failures)]))

    def __str__(self) -> str:
        head = f"{'case':<24}{'dtype':<10}{'what':<12}{'error':>9}{'bar':>9}"
        last = f"{len(self.failures)} of {len(self.checks)} failed"
        if self.untried:
            last += f"; not tried: {', '.join(self.untried)} (give `arguments`)"
        return "\n".join([head, *map(str, self.checks), last])


def ended(case: str, dtype: str, error: Exception, what: str = "call") -> Check:
    return Check(case, dtype, what, math.inf, 0.0, f"{type(error).__name__}: {error}".splitlines()[0][:120])
