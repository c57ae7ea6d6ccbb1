"""Per-feature statistics of a dataset, in the shape of LeRobot's ``meta/stats.json``, and how to merge them.

Merging uses the pairwise formula of Chan, Golub and LeVeque 1979 (STAN-CS-79-773, eq. 2.1).
"""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["feature_statistics", "merge_statistics"]

Statistics = dict[str, dict[str, list[Any]]]


def feature_statistics(columns: dict[str, np.ndarray]) -> Statistics:
    """min, max, mean, std (population) and count of each column (rows,) or (rows, size), as lists.

    >>> feature_statistics({"action": np.array([[0.0, 1.0], [2.0, 1.0]])})["action"]["std"]
    [1.0, 0.0]
    """
    statistics = {}
    for name, column in columns.items():
        rows = column.reshape(len(column), -1).astype(np.float64)
        values = {"min": rows.min(0), "max": rows.max(0), "mean": rows.mean(0), "std": rows.std(0)}
        statistics[name] = {key: value.tolist() for key, value in values.items()} | {"count": [len(rows)]}
    return statistics


def merge_statistics(one: Statistics, two: Statistics) -> Statistics:
    """The statistics of both sets of rows together.

    >>> a, b = (feature_statistics({"x": np.array(rows)}) for rows in ([0.0, 2.0], [4.0]))
    >>> merge_statistics(a, b) == feature_statistics({"x": np.array([0.0, 2.0, 4.0])})
    True
    """
    return {name: _merge(one[name], two[name]) for name in two}


def _merge(one: dict[str, list[Any]], two: dict[str, list[Any]]) -> dict[str, list[Any]]:
    a, b = ({key: np.asarray(value, dtype=np.float64) for key, value in part.items()} for part in (one, two))
    n = a["count"] + b["count"]
    delta = b["mean"] - a["mean"]
    squares = a["std"] ** 2 * a["count"] + b["std"] ** 2 * b["count"] + delta**2 * a["count"] * b["count"] / n
    merged = {
        "min": np.minimum(a["min"], b["min"]),
        "max": np.maximum(a["max"], b["max"]),
        "mean": a["mean"] + delta * b["count"] / n,
        "std": np.sqrt(squares / n),
    }
    return {key: value.tolist() for key, value in merged.items()} | {"count": [int(n[0])]}
