"""Rankings of three videos, RAPL's labels (arXiv 2310.07932), as triplets and as ordinary comparisons of pairs.

A contrastive triplet says positive > neutral > negative; an equal one that the user sees no difference between three.
Axes: N triplets or pairs, V videos.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from prefrl.core import require_finite, require_probability
from prefrl.errors import ConfigError, InvalidData

__all__ = ["KINDS", "Triplets", "VideoPairs", "human_judgements", "simulated_triplets"]

KINDS = ("contrastive", "equal")
ROLES = ("positive", "neutral", "negative")


@dataclass(frozen=True)
class VideoPairs:
    """N comparisons of two videos: first, second (N,) int64 numbers of videos; p_first (N,) in [0, 1], 0.5 is a tie."""

    first: np.ndarray
    second: np.ndarray
    p_first: np.ndarray

    def __post_init__(self) -> None:
        for name in ("first", "second"):
            object.__setattr__(self, name, _numbers("VideoPairs", name, getattr(self, name)))
        object.__setattr__(self, "p_first", np.asarray(self.p_first, dtype=np.float64))
        if not self.first.shape == self.second.shape == self.p_first.shape:
            raise InvalidData("VideoPairs: first, second and p_first must have one equal length, shape (N,).")
        require_probability("VideoPairs: p_first", self.p_first)
        same = np.flatnonzero(self.first == self.second)
        if len(same):
            raise InvalidData(f"VideoPairs: pair {same[0]} compares video {self.first[same[0]]} with itself.")

    def __len__(self) -> int:
        return len(self.first)

    def __getitem__(self, index: Any) -> VideoPairs:
        return VideoPairs(self.first[index], self.second[index], self.p_first[index])

    def require_videos(self, count: int) -> None:
        """Raise ``InvalidData`` unless there are as many videos as the pairs name."""
        _require_known("pair", np.stack([self.first, self.second], 1), count)


@dataclass(frozen=True)
class Triplets:
    """N triplets: positive, neutral, negative (N,) int64 numbers of videos; kind: of each, "contrastive" or "equal".

    In an equal triplet the roles mean nothing. Raises ``InvalidData`` where a video has two roles.
    """

    positive: np.ndarray
    neutral: np.ndarray
    negative: np.ndarray
    kind: np.ndarray

    def __post_init__(self) -> None:
        for name in ROLES:
            object.__setattr__(self, name, _numbers("Triplets", name, getattr(self, name)))
        object.__setattr__(self, "kind", np.asarray(self.kind, dtype=np.str_))
        if len({getattr(self, name).shape for name in (*ROLES, "kind")}) > 1:
            raise InvalidData("Triplets: positive, neutral, negative and kind must have one equal length, shape (N,).")
        unknown = set(self.kind.tolist()) - set(KINDS)
        if unknown:
            raise InvalidData(f"Triplets: kind must be one of {', '.join(KINDS)}, but holds {sorted(unknown)}.")
        for one, two in (("positive", "neutral"), ("positive", "negative"), ("neutral", "negative")):
            same = np.flatnonzero(getattr(self, one) == getattr(self, two))
            if len(same):
                raise InvalidData(
                    f"Triplets: in triplet {same[0]}, video {getattr(self, one)[same[0]]} is both {one} and {two}. A "
                    "ranking is of three different videos: drop this one."
                )

    def __len__(self) -> int:
        return len(self.positive)

    def __getitem__(self, index: Any) -> Triplets:
        return Triplets(*(getattr(self, name)[index] for name in (*ROLES, "kind")))

    @property
    def videos(self) -> np.ndarray:
        """(N, 3) int64: positive, neutral, negative."""
        return np.stack([self.positive, self.neutral, self.negative], axis=1)

    @property
    def is_equal(self) -> np.ndarray:
        """(N,) bool."""
        return self.kind == "equal"

    def require_videos(self, count: int) -> None:
        """Raise ``InvalidData`` unless there are as many videos as the triplets name."""
        _require_known("triplet", self.videos, count)

    def pairs(self) -> VideoPairs:
        """All 3 N comparisons that the rankings say, those of one triplet beside each other; equal ones are ties.

        >>> Triplets([4], [0], [2], ["contrastive"]).pairs().second
        array([0, 2, 2])
        """
        videos = self.videos
        first, second = videos[:, [0, 0, 1]].reshape(-1), videos[:, [1, 2, 2]].reshape(-1)
        return VideoPairs(first, second, np.repeat(np.where(self.is_equal, 0.5, 1.0), 3))


def human_judgements(labels: Triplets | VideoPairs) -> int:
    """How many answers to "which of these two?" the labels are worth: the currency in which methods are compared.

    A pair is 1. A triplet is 3, whatever its kind: the ranking of three videos says which is better in each of three
    pairs, and that three are equal says it of three pairs. It is an upper bound of the work: a person who sorts asks
    himself 2 or 3 times. A method that uses fewer of the three pairs has paid for all.

    >>> human_judgements(Triplets([0, 3], [1, 4], [2, 5], ["contrastive", "equal"]))
    6
    """
    return 3 * len(labels) if isinstance(labels, Triplets) else len(labels)


def simulated_triplets(
    scores: ArrayLike, n: int, rng: np.random.Generator, *, flip: float = 0.0, margin: float = 0.0
) -> Triplets:
    """n random triplets of videos, sorted by the user's scores (V,), higher is better.

    Three scores within ``margin`` of each other make an equal triplet. Where only two are that near, a person could not
    rank them, and three others are drawn.

    Args:
        flip: probability in [0, 1] that two of the three, at random, are exchanged by mistake, in contrastive ones.
        margin: largest difference, >= 0, that the user does not see; 0: only equal scores are equal.
    """
    score = np.asarray(scores, dtype=np.float64)
    if score.ndim != 1 or len(score) < 3 or n < 1:
        raise InvalidData(f"Triplets need scores (V,) of at least 3 videos and n >= 1, but are {score.shape} and {n}.")
    require_finite("scores", score)
    if not (0 <= flip <= 1 and margin >= 0):
        raise ConfigError(f"simulated_triplets: flip must be in [0, 1] and margin >= 0, but are {flip} and {margin}.")
    found, equal = np.empty((0, 3), dtype=np.int64), np.empty(0, dtype=bool)
    for _ in range(100):
        videos = rng.integers(len(score), size=(2 * n, 3))
        videos = videos[(np.diff(np.sort(videos, axis=1), axis=1) > 0).all(1)]
        videos = np.take_along_axis(videos, np.argsort(-score[videos], axis=1, kind="stable"), axis=1)
        gap = -np.diff(score[videos], axis=1)  # (…, 2): of neighbors, >= 0
        alike = gap.sum(1) <= margin
        usable = alike | (gap > margin).all(1)
        found, equal = np.concatenate([found, videos[usable]])[:n], np.concatenate([equal, alike[usable]])[:n]
        if len(found) == n:
            break
    else:
        raise InvalidData(
            f"Only {len(found)} of {n} triplets were found whose scores are all apart, or all equal, within margin "
            f"{margin}. Lower margin, or take scores with fewer ties."
        )
    flipped = np.flatnonzero((rng.random(n) < flip) & ~equal)
    kept = rng.integers(3, size=len(flipped))[:, None]  # the role that stays
    one, two = (kept + 1) % 3, (kept + 2) % 3
    rows = flipped[:, None]
    found[rows, one], found[rows, two] = found[rows, two], found[rows, one]
    return Triplets(found[:, 0], found[:, 1], found[:, 2], np.where(equal, "equal", "contrastive"))


def _numbers(owner: str, name: str, values: Any) -> np.ndarray:
    numbers = np.asarray(values)
    if numbers.ndim != 1 or (len(numbers) and numbers.dtype.kind not in "iu"):
        raise InvalidData(f"{owner}: {name} must be (N,) whole numbers of videos, not {numbers.dtype} {numbers.shape}.")
    return numbers.astype(np.int64)


def _require_known(what: str, videos: np.ndarray, count: int) -> None:
    unknown = (videos < 0) | (videos >= count)
    if unknown.any():
        row, role = np.argwhere(unknown)[0]
        raise InvalidData(
            f"{what.capitalize()} {row} names video {videos[row, role]}, but of {count} the last is {count - 1}: "
            "are the labels of other videos?"
        )
