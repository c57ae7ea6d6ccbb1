"""``prefrl bench regret``, rows metaworld: contrastive preference learning (arXiv 2310.13639) on Meta-World.

Per task and seed one ``prefrl train recipe=cpl``: CPL and its baselines on one dataset and one set of regret labels, of
an oracle that every row names. The expected ordering is CPL ≥ SFT > behavior; a random reward, and CPL on answers of
a coin, tell whether the data alone would do. Intervals: over seeds, and over the episodes of each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from prefrl.benchmarks.cells import Cell, CellResult, run_cells, warn_of_old_code
from prefrl.benchmarks.findings import Finding, Progress, at_least
from prefrl.benchmarks.offline import successes
from prefrl.evaluation.intervals import nested_bootstrap

__all__ = ["ARMS", "metaworld_findings", "train_metaworld"]

ARMS = ("bc", "sft", "cpl", "aligned", "random", "cpl_random")
CONTROLS = ("random", "cpl_random")
POINTS = 20.0  # by which CPL must exceed a control to count as above it, as in bench offline


def train_metaworld(
    *,
    tasks: Mapping[str, Sequence[str]],
    overrides: Sequence[str],
    seeds: Sequence[int],
    first_seed: int,
    folder: Path,
    workers: int,
    fresh: bool,
    show: Progress,
) -> list[CellResult]:
    """The cells of all tasks and seeds; ``overrides`` are those of every cell. Final evaluation only.

    first_seed: what stands for seed 0, because settings were chosen on smaller ones.
    """
    shortened = ("recipe.evaluate_every=0", "recipe.video_arms=[]", f"recipe.arms=[{','.join(ARMS)}]")
    cells = [
        Cell(task, first_seed + seed, (*overrides, *shortened, *own))
        for task, own in tasks.items()
        for seed in seeds
    ]  # fmt: skip
    results = run_cells(cells, folder=folder, workers=workers, fresh=fresh, show=show)
    warn_of_old_code(results)
    return results


def metaworld_findings(results: Sequence[CellResult], *, oracle: str) -> list[Finding]:
    """The bar first, then success of behavior and arms and the differences to CPL, task by task."""
    tasks = list(dict.fromkeys(result.cell.name for result in results))
    seeds = tuple(dict.fromkeys(result.cell.seed for result in results))
    who, rng = f"labels: {oracle}", np.random.default_rng(0)
    ordered, above, rows = 0, dict.fromkeys(CONTROLS, 0), []
    for task in tasks:
        success = {arm: successes(results, task, arm) for arm in ARMS}  # (seeds, episodes)
        success["behavior"] = _behavior(results, task)
        mean = {arm: float(values.mean()) for arm, values in success.items()}
        ordered += mean["cpl"] >= mean["sft"] > mean["behavior"]
        for arm in CONTROLS:
            above[arm] += 100 * (mean["cpl"] - mean[arm]) >= POINTS
        for arm in ("behavior", *ARMS):
            interval = nested_bootstrap(success[arm], rng=rng)
            rows.append(at_least(f"metaworld.{task}.{arm}", f"success of {arm}; {who}", interval, seeds=seeds))
        for arm in ARMS:
            if arm != "cpl":
                gap = nested_bootstrap(100 * (success["cpl"] - success[arm]), rng=rng)
                what = f"success of cpl − {arm} [points]"
                rows.append(at_least(f"metaworld.{task}.cpl-{arm}", what, gap, seeds=seeds))
    what = f"tasks, of {len(tasks)}, with success CPL ≥ SFT > behavior; {who}"
    summary = [at_least("metaworld.ordering", what, ordered, len(tasks), seeds=seeds)]
    for arm in CONTROLS:
        what = f"tasks, of {len(tasks)}, with CPL at least {POINTS:g} points above {arm}"
        summary.append(at_least(f"metaworld.above_{arm}", what, above[arm], len(tasks), seeds=seeds))
    return [*summary, *rows]


def _behavior(results: Sequence[CellResult], task: str) -> np.ndarray:
    """(seeds, episodes) of the data themselves."""
    return np.array([r.stages["collect"]["success"] for r in results if r.cell.name == task], dtype=float)
