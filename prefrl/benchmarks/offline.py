"""``prefrl bench offline``: do preferences decide what is learned? Success over tasks, seeds, labels and settings.

Arms and their reasons are in ``prefrl.recipes.arms``. Intervals are 95 % bootstrap intervals over seeds and over the
episodes within each (``nested_bootstrap``). Bars: at 200 oracle comparisons, aligned minus behavior cloning
and aligned minus random reward reach +20 points on at least two of three tasks, and aligned reaches 85 % of the
success with the true reward on average.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from prefrl.benchmarks.cells import Cell, CellResult, run_cells, warn_of_old_code
from prefrl.errors import ConfigError
from prefrl.evaluation.intervals import nested_bootstrap
from prefrl.progress import progress_bars

__all__ = ["GROUPS", "run"]

GROUPS = ("tasks", "labels", "sensitivity")
ARMS = ("bc", "aligned", "true_reward", "random", "untrained", "zero", "negated")
COMPARED = ("bc", "random")


def run(
    *,
    tasks: Sequence[str],
    studied: str,
    labels: Mapping[str, Sequence[str]],
    sensitivity: Mapping[str, Sequence[str]],
    seeds: int | Sequence[int],
    rows: Sequence[str] | None = None,
    fresh: bool = False,
    workers: int = 2,
    folder: str = "bench/offline",
) -> list[dict[str, Any]]:
    """Rows of the benchmark.

    tasks: experiments, compared on all arms · studied: the one of them for ``labels`` and ``sensitivity``, which map
    a row's name to its overrides · rows: groups to run (tasks, labels, sensitivity); all if None.
    """
    groups = tuple(rows or GROUPS)
    unknown = sorted(set(groups) - set(GROUPS))
    if (isinstance(seeds, int) and seeds < 1) or not seeds:
        raise ConfigError(f"bench offline: seeds must be at least one, but is {seeds}.")
    if unknown:
        raise ConfigError(f"bench offline: unknown row group {unknown[0]!r}; these are there: {', '.join(GROUPS)}.")
    numbers = list(range(seeds)) if isinstance(seeds, int) else list(seeds)
    variants = {**(labels if "labels" in groups else {}), **(sensitivity if "sensitivity" in groups else {})}
    cells = [_cell(task, seed, task, ARMS) for task in tasks for seed in numbers if "tasks" in groups]
    cells += [
        _cell(f"{studied}-{name}", seed, studied, ("aligned", "true_reward"), extra)
        for name, extra in variants.items()
        for seed in numbers
    ]
    with progress_bars() as bars:
        results = run_cells(
            cells,
            folder=Path(folder),
            workers=workers,
            fresh=fresh,
            show=lambda done, total: bars("cells", done, total),
        )
    warn_of_old_code(results)
    return table(
        results,
        tasks=tasks if "tasks" in groups else (),
        variants={f"{studied}-{name}": name for name in variants},
    )


def _cell(name: str, seed: int, experiment: str, arms: Sequence[str], extra: Sequence[str] = ()) -> Cell:
    """Final evaluation only: no curves, no videos."""
    shortened = ("recipe.evaluate_every=0", "recipe.video_arms=[]", f"recipe.arms=[{','.join(arms)}]")
    return Cell(name, seed, (f"experiment={experiment}", *shortened, *extra))


def table(results: Sequence[CellResult], *, tasks: Sequence[str], variants: Mapping[str, str]) -> list[dict[str, Any]]:
    """One row an arm and task, then the differences with their bars, then the variants."""
    rng = np.random.default_rng(0)
    rows = [row for task in tasks for row in _task_rows(results, task, rng)]
    of_tasks = [r for r in results if r.cell.name in tasks]
    rows += _bars_over_tasks(of_tasks, tasks) if len(tasks) >= 2 else []
    for cell_name, name in variants.items():
        mine = [r for r in results if r.cell.name == cell_name]
        for arm in ("aligned", "true_reward"):
            success = successes(results, cell_name, arm)
            rows.append(_row(f"{name}.{arm}", f"{cell_name}: success with {arm}", success, mine, rng))
    return rows


def _task_rows(results: Sequence[CellResult], task: str, rng: np.random.Generator) -> list[dict[str, Any]]:
    """Success of every arm, the two differences with their bars, and the reward model's accuracy."""
    mine = [r for r in results if r.cell.name == task]
    success = {arm: successes(results, task, arm) for arm in ARMS}
    rows = [_row(f"{task}.{arm}", f"success with {arm}", success[arm], mine, rng) for arm in ARMS]
    for arm in COMPARED:
        points = 100 * (success["aligned"] - success[arm])
        rows.append(_row(f"{task}.aligned-{arm}", f"aligned minus {arm} [points]", points, mine, rng))
    rows.append(_seeds_row(task, success, mine))
    accuracy = np.array([[r.stages["score"]["heldout_accuracy"]] for r in mine])
    return [*rows, _row(f"{task}.accuracy", "held-out accuracy of the reward model", accuracy, mine, rng)]


def _seeds_row(task: str, success: dict[str, np.ndarray], mine: Sequence[CellResult]) -> dict[str, Any]:
    """Share of the seeds in which aligned is 25 points above cloning and random, and at 85 % of the true reward."""
    each = {arm: values.mean(1) for arm, values in success.items()}  # (seeds,)
    holds = each["aligned"] >= 0.85 * each["true_reward"]
    for arm in COMPARED:
        holds &= each["aligned"] - each[arm] >= 0.25
    what = "share of seeds in which aligned is +25 over cloning and random, and 85 % of true reward"
    return _summary(f"{task}.seeds", what, float(holds.mean()), 0.8, mine)


def _bars_over_tasks(results: Sequence[CellResult], tasks: Sequence[str]) -> list[dict[str, Any]]:
    """The bars, which are over all tasks together: the second-best task must reach both differences."""
    means = {task: {arm: float(successes(results, task, arm).mean()) for arm in ARMS} for task in tasks}
    least = {task: min(100 * (m["aligned"] - m[arm]) for arm in COMPARED) for task, m in means.items()}
    second = sorted(least.values())[-2]
    what = "aligned minus bc and minus random, the smaller; reached on two tasks [points]"
    ratio = float(np.mean([m["aligned"] / max(m["true_reward"], 1e-9) for m in means.values()]))
    return [
        _summary("two_tasks.aligned-bc-and-random", what, second, 20.0, results),
        _summary("all_tasks.aligned/true_reward", "aligned / true-reward success, mean of tasks", ratio, 0.85, results),
    ]


def successes(results: Sequence[CellResult], name: str, arm: str) -> np.ndarray:
    """(seeds, episodes) of 0 and 1."""
    return np.array([r.stages[f"arms.{arm}"]["success"] for r in results if r.cell.name == name], dtype=float)


def _row(
    id: str,
    what: str,
    values: np.ndarray,
    mine: Sequence[CellResult],
    rng: np.random.Generator,
) -> dict[str, Any]:
    mean = nested_bootstrap(values, rng=rng)
    return {
        "id": id, "what": what, "value": mean.value, "low": mean.low, "high": mean.high, "bar": None, "holds": None,
        "seeds": [r.cell.seed for r in mine], "seconds": sum(r.seconds for r in mine),
    }  # fmt: skip


def _summary(id: str, what: str, value: float, bar: float, results: Sequence[CellResult]) -> dict[str, Any]:
    return {
        "id": id, "what": what, "value": value, "low": None, "high": None, "bar": bar, "holds": value >= bar,
        "seeds": sorted({r.cell.seed for r in results}), "seconds": sum(r.seconds for r in results),
    }  # fmt: skip
