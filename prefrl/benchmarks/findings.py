"""What a measurement of a benchmark found: numbers with their bars, before they become rows of its table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from prefrl.evaluation.intervals import Estimate

__all__ = ["Finding", "Progress", "at_least", "at_most", "same", "to_rows"]

Progress = Callable[[int, int], None]  # done, total


class Finding(NamedTuple):
    """One number. bar: what it is compared with, None: shown only · low, high: 95 % interval or extremes, or None.

    holds: whether the bar is kept, None without one, or why there is no value · seeds: of its randomness.
    """

    id: str
    what: str
    value: float | None
    bar: float | None = None
    holds: bool | str | None = None
    low: float | None = None
    high: float | None = None
    seeds: tuple[int, ...] = ()


def at_least(id: str, what: str, found: float | Estimate, bar: float | None = None, **more: Any) -> Finding:
    """A number that should not be below its bar.

    >>> at_least("share", "share of fits", 0.95, 0.9).holds
    True
    """
    value, *interval = _parts(found)
    return Finding(id, what, value, bar, None if bar is None else value >= bar, *interval, **more)


def at_most(id: str, what: str, found: float | Estimate, bar: float | None = None, **more: Any) -> Finding:
    """A number that should not be above its bar; NaN is above all."""
    value, *interval = _parts(found)
    return Finding(id, what, value, bar, None if bar is None else value <= bar, *interval, **more)


def same(id: str, what: str, found: float, bar: float, *, within: float, **more: Any) -> Finding:
    """A number that should be its bar.

    >>> same("J", "return", 41.2, 41.208, within=0.01).holds
    True
    """
    return Finding(id, f"{what} (± {within:g})", float(found), bar, bool(abs(found - bar) <= within), **more)


def _parts(found: float | Estimate) -> tuple[Any, Any, Any]:
    """Value, low, high."""
    if isinstance(found, Estimate):
        return float(found.value), float(found.low), float(found.high)
    return float(found), None, None


def to_rows(findings: Sequence[Finding], seconds: float) -> list[dict[str, Any]]:
    """Rows of the table; ``seconds`` is what all of them took together. JSON has no ∞: it is the largest number."""
    return [
        {
            "id": f.id, "what": f.what, "value": _finite(f.value), "low": _finite(f.low), "high": _finite(f.high),
            "bar": f.bar, "holds": f.holds, "seeds": list(f.seeds), "seconds": seconds,
        }
        for f in findings
    ]  # fmt: skip


def _finite(number: float | None) -> float | None:
    largest = np.finfo(np.float64).max
    return None if number is None else float(np.clip(number, -largest, largest))
