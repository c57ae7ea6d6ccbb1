"""The five label conventions in use, and ours: ``p_first``, the probability that the first is preferred.

| convention | first | second | tie | used by |
|---|---|---|---|---|
| first probability | 1 | 0 | 0.5 | ours; imitation (github.com/HumanCompatibleAI/imitation) |
| second probability | 0 | 1 | 0.5 | CPL (github.com/jhejna/cpl), inverse-preference-learning |
| index | 0 | 1 | -1 | B-Pref (github.com/rll-research/BPref) |
| one-hot | (1, 0) | (0, 1) | (.5, .5) | PreferenceTransformer, Clean-Offline-RLHF |
| ordered | chosen, rejected | | none | DPO (github.com/eric-mitchell/direct-preference-optimization) |

Every ``from_`` is total on its convention and refuses everything else; every ``to_`` undoes it, and refuses
labels that the convention cannot hold.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from prefrl.core import require_probability
from prefrl.errors import InvalidData

__all__ = [
    "from_first_probability", "from_index", "from_one_hot", "from_ordered", "from_second_probability",
    "to_first_probability", "to_index", "to_one_hot", "to_ordered", "to_second_probability",
]  # fmt: skip


def from_first_probability(label: ArrayLike) -> np.ndarray:
    """(N,) P(first preferred) -> (N,) p_first: the convention is ours, only checked.

    >>> from_first_probability([1.0, 0.5])
    array([1. , 0.5])
    """
    return _checked(label)


def to_first_probability(p_first: ArrayLike) -> np.ndarray:
    """(N,) p_first -> (N,) P(first preferred)."""
    return _checked(p_first)


def from_second_probability(label: ArrayLike) -> np.ndarray:
    """(N,) P(second preferred) -> (N,) p_first.

    >>> from_second_probability([1.0, 0.5, 0.0])
    array([0. , 0.5, 1. ])
    """
    return 1 - _checked(label)


def to_second_probability(p_first: ArrayLike) -> np.ndarray:
    """(N,) p_first -> (N,) P(second preferred)."""
    return 1 - _checked(p_first)


def from_index(label: ArrayLike) -> np.ndarray:
    """(N,) index of the preferred segment, 0 or 1, and -1 for a tie -> (N,) p_first.

    >>> from_index([0, 1, -1])
    array([1. , 0. , 0.5])
    """
    index = np.asarray(label)
    unknown = ~np.isin(index, (-1, 0, 1))
    if index.ndim != 1 or unknown.any():
        raise InvalidData(f"Index labels must be 0 (first), 1 (second) or -1 (tie), but are {index[unknown][:5]}.")
    return np.array([1.0, 0.0, 0.5])[index.astype(np.int64)]


def to_index(p_first: ArrayLike) -> np.ndarray:
    """(N,) p_first in {0, 0.5, 1} -> (N,) int64 index of the preferred segment, -1 for a tie."""
    hard = _checked(p_first)
    _refuse(hard, ~np.isin(hard, (0, 0.5, 1)), "an index of the preferred segment holds 0, 0.5 and 1 only")
    return np.select([hard == 1, hard == 0], [0, 1], default=-1)


def from_one_hot(label: ArrayLike) -> np.ndarray:
    """(N, 2) P(first), P(second), with sum 1 -> (N,) p_first.

    >>> from_one_hot([[1.0, 0.0], [0.5, 0.5]])
    array([1. , 0.5])
    """
    pair = np.asarray(label, dtype=np.float64)
    if pair.ndim != 2 or pair.shape[1] != 2 or not np.allclose(pair.sum(1), 1):
        raise InvalidData(f"One-hot labels must be (N, 2) with rows that sum to 1, but have shape {pair.shape}.")
    return _checked(pair[:, 0])


def to_one_hot(p_first: ArrayLike) -> np.ndarray:
    """(N,) p_first -> (N, 2) P(first), P(second)."""
    p = _checked(p_first)
    return np.stack([p, 1 - p], axis=1)


def from_ordered(n: int) -> np.ndarray:
    """N pairs (chosen, rejected) -> (N,) p_first, which is 1 when chosen stands first.

    >>> from_ordered(2)
    array([1., 1.])
    """
    return np.ones(n)


def to_ordered(p_first: ArrayLike) -> np.ndarray:
    """(N,) p_first in {0, 1} -> (N,) bool, whether the pair must be exchanged to stand as (chosen, rejected).

    >>> to_ordered([1.0, 0.0])
    array([False,  True])
    """
    hard = _checked(p_first)
    _refuse(hard, ~np.isin(hard, (0, 1)), "an ordered pair cannot hold ties or soft labels")
    return hard == 0


def _checked(label: ArrayLike) -> np.ndarray:
    values = np.array(label, dtype=np.float64)
    if values.ndim != 1:
        raise InvalidData(f"Labels must be (N,), one a comparison, but have shape {values.shape}.")
    require_probability("label", values)
    return values


def _refuse(values: np.ndarray, bad: np.ndarray, why: str) -> None:
    if bad.any():
        raise InvalidData(f"p_first is {values[bad][0]:g} at index {np.argmax(bad)}, but {why}. Drop such rows first.")
