"""Rows learning of ``prefrl bench online``: how much of what the true reward gives, a few answers give.

PEBBLE (Lee et al. 2021, arXiv 2106.05091) beside soft actor-critic on the environment's own reward from the first step
on, after equal steps and with equal settings: per task and seed one run each of answers of an oracle, of answers of
which every tenth is wrong (B-Pref, arXiv 2111.03026), and of the true reward. As returns may be negative, a policy's
share is that of the way from uniformly random actions to the true reward's policy: (J − J_random) / (J_true −
J_random). Verdicts are of means over seeds; an interval of three seeds is rough.

Axes: R seeds, E episodes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from prefrl.benchmarks.cells import Cell, CellResult, run_cells, warn_of_old_code
from prefrl.benchmarks.findings import Finding, Progress, at_least, at_most
from prefrl.data.collect import BehaviorGroup, collect_episodes
from prefrl.evaluation.intervals import Estimate, nested_bootstrap
from prefrl.protocols import MakeEnv

__all__ = ["Task", "learning_findings", "share_of_true", "train_online"]

RUNS = {
    "oracle": ("recipe.arms=[aligned]", "teacher=oracle"),
    "mistake": ("recipe.arms=[aligned]", "teacher=mistake"),
    "true_reward": ("recipe.arms=[true_reward_from_start]",),
}


@dataclass(frozen=True)
class Task:
    """experiment: of configs/experiment · env: the same one's · seconds: that a run may take, a bar."""

    experiment: str
    env: MakeEnv
    seeds: Sequence[int]
    seconds: float


def train_online(
    tasks: Mapping[str, Task],
    *,
    overrides: Sequence[str],
    folder: Path,
    workers: int,
    fresh: bool,
    show: Progress,
    runs: Sequence[str] = tuple(RUNS),
) -> list[CellResult]:
    """These runs of all tasks and seeds, each a cell ``<task>-<run>``; ``overrides`` are those of every run."""
    cells = [
        Cell(f"{name}-{run}", seed, (f"experiment={task.experiment}", *overrides, *RUNS[run]))
        for name, task in tasks.items()
        for seed in task.seeds
        for run in runs
    ]  # fmt: skip
    results = run_cells(cells, folder=folder, workers=workers, fresh=fresh, show=show)
    warn_of_old_code(results)
    return results


def learning_findings(
    results: Sequence[CellResult], tasks: Mapping[str, Task], *, random: Any, bars: Mapping[str, float]
) -> list[Finding]:
    """Shares with their bars, then returns, successes, what the rewards know, and seconds, task by task.

    random: acts uniformly at random · bars: run → least share.
    """
    rng, findings = np.random.default_rng(0), []
    for name, task in tasks.items():
        more: dict[str, Any] = {"seeds": tuple(task.seeds)}
        own = {run: [r for r in results if r.cell.name == f"{name}-{run}"] for run in RUNS}
        returns = {run: _episodes(own[run], "returns") for run in RUNS}
        success = {run: _episodes(own[run], "success") for run in RUNS}
        returns["random"] = _random_returns(task, random, max_steps=_most_steps(own["true_reward"]))
        scores = {run: values.mean(1) for run, values in returns.items()}  # (R,)
        for run, bar in bars.items():
            share = _share(np.stack([scores[run], scores["true_reward"], scores["random"]], axis=1), rng)
            what = f"{name}: share of the way from random actions to the true reward's return, {run}"
            findings.append(at_least(f"learning.{name}.{run}/true_reward", what, share, bar, **more))
        for run in (*RUNS, "random"):
            interval = nested_bootstrap(returns[run], rng=rng)
            findings.append(at_least(f"learning.{name}.{run}", f"{name}: return of {run}", interval, **more))
        if any(values.any() for values in success.values()):
            findings += [
                at_least(f"learning.{name}.{run}.success", f"{name}: success of {run}",
                         nested_bootstrap(success[run], rng=rng), **more)
                for run in RUNS
            ]  # fmt: skip
        findings += _of_rewards(name, own, more)
        slowest = max(result.seconds for run in RUNS for result in own[run])
        findings.append(
            at_most(f"learning.{name}.seconds", f"{name}: the slowest run [s]", slowest, task.seconds, **more)
        )
    return findings


def share_of_true(scores: np.ndarray) -> np.ndarray:
    """(..., R, 3) returns of a run, of the true reward's and of random actions → (...): the share.

    >>> float(share_of_true(np.array([[-150.0, -100.0, -1100.0]])))
    0.95
    """
    ours, true, random = np.moveaxis(scores.mean(-2), -1, 0)
    return (ours - random) / (true - random)


def _share(scores: np.ndarray, rng: np.random.Generator, *, repetitions: int = 2000) -> Estimate:
    """Of (R, 3), with its 95 % bootstrap interval over seeds, each with its three returns."""
    R = len(scores)
    low, high = np.percentile(share_of_true(scores[rng.integers(R, size=(repetitions, R))]), (2.5, 97.5))
    return Estimate(float(share_of_true(scores)), float(low), float(high))


def _of_rewards(name: str, own: Mapping[str, Sequence[CellResult]], more: Mapping[str, Any]) -> list[Finding]:
    """Answers that were used, and the order of random pairs by the reward at last."""
    found = []
    for run in ("oracle", "mistake"):
        last = [result.stages["arms.aligned"]["sessions"][-1] for result in own[run]]
        used = max(session["answered"] for session in last)
        found.append(at_most(f"learning.{name}.{run}.answers", f"{name}: answers used, {run}", used, **more))
        right = [session["reward_accuracy"] for session in last if session.get("reward_accuracy") is not None]
        if right:
            what = f"{name}: pairs in the order of the true reward, {run}"
            found.append(at_least(f"learning.{name}.{run}.accuracy", what, float(np.mean(right)), **more))
    return found


def _episodes(results: Sequence[CellResult], key: str) -> np.ndarray:
    """(R, E) float64 of the one arm of each run."""
    arms = [next(stage for name, stage in r.stages.items() if name.startswith("arms.")) for r in results]
    return np.array([arm[key] for arm in arms], dtype=np.float64)


def _most_steps(results: Sequence[CellResult]) -> int:
    return int(_episodes(results, "lengths").max())


def _random_returns(task: Task, random: Any, *, max_steps: int, episodes: int = 20) -> np.ndarray:
    """(R, E)."""
    group = BehaviorGroup("acts at random", episodes, random)
    return np.array(
        [collect_episodes(task.env, [group], max_steps=max_steps, seed=seed).returns() for seed in task.seeds]
    )
