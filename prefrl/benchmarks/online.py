"""``prefrl bench online``: preference RL while an agent learns (PEBBLE, arXiv 2106.05091; B-Pref, arXiv 2111.03026).

| rows | what |
|---|---|
| learning | what a few answers give, of what the true reward gives, on three tasks |
| queries | what a reward learns from as many answers, by how they were asked for |
| races | parts of the loop and the whole, beside imitation 1.0.1 |

Runs of rows learning are kept in ``<folder>/learning``; rows queries ask about the episodes of those with an oracle,
and about scripts' episodes of a task of several stages.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from prefrl.benchmarks.findings import Finding, to_rows
from prefrl.benchmarks.online_learning import Task, learning_findings, train_online
from prefrl.benchmarks.online_queries import Asking, Pool, query_findings
from prefrl.benchmarks.online_races import Parts, rows_of_races
from prefrl.benchmarks.pearl_data import Store
from prefrl.errors import ConfigError
from prefrl.progress import Bars, progress_bars

__all__ = ["GROUPS", "run"]

GROUPS = ("learning", "queries", "races")


def run(
    *,
    learning: Mapping[str, Any],
    queries: Mapping[str, Any],
    races: Parts,
    rows: Sequence[str] | None = None,
    fresh: bool = False,
    make_sides: bool = False,
    workers: int = 2,
    sides: str = ".side",
    folder: str = "bench/online",
) -> list[dict[str, Any]]:
    """Rows of the benchmark.

    rows: groups (all if None) · fresh: train and ask anew · make_sides: make the side environment of the races ·
    workers: training runs, or pools that are asked about, at a time
    """
    chosen, place = tuple(rows or GROUPS), Path(folder)
    for row in chosen:
        if row not in GROUPS:
            raise ConfigError(f"bench online: unknown row group {row!r}; these are there: {', '.join(GROUPS)}.")
    shared: dict[str, Any] = {"workers": workers, "fresh": fresh}
    fresh_runs = fresh and "learning" not in chosen  # else they are
    measured = []
    with progress_bars() as bars:
        of: dict[str, Callable[[], list[Finding]]] = {
            "learning": lambda: _learn(bars, learning, place / "learning", shared),
            "queries": lambda: _ask(bars, queries, learning, place, shared, fresh_runs=fresh_runs),
            "races": lambda: rows_of_races(races, sides=Path(sides), make_sides=make_sides, show=bars),
        }
        for group in GROUPS:
            if group in chosen:
                begin = time.perf_counter()
                findings = of[group]()
                measured += to_rows(findings, time.perf_counter() - begin)
    return measured


def _learn(bars: Bars, learning: Mapping[str, Any], folder: Path, shared: Mapping[str, Any]) -> list[Finding]:
    tasks: Mapping[str, Task] = learning["tasks"]
    show = partial(bars, "learning")
    results = train_online(tasks, overrides=learning["overrides"], folder=folder, show=show, **shared)
    return learning_findings(results, tasks, random=learning["random"], bars=learning["bars"])


def _ask(
    bars: Bars,
    queries: Mapping[str, Any],
    learning: Mapping[str, Any],
    folder: Path,
    shared: Mapping[str, Any],
    *,
    fresh_runs: bool,
) -> list[Finding]:
    """The pools of agents first; those of a task are there once its runs are."""
    tasks: Mapping[str, Task] = learning["tasks"]
    show = partial(bars, "runs that leave pools")
    train_online(
        tasks, overrides=learning["overrides"], folder=folder / "learning", show=show, runs=("oracle",), **shared
    )
    pools = [
        Pool(name, seed, folder / "learning" / f"{name}-oracle-seed{seed}" / "run" / "arms" / "aligned" / "dataset")
        for name, task in tasks.items()
        for seed in task.seeds
    ]
    for seed in queries["stages"]["seeds"]:
        store = Store(folder / "scripts", collect=queries["stages"]["collect"], seed=seed, workers=shared["workers"])
        names = queries["stages"]["tasks"]
        store.prepare(names, fresh=shared["fresh"], show=partial(bars, "scripts"))
        pools += [Pool(name, seed, store.place(name)) for name in names]
    asking: Mapping[str, Asking] = queries["asking"]
    return query_findings(
        partial(bars, "queries"), pools=pools, queries=queries["queries"], asking=asking, bars=queries["bars"],
        workers=shared["workers"],
    )  # fmt: skip
