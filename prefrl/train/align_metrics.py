"""How well scores of videos order them as the user does: pair accuracy and Spearman's rank correlation.

Of whole videos, as in arXiv 2310.07932, table 1, but not within them: sums of any two rewards grow alike over time.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import rankdata

from prefrl.core import require_finite
from prefrl.errors import InvalidData

__all__ = ["Ordering", "ordering"]


class Ordering(NamedTuple):
    """accuracy: share of pairs in the right order, in [0, 1] · spearman: in [−1, 1] · pairs: how many were apart.

    None where nothing is apart.
    """

    accuracy: float | None
    spearman: float | None
    pairs: int


def ordering(scores: ArrayLike, truth: ArrayLike, *, threshold: float = 0.0) -> Ordering:
    """Of scores (V,) against the user's own (V,): all pairs with |gap of the user's| > threshold; a tie is half right.

    >>> ordering([1.0, 2.0, 3.0], [0.0, 5.0, 4.0])
    Ordering(accuracy=0.6666666666666666, spearman=0.5, pairs=3)
    """
    ours, true = np.asarray(scores, dtype=np.float64), np.asarray(truth, dtype=np.float64)
    if ours.shape != true.shape or ours.ndim != 1 or len(ours) < 2:
        raise InvalidData(f"ordering: scores and truth must be (V,), V >= 2, but are {ours.shape} and {true.shape}.")
    require_finite("scores", ours)
    require_finite("truth", true)
    i, j = np.triu_indices(len(true), k=1)
    gap = true[i] - true[j]
    apart = np.abs(gap) > threshold
    right = 0.5 + 0.5 * np.sign(ours[i] - ours[j])[apart] * np.sign(gap[apart])
    varied = np.ptp(ours) > 0 and np.ptp(true) > 0
    return Ordering(
        accuracy=float(right.mean()) if apart.any() else None,
        spearman=round(float(np.corrcoef(rankdata(ours), rankdata(true))[0, 1]), 12) if varied else None,
        pairs=int(apart.sum()),
    )
