"""``prefrl bench rapl``: preferences align a metric of videos, the metric rewards robots (RAPL, arXiv 2310.07932).

| rows | what |
|---|---|
| metric | how rewards from few rankings order videos of the same and of another robot, on Tabletop avoid |
| arms | the same on a pair of MuJoCo arms |
| rl | agents that learn from these rewards, beside the true reward and the task's own |
| diffusion | a diffusion policy of two modes, before and after its rollouts were ranked |
| speed | transport of many pairs of videos beside a loop of POT |
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from prefrl.benchmarks.findings import Finding, at_least, to_rows
from prefrl.benchmarks.rapl_diffusion import measure_diffusion
from prefrl.benchmarks.rapl_metric import Family, Method, collect_pools, order_videos
from prefrl.benchmarks.rapl_policies import Task, measure_policies
from prefrl.benchmarks.rapl_rows import rows_of_metric
from prefrl.benchmarks.rapl_speed import rows_of_speed
from prefrl.errors import ConfigError
from prefrl.progress import Bars, progress_bars

__all__ = ["GROUPS", "run"]

GROUPS = ("metric", "arms", "rl", "diffusion", "speed")


def run(
    *,
    families: Mapping[str, Family],
    methods: Mapping[str, Method],
    label_seeds: Sequence[int],
    bars: Mapping[str, Mapping[str, float]],
    rl: Mapping[str, Any],
    diffusion: Mapping[str, Any],
    speed_seeds: Sequence[int],
    rows: Sequence[str] | None = None,
    fresh: bool = False,
    workers: int = 2,
    folder: str = "bench/rapl",
) -> list[dict[str, Any]]:
    """Rows of the benchmark.

    rows: groups (all if None) · fresh: train anew · workers: processes at a time
    """
    chosen = tuple(rows or GROUPS)
    for row in chosen:
        if row not in GROUPS:
            raise ConfigError(f"bench rapl: unknown row group {row!r}; these are there: {', '.join(GROUPS)}.")
    measured = []
    with progress_bars() as shown:
        metric = partial(_order, shown, families, methods, seeds=label_seeds, workers=workers)
        tasks: Mapping[str, Task] = rl["tasks"]
        of: dict[str, Callable[[], list[Finding]]] = {
            "metric": lambda: metric("metric", bars=bars["metric"]),
            "arms": lambda: metric("arms", bars=bars["arms"]),
            "rl": lambda: measure_policies(
                partial(shown, "rl"), tasks=tasks, overrides=rl["overrides"], bars=bars["rl"],
                folder=Path(folder) / "rl", workers=workers, fresh=fresh,
            ),
            "diffusion": lambda: measure_diffusion(
                partial(shown, "diffusion"), **diffusion, bars=bars["diffusion"], folder=Path(folder) / "diffusion",
                workers=workers, fresh=fresh,
            ),
            "speed": lambda: rows_of_speed(speed_seeds, show=shown),
        }  # fmt: skip
        for group in GROUPS:
            if group in chosen:
                begin = time.perf_counter()
                findings = of[group]()
                measured += to_rows(findings, time.perf_counter() - begin)
    return measured


def _order(
    shown: Bars,
    families: Mapping[str, Family],
    methods: Mapping[str, Method],
    name: str,
    *,
    seeds: Sequence[int],
    bars: Mapping[str, float],
    workers: int,
) -> list[Finding]:
    """Collect the family's videos, twice the same ones, and measure every method on them."""
    family = families[name]
    pools = collect_pools(family, show=partial(shown, f"{name}: videos"))
    outcomes = order_videos(
        partial(shown, name), pools, methods, gap=family.gap, demos=family.demos, seeds=seeds, workers=workers
    )
    found = rows_of_metric(name, outcomes, methods, seeds=seeds, bars=bars)
    if name == "metric":
        once, twice = (family.videos("cross")[1].frames for _ in range(2))
        equal = float(np.array_equal(once, twice))
        found.insert(0, at_least("metric.A1", "whether videos collected again are equal, bit by bit", equal, 1.0))
    return found
