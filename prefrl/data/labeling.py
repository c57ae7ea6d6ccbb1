"""Asking: a query picks pairs of segments, a teacher answers them, the answers become a preference table.

The steps "query" and "label" of Christiano et al. 2017, arXiv 1706.03741, for one teacher and for several raters.
"""

from __future__ import annotations

import itertools
import json
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from prefrl.core import SegmentBatch, SegmentRefs
from prefrl.data.dataset import Episodes
from prefrl.data.preferences import Preferences
from prefrl.errors import InvalidData
from prefrl.protocols import Query, Teacher

__all__ = ["answer_as", "answer_generator", "in_words", "label", "who_answered"]

STATE = ("reward_per_step", "session", "answered")  # what a rater was told, not who it is


def answer_generator(seed: int, answered: int) -> np.random.Generator:
    """The generator for a dataset that holds ``answered`` answers: the same seed asks for other pairs each time.

    >>> first, again, later = (answer_generator(0, answered).integers(1000) for answered in (0, 0, 50))
    >>> bool(first == again), bool(first == later)
    (True, False)
    """
    return np.random.default_rng([seed, answered])


def answer_as(
    raters: Sequence[Any], who: np.ndarray, first: SegmentBatch, second: SegmentBatch, rng: np.random.Generator
) -> np.ndarray:
    """(N,) float64 p_first, pair n answered by teacher ``raters[who[n]]``; NaN where it skips.

    One seed per rater is drawn, so that what one rater answers does not depend on how many pairs another was asked.
    A single rater is asked with ``rng`` itself.
    """
    if len(raters) == 1:
        return np.asarray(raters[0].answer(first, second, rng))
    seeds = rng.integers(2**63, size=len(raters))
    p_first = np.full(len(who), np.nan)
    for k in np.unique(who):
        rows = np.flatnonzero(who == k)
        p_first[rows] = raters[k].answer(first[rows], second[rows], np.random.default_rng(int(seeds[k])))
    return p_first


def label(
    episodes: Episodes,
    *,
    teacher: Teacher,
    query: Query,
    comparisons: int,
    segment_length: int,
    rng: np.random.Generator,
    known: Preferences | None = None,
    session: int = 0,
    last_episodes: int | None = None,
    ask_again: bool = True,
) -> Preferences:
    """``comparisons`` answered pairs of ``segment_length`` steps; pairs that the teacher skips are asked anew.

    Without ``ask_again`` what is skipped counts as asked, as in B-Pref's code, and there are fewer answers, or none.

    A teacher that has ``raters``, as a population, is asked as these: ``assign`` says who answers which pair. Each
    answer holds the session, and the number and the parameters of its own rater: the number of its earlier answers
    among ``known``, else the smallest free one from the rater's place in the population on.

    A rater's thresholds refer to the rewards of all episodes, or of so many ``last_episodes`` (10 in B-Pref's code,
    arXiv 2111.03026, which asks in sessions 0, 1, … as the data grow); what it has answered before is counted in
    ``known``. Nothing is remembered elsewhere. Raises ``InvalidData`` if nearly all is skipped (after 20 rounds).
    """
    if comparisons < 1 or segment_length < 1:
        raise InvalidData(f"comparisons and segment_length must be >= 1, but are {comparisons} and {segment_length}.")
    raters: list[Any] = list(getattr(teacher, "raters", (teacher,)))
    recent = _recent(episodes, last_episodes)
    scales = [_step_scale(rater, recent) for rater in raters]
    numbers, counts = _numbers(raters, known)
    answered: list[Preferences] = []
    missing = comparisons
    for _ in range(20 if ask_again else 1):
        told = [
            rater.calibrated(scale, session=session, answered=int(count))
            for rater, scale, count in zip(raters, scales, counts, strict=True)
        ]
        texts = [json.dumps({**rater.parameters(), "session": session}) for rater in told]
        first, second = query(episodes.lengths, missing, segment_length, rng)
        who = teacher.assign(len(first), rng) if hasattr(teacher, "assign") else np.zeros(len(first), dtype=np.int64)
        p_first = answer_as(told, who, episodes.segments(first), episodes.segments(second), rng)
        kept = np.flatnonzero(~np.isnan(p_first))
        answered.append(
            Preferences(
                first=first[kept],
                second=second[kept],
                p_first=p_first[kept],
                rater=numbers[who[kept]],
                teacher=tuple(texts[k] for k in who[kept]),
                time=np.full(len(kept), time.time()),
            )
        )
        counts = counts + np.bincount(who[kept], minlength=len(raters))
        missing -= len(kept)
        if missing == 0 or not ask_again:
            return Preferences.concat(answered)
    raise InvalidData(
        f"The teacher skipped too often: {missing} of {comparisons} comparisons unanswered after 20 rounds. "
        "Lower teacher.skip, or set teacher.ties=true where ties are skipped."
    )


