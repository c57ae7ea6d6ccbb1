"""Which pairs of segments to ask for: uniformly at random, as in Christiano et al. 2017, arXiv 1706.03741, or episodes.

Pure index arithmetic: all places where a segment fits are numbered, two different numbers are drawn, and the
numbers are turned back into (episode, start).
"""

from __future__ import annotations

import numpy as np

from prefrl.core import SegmentRefs
from prefrl.errors import InvalidData

__all__ = ["UniformQuery", "WholeEpisodes", "num_segments", "segment_at"]


def num_segments(lengths: np.ndarray, segment_length: int) -> np.ndarray:
    """(E,) int64: how many segments of ``segment_length`` steps fit into each episode of ``lengths`` (E,).

    >>> num_segments(np.array([3, 5, 2]), 3)
    array([1, 3, 0])
    """
    return np.maximum(np.asarray(lengths, dtype=np.int64) - segment_length + 1, 0)


def segment_at(number: np.ndarray, lengths: np.ndarray, segment_length: int) -> SegmentRefs:
    """The segments with these numbers (B,), when all that fit are numbered episode by episode.

    >>> refs = segment_at(np.array([0, 1, 3]), np.array([3, 5]), 3)
    >>> refs.episode.tolist(), refs.start.tolist()
    ([0, 1, 1], [0, 0, 2])
    """
    ends = np.cumsum(num_segments(lengths, segment_length))
    episode = np.searchsorted(ends, number, side="right")
    start = number - np.concatenate([[0], ends])[episode]
    return SegmentRefs(episode, start, np.full(len(number), segment_length))


class UniformQuery:
    """Uniform over all ordered pairs of two different segments; every start that fits can be drawn."""

    def __call__(
        self, lengths: np.ndarray, n: int, segment_length: int, rng: np.random.Generator
    ) -> tuple[SegmentRefs, SegmentRefs]:
        """n pairs from episodes of ``lengths`` (E,) steps; equal generators give equal pairs."""
        if segment_length < 1 or n < 0:
            raise InvalidData(f"segment_length must be >= 1 and n >= 0, but they are {segment_length} and {n}.")
        total = int(num_segments(lengths, segment_length).sum())
        if total < 2:
            raise InvalidData(
                f"There are {total} segments of {segment_length} steps in episodes of at most "
                f"{int(np.max(lengths, initial=0))} steps, but a comparison needs two. Lower segment_length."
            )
        first = rng.integers(total, size=n)
        second = (first + rng.integers(1, total, size=n)) % total  # any number but the first one's, all alike likely
        return segment_at(first, lengths, segment_length), segment_at(second, lengths, segment_length)


class WholeEpisodes:
    """Uniform over all ordered pairs of two different episodes, each from its beginning.

    An episode that a terminal state ended early is a shorter segment, which :class:`UniformQuery` would never draw.
    For grid worlds that is where goals are reached (Knox et al. 2022, arXiv 2206.02231).
    """

    def __call__(
        self, lengths: np.ndarray, n: int, segment_length: int, rng: np.random.Generator
    ) -> tuple[SegmentRefs, SegmentRefs]:
        """n pairs of segments of up to ``segment_length`` steps from episodes of ``lengths`` (E,)."""
        E = len(lengths)
        if segment_length < 1 or n < 0 or E < 2:
            raise InvalidData(
                f"segment_length must be >= 1, n >= 0 and there must be 2 episodes, but they are {segment_length}, {n} "
                f"and {E}."
            )
        first = rng.integers(E, size=n)
        second = (first + rng.integers(1, E, size=n)) % E
        start, steps = np.zeros(n), np.minimum(lengths, segment_length)
        return SegmentRefs(first, start, steps[first]), SegmentRefs(second, start, steps[second])
