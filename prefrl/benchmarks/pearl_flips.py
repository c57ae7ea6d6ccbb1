"""Rewards learned from wrong labels: by chance (flipped), or with structure (transferred from another task).

Which learner loses least when labels are wrong, and nothing when they are not (arXiv 2306.03615 asks for a Gaussian
reward; bounded losses are of arXiv 1712.09482 and 1805.07836). Accuracy is that of all clean pairs of trajectories that
no learner has seen.

Axes: n trajectories, T steps, P pairs, R seeds, M tasks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from prefrl.benchmarks.findings import Finding, Progress, at_least, at_most
from prefrl.benchmarks.pearl_data import Pair, Store, parse_pairs, returns_of, true_labels
from prefrl.benchmarks.pearl_transfer import Geometry, mean_over, share_right
from prefrl.core import Comparisons, SegmentBatch
from prefrl.errors import ConfigError
from prefrl.transfer import align

__all__ = ["measure_flips"]

Array = np.ndarray
Learners = Mapping[str, Mapping[str, Callable[..., Any]]]
TRANSFERRED = "transferred"


def measure_flips(
    store: Store, show: Progress, *, pairs: Sequence[str], geometry: Geometry, align_with: Mapping[str, Any],
    flips: Sequence[float], comparisons: int, learners: Learners, plain: str, robust: str, every: int,
    bars: Mapping[str, float], seeds: Sequence[int],
) -> list[Finding]:  # fmt: skip
    """Row 9: each learner at each share of flipped labels, and with labels transferred from the pair's source.

    pairs: whose targets are learned · plain, robust: names of the two learners that are compared
    every: steps between those that learners see
    """
    for name in (plain, robust):
        if name not in learners:
            raise ConfigError(f"bench pearl: there is no learner {name!r} in row 9: {', '.join(learners)}.")
    found: dict[tuple[str, str], list[float]] = {}
    tasks, done = parse_pairs(pairs), 0
    for seed in seeds:
        for pair in tasks:
            test, train = geometry.draw(store, Pair(pair.target, pair.target), windows=False, seed=seed)
            labelled = _labelled(store, pair, train, geometry, align_with, flips, comparisons, seed)
            for noise, asked in labelled.items():
                for name, parts in learners.items():
                    accuracy = _learn(parts, train, test, asked, every=every, seed=seed)
                    found.setdefault((noise, name), []).append(accuracy)
            done += 1
            show(done, len(seeds) * len(tasks))
    tables = {key: np.reshape(values, (len(seeds), len(tasks))) for key, values in found.items()}
    return _findings(tables, comparisons, plain, robust, bars, seeds)


def _findings(
    tables: Mapping[tuple[str, str], Array], comparisons: int, plain: str, robust: str, bars: Mapping[str, float],
    seeds: Sequence[int],
) -> list[Finding]:  # fmt: skip
    more: dict[str, Any] = {"seeds": tuple(seeds)}
    rows = []
    for (noise, name), table in tables.items():
        what = f"{name}: accuracy of a reward of {comparisons} labels, {noise}"
        rows.append(at_least(f"9.{noise}.{name}".replace(" % flipped", ""), what, mean_over(table), **more))
    for noise in dict.fromkeys(noise for noise, _ in tables):
        id, gain = f"9.{noise}".replace(" % flipped", ""), tables[noise, robust] - tables[noise, plain]
        if noise == "0 % flipped":
            lost = f"{plain} minus {robust}, {noise}"
            rows.append(at_most(f"{id}.lost", lost, mean_over(-gain), bars["lost"], **more))
        else:
            bar = bars["gain"] if noise == "20 % flipped" else None
            rows.append(at_least(f"{id}.gain", f"{robust} minus {plain}, {noise}", mean_over(gain), bar, **more))
    return rows


def _labelled(
    store: Store, pair: Pair, train: SegmentBatch, geometry: Geometry, align_with: Mapping[str, Any],
    flips: Sequence[float], count: int, seed: int,
) -> dict[str, tuple[Array, Array, Array]]:  # fmt: skip
    """Noise → first (P,), second (P,), p_first (P,): the same pairs under each noise, of one draw of flips."""
    rng = np.random.default_rng([seed, 9])
    upper = np.stack(np.triu_indices(len(returns_of(train)), 1))
    first, second = upper[:, rng.permutation(upper.shape[1])[:count]]
    truth = true_labels(returns_of(train))[first, second]
    luck = rng.random(len(first))
    labels = {f"{share:.0%} flipped".replace("%", " %"): np.where(luck < share, 1 - truth, truth) for share in flips}
    source, _ = geometry.draw(store, pair, windows=False, seed=seed)
    x, y = geometry.read(source), geometry.read(train)
    moved = align(
        x.positions, y.positions, true_labels(returns_of(source)),
        **align_with, source_summaries=x.summaries, target_summaries=y.summaries,
    )  # fmt: skip
    labels[TRANSFERRED] = np.nan_to_num(moved.labels, nan=0.5)[first, second].round()
    return {noise: (first, second, p_first) for noise, p_first in labels.items()}


def _learn(
    parts: Mapping[str, Callable[..., Any]], train: SegmentBatch, test: SegmentBatch,
    asked: tuple[Array, Array, Array], *, every: int, seed: int,
) -> float:  # fmt: skip
    """Accuracy on all pairs of ``test``."""
    segments, (first, second, p_first) = _thinned(train, every), asked
    observations, actions = segments.observations[:, :-1], segments.actions
    score = parts["score"](observations=observations, actions=actions, seed=seed)
    answers = Comparisons(segments[first], segments[second], torch.as_tensor(p_first, dtype=torch.float32))
    parts["fit"](score, answers, seed=seed)
    with torch.no_grad():
        judged = score(_thinned(test, every)).mean(0).numpy()
    return share_right(true_labels(judged), true_labels(returns_of(test)))


def _thinned(items: SegmentBatch, every: int) -> SegmentBatch:
    """Every so many steps of whole trajectories, and the end state; without true rewards."""
    steps = items.actions.shape[1] // every * every
    return SegmentBatch(
        observations=items.observations[:, : steps + 1 : every],
        actions=items.actions[:, :steps:every],
        mask=items.mask[:, :steps:every],
    )