def _recent(episodes: Episodes, last: int | None) -> Episodes:
    """The last episodes; all if None."""
    if last is None:
        return episodes
    if last < 1:
        raise InvalidData(f"last_episodes must be >= 1, or None for all, but is {last}.")
    return episodes.select(np.arange(len(episodes))[-last:])


def _step_scale(rater: Any, episodes: Episodes) -> float:
    """The mean true reward of a step, or the mean size of what the rater compares in its place."""
    reward = getattr(rater, "reward", None)
    if reward is None:
        return float(episodes.true_reward.mean())
    whole, total = SegmentRefs(np.arange(len(episodes)), np.zeros(len(episodes)), episodes.lengths), 0.0
    for start in range(0, len(episodes), 64):  # 64 episodes at once are padded to the longest
        segments = episodes.segments(whole[start : start + 64])
        total += float((reward(segments).double().abs() * segments.mask).sum())
    return total / episodes.num_steps


def _numbers(raters: Sequence[Any], known: Preferences | None) -> tuple[np.ndarray, np.ndarray]:
    """(K,) int64 each: the raters' numbers, and how many of the ``known`` answers are their own."""
    held: dict[str, list[int]] = {}  # who -> numbers of its answers
    if known is not None:
        of = {text: _identity(json.loads(text)) for text in set(known.teacher)}
        for number, text in zip(known.rater.tolist(), known.teacher, strict=True):
            held.setdefault(of[text], []).append(number)
    taken = {number for numbers in held.values() for number in numbers}
    found = np.zeros((2, len(raters)), dtype=np.int64)
    for k, rater in enumerate(raters):
        own = held.get(_identity(json.loads(json.dumps(rater.parameters()))), [])
        number = own[0] if own else next(free for free in itertools.count(k) if free not in taken)
        taken.add(number)
        found[:, k] = number, len(own)
    return found[0], found[1]


def _identity(parameters: dict[str, Any]) -> str:
    """Parameters without the state that a rater was told: two answers are of one rater where these are equal."""
    return json.dumps({key: value for key, value in parameters.items() if key not in STATE}, sort_keys=True)


def who_answered(answers: Preferences) -> dict[str, int]:
    """Teacher in words → how many of the answers are its own.

    >>> from prefrl.core import SegmentRefs
    >>> refs, told = SegmentRefs([0, 0], [0, 1], [1, 1]), ('{"name": "people", "file": null}',) * 2
    >>> who_answered(Preferences(refs, refs, p_first=[0, 1], rater=[0, 1], teacher=told, time=[0, 0]))
    {'name people': 2}
    """
    return dict(Counter(in_words(text) for text in answers.teacher))


def in_words(teacher: str) -> str:
    """The plain values of a teacher's JSON, but for its sign convention and the state it answered in."""
    told = {key: value for key, value in json.loads(teacher).items() if type(value) in (str, int, float, bool)}
    return ", ".join(f"{key} {value}" for key, value in told.items() if key not in ("sign", *STATE))
