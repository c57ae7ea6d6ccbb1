"""Rankings of three, found again in a table of answers about pairs (RAPL, arXiv 2310.07932).

A person, or a teacher, answers pairs; :class:`prefrl.queries.triplets.TripletQuery` asks for all three of a triplet.
"""

from __future__ import annotations

import numpy as np

from prefrl.data.preferences import Preferences
from prefrl.data.triplets import Triplets, VideoPairs

__all__ = ["triplets_of"]


def triplets_of(answers: Preferences) -> tuple[Triplets, VideoPairs]:
    """Rankings that three answers in a row give, and the other answers as pairs; videos are numbered as episodes.

    Three answers about three episodes are a triplet where they agree on an order, or are three ties. Where they
    contradict each other, or say that only two are equal, they stay three pairs, so that no answer is lost.
    """
    first, second, p_first = answers.first.episode, answers.second.episode, answers.p_first
    rankings: list[tuple[list[int], str]] = []
    single: list[int] = []
    at = 0
    while at < len(answers):
        rows = np.arange(at, min(at + 3, len(answers)))
        ranking = _ranking(first[rows], second[rows], p_first[rows])
        if ranking is None:
            single.append(at)
            at += 1
        else:
            rankings.append(ranking)
            at += 3
    videos = np.array([order for order, _ in rankings], dtype=np.int64).reshape(-1, 3)
    kind = np.array([kind for _, kind in rankings], dtype=np.str_)
    rest = np.array(single, dtype=np.int64)
    return Triplets(videos[:, 0], videos[:, 1], videos[:, 2], kind), VideoPairs(
        first[rest], second[rest], p_first[rest]
    )


def _ranking(first: np.ndarray, second: np.ndarray, p_first: np.ndarray) -> tuple[list[int], str] | None:
    """Best first, and "contrastive" or "equal"; None where these are not three answers of one order."""
    pairs = {frozenset((int(a), int(b))) for a, b in zip(first, second, strict=True)}
    videos = np.unique(np.concatenate([first, second]))
    if len(first) < 3 or len(videos) != 3 or len(pairs) != 3:
        return None
    if (p_first == 0.5).all():
        return videos.tolist(), "equal"
    wins = [int(((first == v) & (p_first > 0.5)).sum() + ((second == v) & (p_first < 0.5)).sum()) for v in videos]
    if sorted(wins) != [0, 1, 2]:
        return None
    return [int(videos[wins.index(n)]) for n in (2, 1, 0)], "contrastive"
