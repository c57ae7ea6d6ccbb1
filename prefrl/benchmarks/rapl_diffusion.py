"""Rows diffusion of ``prefrl bench rapl``: a two-mode diffusion policy before and after alignment (arXiv 2412.04835).

Per seed one ``prefrl train recipe=rapl_diffusion``: a policy is cloned from demonstrations that pass a zone on either
side, its rollouts are ranked in several ways, and it is tuned by Diffusion-DPO on each ranking.

Axes: R seeds, E episodes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from prefrl.benchmarks.cells import Cell, CellResult, run_cells, warn_of_old_code
from prefrl.benchmarks.findings import Finding, Progress, at_least, at_most, same
from prefrl.evaluation.intervals import Estimate, nested_bootstrap

__all__ = ["measure_diffusion"]


def measure_diffusion(
    show: Progress, *, overrides: Sequence[str], seeds: Sequence[int], bars: Mapping[str, float], folder: Path,
    workers: int, fresh: bool,
) -> list[Finding]:  # fmt: skip
    """The cells of all seeds, and what they show. bars: what may be missing → its bar."""
    cells = [Cell("two_modes", seed, ("recipe=rapl_diffusion", *overrides)) for seed in seeds]
    results = run_cells(cells, folder=folder, workers=workers, fresh=fresh, show=show)
    warn_of_old_code(results)
    rng, more = np.random.default_rng(0), dict[str, Any](seeds=tuple(seeds))
    arms = [stage.removeprefix("arms.") for stage in results[0].stages if stage.startswith("arms.")]
    shares = {arm: _shares(results, arm) for arm in arms}  # (R,)
    success = {arm: _episodes(results, arm, "success") for arm in arms}  # (R, E)
    drop = max(float((success["base"] - success[arm]).mean()) for arm in ("true_reward", "aligned"))
    found = [
        same("diffusion.base", "preferred share of what succeeds, before", float(shares["base"].mean()), bars["base"],
             within=bars["within"], **more),
        at_least("diffusion.base.success", "success before", nested_bootstrap(success["base"], rng=rng),
                 bars["success"], **more),
        at_most("diffusion.drop", "success that alignment costs, the more of true_reward and aligned", drop,
                bars["drop"], **more),
    ]  # fmt: skip
    for arm in arms:
        values = shares[arm]
        what = f"preferred share of what succeeds, {arm} (error on demonstrations × {_ratio(results, arm):.2f})"
        found.append(at_least(f"diffusion.{arm}.share", what, _extremes(values), bars.get(arm), **more))
    seconds = max(result.seconds for result in results)
    return [*found, at_least("diffusion.seconds", "wall-clock seconds of a whole run, the longest", seconds, **more)]


def _shares(results: Sequence[CellResult], arm: str) -> np.ndarray:
    """(R,) preferred ones of the episodes that succeed; NaN where none does."""
    preferred, done = (_episodes(results, arm, key).sum(1) for key in ("preferred", "success"))
    return np.divide(preferred, done, out=np.full(len(done), np.nan), where=done > 0)


def _episodes(results: Sequence[CellResult], arm: str, key: str) -> np.ndarray:
    """(R, E)."""
    return np.array([result.stages[f"arms.{arm}"][key] for result in results], dtype=np.float64)


def _ratio(results: Sequence[CellResult], arm: str) -> float:
    return float(np.mean([result.stages[f"arms.{arm}"]["demo_error_ratio"] for result in results]))


def _extremes(values: np.ndarray) -> Estimate:
    """The mean of (R,) seeds, between the least and the most."""
    return Estimate(float(values.mean()), float(values.min()), float(values.max()))
