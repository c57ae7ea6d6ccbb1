"""Rankings of three: all pairs of three whole episodes, as RAPL asks for (Tian et al. 2024, arXiv 2310.07932).

A ranking of three says as much as its three pairs, so that methods of pairs and methods of rankings learn from the same
answers, and answers are counted in one currency. Which three go together is found again from the answers alone:
:func:`prefrl.data.triplets.triplets_of`.
"""

from __future__ import annotations

import numpy as np

from prefrl.core import SegmentRefs
from prefrl.data.dataset import Episodes
from prefrl.data.query import RefPairs, WholeEpisodes
from prefrl.errors import InvalidData
from prefrl.protocols import Score

__all__ = ["TripletQuery"]


class TripletQuery(WholeEpisodes):
    """Uniform over triplets of different episodes without a common one, as long as there are enough episodes."""

    def __call__(
        self,
        lengths: np.ndarray,
        n: int,
        segment_length: int,
        rng: np.random.Generator,
        *,
        episodes: Episodes | None = None,
        score: Score | None = None,
        labelled: RefPairs | None = None,
    ) -> RefPairs:
        """n pairs, a multiple of 3 for whole triplets, of episodes of ``lengths`` (E,), each cut at segment_length.

        Pairs (a, b), (a, c), (b, c) of a triplet follow each other.

        labelled: what was asked already, maybe nothing: then no triplet has a pair that was asked before. None: draws
        are independent. episodes and score are not used.

        >>> first, second = TripletQuery()(np.array([5, 5, 5]), 3, 5, np.random.default_rng(0))
        >>> sorted(sorted(pair) for pair in zip(first.episode.tolist(), second.episode.tolist()))
        [[0, 1], [0, 2], [1, 2]]
        """
        E = len(lengths)
        if segment_length < 1 or n < 0 or E < 3:
            raise InvalidData(
                f"segment_length must be >= 1, n >= 0 and there must be 3 episodes, but they are {segment_length}, {n} "
                f"and {E}."
            )
        pairs = self._draw(E, n, rng, labelled)
        steps = np.minimum(lengths, segment_length)
        first, second = (SegmentRefs(side, np.zeros(n), steps[side]) for side in pairs.T)
        return first, second

    def _draw(self, E: int, n: int, rng: np.random.Generator, labelled: RefPairs | None) -> np.ndarray:
        """(n, 2) episodes, from shuffled decks: no episode is in two triplets of a deck."""
        asked = (
            set()
            if labelled is None
            else {frozenset(pair) for pair in zip(*(side.episode.tolist() for side in labelled), strict=True)}
        )
        pairs: list[list[int]] = []
        for _ in range(1000 + n):
            for a, b, c in rng.permutation(E)[: E // 3 * 3].reshape(-1, 3).tolist():
                three = [[a, b], [a, c], [b, c]]
                if labelled is not None and asked & {frozenset(pair) for pair in three}:
                    continue
                asked |= {frozenset(pair) for pair in three}
                pairs += three
            if len(pairs) >= n:
                return np.array(pairs[:n], dtype=np.int64).reshape(n, 2)
        raise InvalidData(
            f"Only {len(pairs)} of {n} pairs were found in triplets of {E} episodes of which no pair was asked before. "
            "Ask for fewer, or collect more episodes."
        )
