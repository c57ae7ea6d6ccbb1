"""Asking: a query picks pairs of segments, a teacher answers them, the answers become a preference table."""

from __future__ import annotations

import json
import time
from collections import Counter

import numpy as np

from prefrl.data.dataset import Episodes
from prefrl.data.preferences import Preferences
from prefrl.errors import InvalidData
from prefrl.protocols import Query, Teacher

__all__ = ["answer_generator", "in_words", "label", "who_answered"]


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
    known: Preferences | None = None,
) -> Preferences:
    """``comparisons`` answered pairs of ``segment_length`` steps; pairs that the teacher skips are asked anew.

    The rater number is the teacher's own where ``known`` answers hold one for it, else the next that is free there.
    Raises ``InvalidData`` when the teacher skips nearly everything (after 20 rounds).
    """
    if comparisons < 1 or segment_length < 1:
        raise InvalidData(f"comparisons and segment_length must be >= 1, but are {comparisons} and {segment_length}.")
    teacher = teacher.calibrated(float(episodes.true_reward.mean()))
    told = json.dumps(teacher.parameters())
    rater = _rater(told, known)
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
                teacher=(told,) * len(kept),
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


def _rater(told: str, known: Preferences | None) -> int:
    """The number of the teacher that says ``told`` of itself, among those of ``known`` answers."""
    if known is None or len(known) == 0:
        return 0
    own = {text for text in set(known.teacher) if json.loads(text) == json.loads(told)}
    raters = [int(rater) for rater, text in zip(known.rater, known.teacher, strict=True) if text in own]
    return raters[0] if raters else int(known.rater.max()) + 1


def who_answered(answers: Preferences) -> dict[str, int]:
    """Teacher in words → how many of the answers are its own.

    >>> from prefrl.core import SegmentRefs
    >>> refs, told = SegmentRefs([0, 0], [0, 1], [1, 1]), ('{"name": "people", "file": null}',) * 2
    >>> who_answered(Preferences(refs, refs, p_first=[0, 1], rater=[0, 1], teacher=told, time=[0, 0]))
    {'name people': 2}
    """
    return dict(Counter(in_words(text) for text in answers.teacher))


def in_words(teacher: str) -> str:
    """The plain values of a teacher's JSON, but for its sign convention."""
    told = {key: value for key, value in json.loads(teacher).items() if type(value) in (str, int, float, bool)}
    return ", ".join(f"{key} {value}" for key, value in told.items() if key != "sign")
