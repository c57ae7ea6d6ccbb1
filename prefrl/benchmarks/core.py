"""``prefrl bench core``: how fast the core is, as ratios to peers that are raced in the same minutes.

Each row runs peer and prefrl in turns, once a seed, with equal networks, batch sizes and numbers of epochs;
the value is the median ratio of their speeds, low and high are the extremes. A comparison is counted once on
both sides, however many members of the ensemble train on it. Both run on one thread and are timed by the
processor: that is wall-clock time on an idle machine, and still fair on a busy one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from prefrl.benchmarks.side_env import make_side, missing_side, run_side
from prefrl.core import Comparisons, SegmentBatch, Transitions
from prefrl.data.dataset import Episodes
from prefrl.data.query import UniformQuery
from prefrl.errors import ConfigError
from prefrl.progress import Bars, progress_bars
from prefrl.protocols import MakeLearner
from prefrl.scores import ReturnEnsemble
from prefrl.train.fit_score import fit_score
from prefrl.train.relabel import relabel

__all__ = ["Race", "races", "run"]

OBSERVATION, ACTION, SEGMENT, MEMBERS = 39, 4, 50, 3  # Meta-World's sizes, B-Pref's segments and ensemble
IMITATION = ("imitation", "imitation_rewards.py")


@dataclass(frozen=True)
class Race:
    """ours: seed -> our speed · side, script, arguments: how the peer runs · result: the key of its speed."""

    id: str
    what: str
    bar: float | None
    ours: Callable[[int], float]
    side: str
    script: str
    arguments: tuple[str, ...]
    result: str = "per_s"

    def ratio(self, seed: int, sides: Path) -> float:
        """How many times as fast we are, once; the peer runs first."""
        peer = run_side(self.side, sides, self.script, self.arguments)[self.result]
        with one_thread():
            return self.ours(seed) / peer


def run(
    *,
    iql: MakeLearner,
    seeds: int | Sequence[int] = 5,
    rows: Sequence[str] | None = None,
    make_sides: bool = False,
    sides: str = ".side",
) -> list[dict[str, Any]]:
    """Rows of the benchmark; ``skipped`` where a side environment is missing.

    iql: makes the learner that is raced with d3rlpy's IQL · seeds: how many turns each, or their seeds
    rows: ids (all if None) · make_sides: make missing side environments first · sides: their folder.
    """
    chosen = [race for race in races(iql) if rows is None or race.id in rows]
    if not chosen:
        raise ConfigError(f"bench core: rows must be of {', '.join(race.id for race in races(iql))}.")
    numbers = list(range(seeds)) if isinstance(seeds, int) else list(seeds)
    if not numbers:
        raise ConfigError("bench core: seeds must name at least one turn.")
    results = []
    with progress_bars() as bars:
        for race in chosen:
            if make_sides and missing_side(race.side, Path(sides)):
                make_side(race.side, Path(sides))
            results.append(_row(race, numbers, Path(sides), bars))
    return results


def _row(race: Race, seeds: list[int], sides: Path, show: Bars) -> dict[str, Any]:
    row: dict[str, Any] = {"id": race.id, "what": race.what, "value": None, "low": None, "high": None}
    reason = missing_side(race.side, sides)
    if reason:
        return {**row, "bar": race.bar, "holds": reason, "seeds": [], "seconds": None}
    begin, ratios = time.perf_counter(), []
    for seed in seeds:
        ratios.append(race.ratio(seed, sides))
        show(race.id, len(ratios), len(seeds))
    median = float(np.median(ratios))
    row |= {
        "value": median,
        "low": min(ratios),
        "high": max(ratios),
        "bar": race.bar,
        "holds": None if race.bar is None else median >= race.bar,
    }
    return {**row, "seeds": seeds, "seconds": time.perf_counter() - begin}


def races(iql: MakeLearner) -> list[Race]:
    """All rows."""
    small, large = (32, 32), (256, 256, 256)
    return [
        _reward_race("reward_32", small, pairs=256, bar=7.0),
        _reward_race("reward_256", large, pairs=64, bar=2.0),
        Race(
            "relabel",
            "relabeled steps/s, 3 nets of 256-256-256: prefrl / imitation",
            1.5,
            lambda seed: _relabel(large, 30_000, seed),
            *IMITATION,
            ("relabel", "--steps=30000", "--hidden", *map(str, large)),
        ),
        Race(
            "pairs",
            "sampled pairs of segments/s: prefrl (references, nothing is copied) / imitation (fragments)",
            50.0,
            lambda seed: _pairs(1000, seed, cut=False),
            *IMITATION,
            ("sample", "--pairs=1000"),
        ),
        Race(
            "pairs_cut",
            "as pairs, but ours are also cut out and copied into batches",
            None,
            lambda seed: _pairs(1000, seed, cut=True),
            *IMITATION,
            ("sample", "--pairs=1000"),
        ),
        Race(
            "iql",
            "IQL updates/s, 256-256, batch 256, with sampling: prefrl / d3rlpy",
            1.5,
            lambda seed: _iql(iql, 300, seed),
            "d3rlpy",
            "d3rlpy_iql.py",
            ("--updates=300", "--batch=256", "--transitions=30000"),
            "updates_per_cpu_s",
        ),
    ]


def _reward_race(id: str, hidden: tuple[int, ...], *, pairs: int, bar: float) -> Race:
    nets = "-".join(map(str, hidden))
    what = f"comparisons/s of reward training, 3 nets of {nets}, batch 32: prefrl / imitation"
    arguments = ("fit", f"--pairs={pairs}", "--epochs=5", "--hidden", *map(str, hidden))
    return Race(id, what, bar, lambda seed: _fit(hidden, pairs, 5, seed), *IMITATION, arguments)


def _fit(hidden: tuple[int, ...], pairs: int, epochs: int, seed: int) -> float:
    """Comparisons per second of a whole ``fit_score``, its final measurement of the fit included."""
    generator = torch.Generator().manual_seed(seed)
    first, second = (_segments(pairs, generator) for _ in range(2))
    comparisons = Comparisons(first, second, torch.randint(2, (pairs,), generator=generator).float())
    usual: dict[str, Any] = {"batch_size": 32, "holdout": 0.0, "bootstrap": True, "seed": seed}
    fit_score(_ensemble(hidden, seed), comparisons, epochs=1, **usual)  # warm up
    seconds = _seconds(lambda: fit_score(_ensemble(hidden, seed), comparisons, epochs=epochs, **usual))
    return pairs * epochs / seconds


def _relabel(hidden: tuple[int, ...], steps: int, seed: int) -> float:
    generator = torch.Generator().manual_seed(seed)
    observations = torch.randn(steps, OBSERVATION, generator=generator)
    actions = torch.rand(steps, ACTION, generator=generator)
    score = _ensemble(hidden, seed)
    relabel(score, observations[:8192], actions[:8192])  # warm up
    return steps / _seconds(lambda: relabel(score, observations, actions))


def _pairs(pairs: int, seed: int, *, cut: bool) -> float:
    """Pairs drawn per second, as references; with ``cut``, both segments of each are gathered too."""
    rng, episodes, query = np.random.default_rng(seed), _episodes(100, 150), UniformQuery()

    def sample() -> None:
        first, second = query(episodes.lengths, pairs, SEGMENT, rng)
        if cut:
            episodes.segments(first)
            episodes.segments(second)

    sample()  # warm up
    repeats = 10 if cut else 100

    def sample_repeatedly() -> None:
        for _ in range(repeats):
            sample()

    return repeats * pairs / _seconds(sample_repeatedly)


def _episodes(episodes: int, steps: int) -> Episodes:
    """Episodes of zeros, with the sizes of Meta-World."""
    rows = episodes * steps
    return Episodes(
        observations=np.zeros((rows + episodes, OBSERVATION), np.float32),
        actions=np.zeros((rows, ACTION), np.float32),
        true_reward=np.zeros(rows, np.float32),
        success=np.zeros(rows, bool),
        lengths=np.full(episodes, steps),
        terminated=np.zeros(episodes, bool),
        behavior=("zeros",) * episodes,
        seeds=np.zeros(episodes, np.int64),
        env={"id": "none"},
        fps=80.0,
    )


def _iql(make: MakeLearner, updates: int, seed: int, *, transitions: int = 30_000, batch_size: int = 256) -> float:
    generator = torch.Generator().manual_seed(seed)
    observations = torch.randn(transitions, OBSERVATION, generator=generator)
    actions = 2 * torch.rand(transitions, ACTION, generator=generator) - 1
    rewards = torch.randn(transitions, generator=generator)
    data = Transitions(observations, actions, rewards, observations.roll(-1, 0), torch.zeros(transitions))
    bound = np.ones(ACTION, dtype=np.float32)
    learner = make(data=data, action_low=-bound, action_high=bound, seed=seed)

    def learn(count: int) -> None:
        for _ in range(count):
            learner.update(data[torch.randint(transitions, (batch_size,), generator=generator)])

    learn(30)  # warm up
    return updates / _seconds(lambda: learn(updates))


def _ensemble(hidden: tuple[int, ...], seed: int) -> ReturnEnsemble:
    return ReturnEnsemble(observation_size=OBSERVATION, action_size=ACTION, members=MEMBERS, hidden=hidden, seed=seed)


def _segments(count: int, generator: torch.Generator) -> SegmentBatch:
    return SegmentBatch(
        torch.randn(count, SEGMENT + 1, OBSERVATION, generator=generator),
        2 * torch.rand(count, SEGMENT, ACTION, generator=generator) - 1,
        torch.ones(count, SEGMENT, dtype=torch.bool),
    )


def _seconds(work: Callable[[], object]) -> float:
    begin = time.process_time()
    work()
    return time.process_time() - begin


@contextmanager
def one_thread() -> Iterator[None]:
    """torch on one thread, as the peers run; the number of threads is put back."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
