"""Rows rl of ``prefrl bench rapl``: what an agent learns from the reward of an aligned metric (RAPL, arXiv 2310.07932).

Per task and seed one ``prefrl train recipe=rapl`` with an arm for each reward. Policies are judged by how often they do
the task in the preferred way. Intervals: over seeds, and over the episodes of each.

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
from prefrl.evaluation.intervals import nested_bootstrap

__all__ = ["Task", "measure_policies"]


@dataclass(frozen=True)
class Task:
    """overrides: of ``prefrl train`` · seeds: of runs · seconds: that an arm may take, a bar."""

    overrides: Sequence[str]
    seeds: Sequence[int]
    seconds: float


def measure_policies(
    show: Progress, *, tasks: Mapping[str, Task], overrides: Sequence[str], bars: Mapping[str, float], folder: Path,
    workers: int, fresh: bool,
) -> list[Finding]:  # fmt: skip
    """The cells of all tasks and seeds, and what they show."""
    cells = [
        Cell(name, seed, ("recipe=rapl", *task.overrides, *overrides))
        for name, task in tasks.items()
        for seed in task.seeds
    ]
    results = run_cells(cells, folder=folder, workers=workers, fresh=fresh, show=show)
    warn_of_old_code(results)
    rng, findings = np.random.default_rng(0), list[Finding]()
    for name, task in tasks.items():
        own = [result for result in results if result.cell.name == name]
        findings += _of_task(name, task, own, bars, rng)
    return findings


def _of_task(
    name: str, task: Task, own: Sequence[CellResult], bars: Mapping[str, float], rng: np.random.Generator
) -> list[Finding]:
    """Shares with their bars, then every arm."""
    more: dict[str, Any] = {"seeds": tuple(task.seeds)}
    stages = [stage for stage in own[0].stages if stage.startswith("arms.")]
    preferred = {s.removeprefix("arms."): _episodes(own, s, "preferred") for s in stages}
    rate = {arm: float(values.mean()) for arm, values in preferred.items()}
    of_true = rate["aligned"] / rate["true_reward"] if rate["true_reward"] else float("nan")
    over_task = rate["aligned"] / max(rate["task_reward"], 1 / preferred["task_reward"].size)
    slowest = max(result.seconds for result in own) / len(stages)
    found = [
        at_least(f"rl.{name}.of_true", f"{name}: preferred success of RAPL as a share of the true reward's", of_true,
                 bars["of_true"], **more),
        at_least(f"rl.{name}.over_task", f"{name}: the same over that of the task's reward, at least one episode",
                 over_task, bars["over_task"], **more),
        at_most(f"rl.{name}.seconds", f"{name}: seconds an arm, the longest run", slowest, task.seconds, **more),
    ]  # fmt: skip
    for arm, values in preferred.items():
        interval = nested_bootstrap(values, rng=rng)
        done = float(_episodes(own, f"arms.{arm}", "success").mean())
        found.append(
            at_least(f"rl.{name}.{arm}", f"{name}: preferred success of {arm} (task done {done:.0%})", interval, **more)
        )
    return found


def _episodes(own: Sequence[CellResult], stage: str, key: str) -> np.ndarray:
    """(R, E)."""
    return np.array([result.stages[stage][key] for result in own], dtype=np.float64)
