"""Rows races of ``prefrl bench online``: the parts of online preference RL, raced with imitation 1.0.1 on one thread.

In each turn the peer runs in a side environment and then prefrl here, on equal work, which is asserted: both sides say
what they have done. Both are timed by the processor, after a warm-up and without imports; that is wall-clock time on an
idle machine, and still fair on a busy one. A row is the median of the turns' ratios of speeds, with its extremes.

| rows | what |
|---|---|
| reward_… | comparisons/s of training three networks; 32 comparisons a batch, imitation's default and ours |
| select_… | 1000 candidate pairs drawn, judged by the deviation of the members' answers, and the 100 best kept |
| relabel_… | rewards of 100 000 steps by one call: imitation's takes them at once, ours 8192 at a time, its default |
| relabel_…_best | the same beside the best of batch sizes that a user of imitation could try |
| pendulum… | preference comparisons end to end with PPO, as in imitation's tutorial, and the policy's return |
| k_center… | seconds of the greedy k-center, and whether brute force picks the same |

imitation takes as many steps in the environment as its questions need beside those that PPO learns from; prefrl asks
about the episodes that it has. In the rows ``pendulum_documented…`` PPO takes the tutorial's rollouts of 2048 steps, of
which each call for fewer makes a whole one, so that imitation learns from twice as many.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from prefrl.benchmarks.core import ACTION, MEMBERS, OBSERVATION, SEGMENT, one_thread
from prefrl.benchmarks.findings import Finding, at_least, at_most
from prefrl.benchmarks.online_pendulum import Pendulum
from prefrl.benchmarks.side_env import make_side, missing_side, run_side
from prefrl.core import Comparisons, SegmentBatch
from prefrl.data.dataset import Episodes
from prefrl.errors import ConfigError, PrefrlError
from prefrl.evaluation.intervals import Estimate, mean, stratified_bootstrap
from prefrl.progress import Bars
from prefrl.queries import ActiveQuery, greedy_k_center, uncertain
from prefrl.scores import ReturnEnsemble
from prefrl.train.fit_score import fit_score
from prefrl.train.relabel import relabel

__all__ = ["RACE_ROWS", "Parts", "rows_of_races"]

SIDE, SCRIPT = "imitation", "imitation_online.py"
NETS = {"32": (32, 32), "256": (256, 256, 256)}
BARS = {
    "reward_32": 7.0, "reward_256": 2.0, "select_32": 14.0, "relabel_32": 3.0, "relabel_256": 1.8,
    "pendulum": 2.0, "pendulum_documented": 2.0, "pendulum_return": 0.0, "k_center": 1.0, "k_center_picks": 0.0,
}  # fmt: skip
RACE_ROWS = (
    *(f"{part}_{nets}" for nets in NETS for part in ("reward", "select", "relabel")),
    *(f"relabel_{nets}_best" for nets in NETS),
    *(f"{race}{of}" for race in ("pendulum", "pendulum_documented") for of in ("", "_return", "_ours", "_steps")),
    "k_center", "k_center_picks",
)  # fmt: skip
Measured = dict[str, Any]  # numbers by name, and "work"


@dataclass(frozen=True)
class Parts:
    """pendulum: of its races · seeds: one a turn, of all randomness · pendulum_seeds: the same of the pendulum."""

    pendulum: Pendulum
    seeds: Sequence[int]
    pendulum_seeds: Sequence[int]


@dataclass(frozen=True)
class Row:
    """A number of each turn. value: (ours, the peer's) → it · average: of the turns, with its 95 % interval; else their
    median, with the extremes.
    """

    id: str
    what: str
    value: Callable[[Measured, Measured], float]
    average: bool = False

    def finding(self, turns: Sequence[tuple[Measured, Measured]], seeds: Sequence[int]) -> Finding:
        values = [self.value(*turn) for turn in turns]
        found = Estimate(float(np.median(values)), min(values), max(values))
        if self.average:
            found = stratified_bootstrap(np.array(values)[:, None], mean, rng=np.random.default_rng(0))
        return at_least(self.id, self.what, found, BARS.get(self.id), seeds=tuple(seeds))

    def skipped(self, reason: str) -> Finding:
        return Finding(self.id, self.what, None, BARS.get(self.id), reason)


@dataclass(frozen=True)
class Race:
    """ours: seed → what we measured · arguments: of the peer's script · differs: work that need not be equal."""

    rows: tuple[Row, ...]
    ours: Callable[[int], Measured]
    arguments: tuple[str, ...]
    differs: tuple[str, ...] = ()

    def turn(self, seed: int, sides: Path) -> tuple[Measured, Measured]:
        """(ours, the peer's)."""
        peer = run_side(SIDE, sides, SCRIPT, [*self.arguments, f"--seed={seed}"])
        with one_thread():
            ours = self.ours(seed)
        works = [{k: v for k, v in found["work"].items() if k not in self.differs} for found in (ours, peer)]
        if works[0] != works[1]:
            raise PrefrlError(f"{self.rows[0].id}: unequal work is no race: ours {works[0]}, the peer's {works[1]}.")
        return ours, peer


def rows_of_races(
    parts: Parts, *, rows: Sequence[str] | None = None, sides: Path, show: Bars, make_sides: bool = False
) -> list[Finding]:
    """The rows, or those of these ids; without a side environment those that need it are skipped.

    sides: folder of the side environments · make_sides: make a missing one first.
    """
    wanted = list(RACE_ROWS if rows is None else rows)
    if not wanted or not set(wanted) <= set(RACE_ROWS):
        raise ConfigError(f"bench online: rows of races must be of {', '.join(RACE_ROWS)}, but are {wanted}.")
    races = [race for race in _races(parts) if {row.id for row in race.rows} & set(wanted)]
    if races and make_sides and missing_side(SIDE, sides):
        make_side(SIDE, sides)
    reason, findings = missing_side(SIDE, sides), []
    for race in races:
        chosen = [row for row in race.rows if row.id in wanted]
        if reason:
            findings += [row.skipped(reason) for row in chosen]
            continue
        seeds, turns = parts.pendulum_seeds if "pendulum" in race.arguments else parts.seeds, []
        for seed in seeds:
            turns.append(race.turn(seed, sides))
            show(chosen[0].id, len(turns), len(seeds))
        findings += [row.finding(turns, seeds) for row in chosen]
    if {"k_center", "k_center_picks"} & set(wanted):
        with one_thread():
            findings += [finding for finding in _k_center(parts.seeds, show) if finding.id in wanted]
    return findings


def _races(parts: Parts) -> list[Race]:
    races = []
    for name, pairs in (("32", 256), ("256", 64)):
        nets = f"{MEMBERS} nets of {'-'.join(map(str, NETS[name]))}"
        hidden = ("--hidden", *map(str, NETS[name]))
        what = f"{{}}, {nets}: prefrl / imitation".format
        races += [
            _speed(f"reward_{name}", what("comparisons/s of reward training"), ("fit", f"--pairs={pairs}", "--epochs=5",
                   *hidden), partial(_fit, NETS[name], pairs, 5)),
            _speed(f"select_{name}", what("candidate pairs/s of active queries, 100 of 1000"), ("select",
                   "--pairs=1000", "--kept=100", *hidden), partial(_select, NETS[name])),
            _speed(f"relabel_{name}", what("relabelled steps/s"), ("relabel", "--steps=100000", *hidden),
                   partial(_relabel, NETS[name], 100_000), best=True),
        ]  # fmt: skip
    return races + _pendulum_races(parts.pendulum)


def _speed(
    id: str, what: str, arguments: tuple[str, ...], ours: Callable[[int], Measured], *, best: bool = False
) -> Race:
    rows = [Row(id, what, lambda ours, peer: ours["per_s"] / peer["per_s"])]
    if best:
        rows.append(
            Row(f"{id}_best", f"{what} in its best batches", lambda ours, peer: ours["per_s"] / peer["best_per_s"])
        )
    return Race(tuple(rows), ours, arguments)


def _pendulum_races(pendulum: Pendulum) -> list[Race]:
    measure = cache(pendulum.measure)  # one run of ours a seed, raced with two of the peer's
    equal, documented = pendulum.arguments(documented=False), pendulum.arguments(documented=True)
    return [
        Race(_pendulum_rows("pendulum", pendulum.what), measure, equal),
        Race(
            _pendulum_rows("pendulum_documented", f"{pendulum.what}, imitation's as documented"),
            measure,
            documented,
            differs=("steps", "rollout"),
        ),
    ]


def _pendulum_rows(id: str, what: str) -> tuple[Row, ...]:
    return (
        Row(id, f"seconds of {what}: imitation / prefrl", lambda ours, peer: peer["seconds"] / ours["seconds"]),
        Row(
            f"{id}_return",
            f"mean true return after {what}: prefrl − imitation",
            lambda ours, peer: ours["return"] - peer["return"],
            average=True,
        ),
        Row(
            f"{id}_ours",
            f"mean true return after {what}: prefrl",
            lambda ours, peer: float(ours["return"]),
            average=True,
        ),
        Row(
            f"{id}_steps",
            f"environment steps of {what}: imitation / prefrl",
            lambda ours, peer: peer["stepped"] / ours["stepped"],
        ),
    )


def _work(hidden: Sequence[int], **more: int) -> dict[str, Any]:
    return {"observation": OBSERVATION, "action": ACTION, "members": MEMBERS, "hidden": list(hidden), **more}


def _seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    begin = time.process_time()
    result = work()
    return time.process_time() - begin, result


def _fit(hidden: Sequence[int], pairs: int, epochs: int, seed: int) -> Measured:
    """Comparisons per second of a whole ``fit_score``, its final measurement of the fit included."""
    generator = torch.Generator().manual_seed(seed)
    first, second = (_segments(pairs, generator) for _ in range(2))
    comparisons = Comparisons(first, second, torch.randint(2, (pairs,), generator=generator).float())
    usual: dict[str, Any] = {"batch_size": 32, "holdout": 0.0, "bootstrap": True, "seed": seed}
    fit_score(_ensemble(hidden, seed), comparisons, epochs=1, **usual)  # warm up
    score = _ensemble(hidden, seed)
    seconds, report = _seconds(lambda: fit_score(score, comparisons, epochs=epochs, **usual))
    done, shown = report.epochs, report.train_comparisons
    work = _work(hidden, pairs=shown, epochs=done, batch=usual["batch_size"], segment=SEGMENT)
    return {"per_s": shown * done / seconds, "work": work}


def _select(hidden: Sequence[int], seed: int, kept: int = 100, oversample: int = 10) -> Measured:
    """Candidate pairs per second, of episodes with the sizes of the peer's."""
    episodes, rng = _episodes(100, 150, seed), np.random.default_rng(seed)
    score, query = _ensemble(hidden, seed), ActiveQuery(keep=uncertain, oversample=oversample)

    def ask(n: int) -> int:
        return len(query(episodes.lengths, n, SEGMENT, rng, episodes=episodes, score=score)[0])

    ask(kept)  # warm up
    seconds, asked = _seconds(lambda: ask(kept))
    pairs = oversample * asked
    work = _work(hidden, pairs=pairs, kept=asked, segment=SEGMENT, episodes=len(episodes), length=150)
    return {"per_s": pairs / seconds, "work": work}


def _relabel(hidden: Sequence[int], steps: int, seed: int) -> Measured:
    generator = torch.Generator().manual_seed(seed)
    observations = torch.randn(steps, OBSERVATION, generator=generator)
    actions = 2 * torch.rand(steps, ACTION, generator=generator) - 1
    score = _ensemble(hidden, seed)
    relabel(score, observations, actions)  # warm up
    seconds, rewards = _seconds(lambda: relabel(score, observations, actions))
    return {"per_s": steps / seconds, "work": _work(hidden, steps=len(rewards))}


def _k_center(seeds: Sequence[int], show: Bars) -> list[Finding]:
    """Seconds of 100 picks among 1000 beside 300 labelled ones, of 4300 numbers each; then by brute force."""
    times, wrong = [], 0
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        features, labelled = (torch.randn(n, 4300, generator=generator) for n in (1000, 300))
        seconds, picks = _seconds(partial(greedy_k_center, features, 100, labelled))
        times.append(seconds)
        wrong += int((picks != brute_force_picks(features.numpy(), labelled.numpy(), 100)).sum())
        show("k_center", len(times), len(seeds))
    what, more = "100 of 1000 by k-center, 300 labelled, 4300 numbers each", {"seeds": tuple(seeds)}
    took = at_most("k_center", f"seconds of {what}", float(np.median(times)), BARS["k_center"], **more)
    picks = at_most(
        "k_center_picks", f"picks unlike those of brute force: {what}", wrong, BARS["k_center_picks"], **more
    )
    return [took._replace(low=min(times), high=max(times)), picks]


def brute_force_picks(features: np.ndarray, labelled: np.ndarray, k: int) -> np.ndarray:
    """(k,) rows of (M, F), each the farthest from the nearest of all centers; distances by differences in float64."""
    x = features.astype(np.float64)
    distances = [((x - center) ** 2).sum(1) for center in labelled.astype(np.float64)]  # to each center, (M,)
    picks: list[int] = []
    for _ in range(k):
        nearest = np.min(distances, axis=0)  # from scratch
        nearest[picks] = -1.0
        picks.append(int(nearest.argmax()))
        distances.append(((x - x[picks[-1]]) ** 2).sum(1))
    return np.array(picks)


def _ensemble(hidden: Sequence[int], seed: int) -> ReturnEnsemble:
    """Inputs are not standardized, as in imitation's networks by default."""
    sizes: dict[str, Any] = {"observation_size": OBSERVATION, "action_size": ACTION, "members": MEMBERS}
    return ReturnEnsemble(**sizes, hidden=hidden, normalize=False, seed=seed)


def _segments(count: int, generator: torch.Generator) -> SegmentBatch:
    return SegmentBatch(
        torch.randn(count, SEGMENT + 1, OBSERVATION, generator=generator),
        2 * torch.rand(count, SEGMENT, ACTION, generator=generator) - 1,
        torch.ones(count, SEGMENT, dtype=torch.bool),
    )


def _episodes(episodes: int, steps: int, seed: int) -> Episodes:
    """Noise with the sizes of Meta-World."""
    rows, rng = episodes * steps, np.random.default_rng(seed)
    return Episodes(
        observations=rng.standard_normal((rows + episodes, OBSERVATION)),
        actions=rng.uniform(-1, 1, (rows, ACTION)),
        true_reward=np.zeros(rows),
        success=np.zeros(rows, bool),
        lengths=np.full(episodes, steps),
        terminated=np.zeros(episodes, bool),
        behavior=("noise",) * episodes,
        seeds=np.zeros(episodes, np.int64),
        env={"id": "none"},
        fps=80.0,
    )
