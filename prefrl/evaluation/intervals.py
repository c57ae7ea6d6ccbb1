"""Statistics of runs: interquartile mean and friends with stratified bootstrap intervals.

Agarwal et al. 2021, arXiv 2108.13264 ("Deep RL at the edge of the statistical precipice"), with the
semantics of their library rliable, written on whole arrays: a statistic takes (..., R, M) scores of R runs
on M tasks and gives (...), so that all bootstrap repetitions are one call.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from prefrl.core import require_finite
from prefrl.errors import InvalidData

__all__ = [
    "Estimate",
    "Statistic",
    "improvement_interval",
    "iqm",
    "mean",
    "median",
    "nested_bootstrap",
    "optimality_gap",
    "paired_difference",
    "performance_profile",
    "probability_of_improvement",
    "stratified_bootstrap",
    "success_interval",
]

Statistic = Callable[[np.ndarray], np.ndarray]  # (..., R, M) -> (...) or (..., K)
CHUNK = 2**16  # resampled scores held at once: 0.5 MB stays in a core's cache


@dataclass(frozen=True)
class Estimate:
    """A statistic and its percentile interval; floats, or (K,) arrays where the statistic has K values."""

    value: Any
    low: Any
    high: Any


def mean(scores: np.ndarray) -> np.ndarray:
    """(..., R, M) -> (...): mean over tasks of the mean over runs."""
    return np.asarray(scores, dtype=np.float64).mean((-2, -1))


def median(scores: np.ndarray) -> np.ndarray:
    """(..., R, M) -> (...): median over tasks of the mean over runs."""
    return np.median(np.asarray(scores, dtype=np.float64).mean(-2), axis=-1)


def iqm(scores: np.ndarray) -> np.ndarray:
    """(..., R, M) -> (...): interquartile mean, of the middle half of all R·M scores.

    As in rliable, ⌊R·M / 4⌋ scores are cut at each end (arXiv 2108.13264, §4.3).

    >>> float(iqm(np.array([[0.0], [1.0], [3.0], [100.0]])))
    2.0
    """
    scores = np.asarray(scores, dtype=np.float64)
    flat = scores.reshape(*scores.shape[:-2], -1)  # (..., R·M)
    n = flat.shape[-1]
    cut = n // 4
    return np.sort(flat, axis=-1)[..., cut : n - cut].mean(-1)  # sort: its kernel is faster than partition's


def optimality_gap(scores: np.ndarray, *, gamma: float = 1.0) -> np.ndarray:
    """(..., R, M) -> (...): γ − mean(min(score, γ)), how far runs stay below the desired score γ (§4.3).

    >>> round(float(optimality_gap(np.array([[0.2], [5.0]]))), 3)
    0.4
    """
    return gamma - mean(np.minimum(scores, gamma))


def performance_profile(scores: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """(..., R, M), (K,) -> (..., K): fraction of runs that score above each threshold (§4.2, equation 1).

    >>> performance_profile(np.array([[0.1], [0.5]]), np.array([0.0, 0.1, 0.5]))
    array([1. , 0.5, 0. ])
    """
    return np.stack([(scores > threshold).mean((-2, -1)) for threshold in thresholds], axis=-1)


def probability_of_improvement(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """(..., R, M), (..., S, M) -> (...): mean over tasks of P(first > second) + ½ P(equal).

    Over all R·S pairs of runs: the Mann–Whitney U statistic, scaled to [0, 1] (§4.3).

    >>> float(probability_of_improvement(np.array([[1.0], [0.0]]), np.array([[0.0]])))
    0.75
    """
    first, second = np.asarray(first), np.asarray(second)
    difference = np.sign(first[..., :, None, :] - second[..., None, :, :])  # (..., R, S, M)
    return 0.5 + 0.5 * difference.mean((-3, -2, -1))


def stratified_bootstrap(
    scores: np.ndarray,
    statistic: Statistic,
    *,
    repetitions: int = 2000,
    confidence: float = 0.95,
    rng: np.random.Generator,
) -> Estimate:
    """``statistic`` of (R, M) scores with its percentile bootstrap interval.

    Tasks are strata: every repetition has all M tasks, each with R runs drawn with replacement (§4.1).

    >>> estimate = stratified_bootstrap(np.full((5, 2), 0.5), iqm, rng=np.random.default_rng(0))
    >>> estimate.value, estimate.low, estimate.high
    (0.5, 0.5, 0.5)
    """
    scores = _checked(scores)
    samples = [statistic(_resample(scores, n, rng)) for n in _chunks(repetitions, scores.size)]
    return _percentile(statistic(scores), np.concatenate(samples), confidence)


def improvement_interval(
    first: np.ndarray,
    second: np.ndarray,
    *,
    repetitions: int = 2000,
    confidence: float = 0.95,
    rng: np.random.Generator,
) -> Estimate:
    """``probability_of_improvement`` of (R, M) over (S, M) scores, each resampled within tasks."""
    first, second = _checked(first), _checked(second)
    if first.shape[1] != second.shape[1]:
        raise InvalidData(f"Both must have the same tasks, but have {first.shape[1]} and {second.shape[1]} columns.")
    samples = [
        probability_of_improvement(_resample(first, n, rng), _resample(second, n, rng))
        for n in _chunks(repetitions, first.size * len(second))
    ]
    return _percentile(probability_of_improvement(first, second), np.concatenate(samples), confidence)


def success_interval(
    successes: np.ndarray, *, repetitions: int = 2000, confidence: float = 0.95, rng: np.random.Generator
) -> Estimate:
    """Success rate of one policy's (E,) episodes with its bootstrap interval.

    Resampling E yes/no answers is drawing from Binomial(E, rate). Where all episodes agree, the bootstrap
    has no width and would claim certainty; there the exact bound takes its place (Clopper and Pearson
    1934): 20 of 20 is [0.83, 1].

    >>> success_interval(np.ones(20, bool), rng=np.random.default_rng(0)).low.__round__(2)
    0.83
    """
    successes = _checked(np.asarray(successes, dtype=np.float64)[:, None])
    if not ((successes == 0) | (successes == 1)).all():
        raise InvalidData("successes must be yes/no per episode (0 or 1).")
    episodes, rate = len(successes), float(successes.mean())
    if rate in (0.0, 1.0):
        bound = (0.5 - confidence / 2) ** (1 / episodes)
        return Estimate(rate, min(rate, bound), max(rate, 1 - bound))
    return _percentile(np.float64(rate), rng.binomial(episodes, rate, repetitions) / episodes, confidence)


def paired_difference(
    first: np.ndarray,
    second: np.ndarray,
    *,
    repetitions: int = 2000,
    confidence: float = 0.95,
    rng: np.random.Generator,
) -> Estimate:
    """Mean of first − second over (E,) episodes with the same seeds, with its interval.

    Pairs are resampled together. What both find hard cancels, so the interval is narrower than that of two
    independent samples.

    Yes/no outcomes whose differences are all equal give the bootstrap no width; there the bound is exact. Let
    [l, u] be ``success_interval`` of the share of pairs that differ. If none does, the difference is within
    ±u. If all do, and the same way, as many as 1 − l of all pairs may go the other way: l − (1 − l) is the
    lower end.

    >>> paired_difference(np.array([1.0, 2.0]), np.array([0.0, 1.0]), rng=np.random.default_rng(0)).value
    1.0
    """
    first, second = (np.asarray(x, dtype=np.float64) for x in (first, second))
    if first.shape != second.shape or first.ndim != 1:
        raise InvalidData(f"Pairs need two equal shapes (E,), but have {first.shape} and {second.shape}.")
    difference = first - second
    yes_no = bool(np.isin([first, second], (0, 1)).all())
    if yes_no and len(difference) and np.ptp(difference) == 0:
        value = float(difference[0])
        share = success_interval(np.abs(difference), confidence=confidence, rng=rng)  # of the pairs that differ
        most, least = float(share.high), 2 * float(share.low) - 1
        low, high = {0.0: (-most, most), 1.0: (least, 1.0), -1.0: (-1.0, -least)}[value]
        return Estimate(value, low, high)
    return stratified_bootstrap(difference[:, None], mean, repetitions=repetitions, confidence=confidence, rng=rng)


def nested_bootstrap(
    values: np.ndarray, *, repetitions: int = 2000, confidence: float = 0.95, rng: np.random.Generator
) -> Estimate:
    """Mean of (S seeds, E episodes) with its percentile interval, over training seeds and episodes at once.

    Two levels (Davison and Hinkley 1997, "Bootstrap methods and their application", §3.8): S seeds are drawn
    with replacement, then E episodes within each. Episodes of one seed share a policy, so resampling all
    S·E as if they were independent would give an interval that is too narrow. Equal values have no width.

    >>> estimate = nested_bootstrap(np.array([[1.0, 1.0], [0.0, 0.0]]), rng=np.random.default_rng(0))
    >>> estimate.value, estimate.low, estimate.high
    (0.5, 0.0, 1.0)
    """
    if repetitions < 1:
        raise ValueError(f"repetitions must be >= 1, but is {repetitions}.")
    values = _checked(values, "S seeds, E episodes")
    S, E = values.shape
    seeds = rng.integers(S, size=(repetitions, S, 1))
    episodes = rng.integers(E, size=(repetitions, S, E))
    return _percentile(np.float64(values.mean()), values[seeds, episodes].mean((1, 2)), confidence)


def _checked(scores: np.ndarray, shape: str = "R runs, M tasks") -> np.ndarray:
    scores = np.asarray(scores, dtype=np.float64)
    if scores.ndim != 2 or scores.size == 0:
        raise InvalidData(f"scores must be ({shape}) with at least one of each, but are {scores.shape}.")
    require_finite("scores", scores)
    return scores


def _chunks(repetitions: int, size: int) -> list[int]:
    """``repetitions`` in parts that fit in memory when one has ``size`` scores."""
    if repetitions < 1:
        raise ValueError(f"repetitions must be >= 1, but is {repetitions}.")
    part = max(1, CHUNK // size)
    return [min(part, repetitions - start) for start in range(0, repetitions, part)]


def _resample(scores: np.ndarray, repetitions: int, rng: np.random.Generator) -> np.ndarray:
    """(R, M) -> (repetitions, R, M): within each task, R runs drawn with replacement."""
    runs, tasks = scores.shape
    drawn = rng.integers(runs, size=(repetitions, runs, tasks))
    return scores.ravel().take(drawn * tasks + np.arange(tasks))


def _percentile(value: np.ndarray | np.float64, samples: np.ndarray, confidence: float) -> Estimate:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be in (0, 1), but is {confidence}.")
    low, high = np.quantile(samples, [0.5 - confidence / 2, 0.5 + confidence / 2], axis=0)
    if np.ndim(value) == 0:
        return Estimate(float(value), float(low), float(high))
    return Estimate(np.asarray(value), low, high)
