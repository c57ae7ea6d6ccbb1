"""Asking: a query picks pairs of segments, a teacher answers them, the answers become a preference table."""

from __future__ import annotations

import json
import time

import numpy as np

from prefrl.data.dataset import Episodes
from prefrl.data.preferences import Preferences
from prefrl.errors import InvalidData
from prefrl.protocols import Query, Teacher

__all__ = ["answer_generator", "label"]


def answer_generator(seed: int, answered: int) -> np.random.Generator:
    """The generator for a dataset that holds ``answered`` answers: the same seed asks for other pairs each time.

    >>> first, again, later = (answer_generator(0, answered).integers(1000) for answered in (0, 0, 50))
    >>> bool(first == again), bool(first == later)
    (True, False)
    """
    return np.random.default_rng([seed, answered])


def label(
    episodes: Episodes,
    *,
    teacher: Teacher,
    query: Query,
    comparisons: int,
    segment_length: int,
    rng: np.random.Generator,
    rater: int = 0,
) -> Preferences:
    """``comparisons`` answered pairs of ``segment_length`` steps; pairs that the teacher skips are asked anew.

    Raises ``InvalidData`` when the teacher skips nearly everything (after 20 rounds).
    """
    if comparisons < 1 or segment_length < 1:
        raise InvalidData(f"comparisons and segment_length must be >= 1, but are {comparisons} and {segment_length}.")
    teacher = teacher.calibrated(float(episodes.true_reward.mean()))
    answered: list[Preferences] = []
    missing = comparisons
    for _ in range(20):
        first, second = query(episodes.lengths, missing, segment_length, rng)
        p_first = teacher.answer(episodes.segments(first), episodes.segments(second), rng)
        kept = np.flatnonzero(~np.isnan(p_first))
        answered.append(
            Preferences(
                first=first[kept],
                second=second[kept],
                p_first=p_first[kept],
                rater=np.full(len(kept), rater),
                teacher=(json.dumps(teacher.parameters()),) * len(kept),
                time=np.full(len(kept), time.time()),
            )
        )
        missing -= len(kept)
        if missing == 0:
            return Preferences.concat(answered)
    raise InvalidData(
        f"The teacher skipped too often: {missing} of {comparisons} comparisons unanswered after 20 rounds. "
        "Lower teacher.skip, or set teacher.ties=true where ties are skipped."
    )
