"""``prefrl bench regret``: what people compare, and what can be learned by which model of it; exact where it can be.

| rows | what | source |
|---|---|---|
| B1 to B7, B11 | people's preferences on the delivery board | arXiv 2206.02231, 2501.06416 |
| B8 to B10 | random grid worlds; a learned advantage mistaken for a reward | arXiv 2206.02231, 2310.02456 |
| B12, B13 | contrastive preference learning: its loss, and on a linear-quadratic task | arXiv 2310.13639 |
| H | reward models of people's preferences over continuous control | arXiv 2303.00957, 2305.15363 |
| metaworld | CPL against its baselines on three tasks | arXiv 2310.13639 |
| speed | seconds of B1 to B7 together, and value iteration of many worlds at once | |

Intervals are 95 % bootstrap intervals, or the extremes of seeds. Rows whose foreign data are absent are skipped.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from prefrl.benchmarks import regret_delivery as delivery_rows
from prefrl.benchmarks import regret_tabular as tabular_rows
from prefrl.benchmarks.findings import Finding, Progress, at_most, to_rows
from prefrl.benchmarks.regret_control import Regulator, measure_b12, measure_b13
from prefrl.benchmarks.regret_delivery import Delivery
from prefrl.benchmarks.regret_human import measure_human
from prefrl.benchmarks.regret_metaworld import metaworld_findings, train_metaworld
from prefrl.errors import ConfigError
from prefrl.progress import Bars, progress_bars
from prefrl.protocols import MakeComparisonLearner, MakeEnv

__all__ = ["GROUPS", "Parts", "Places", "find_data", "run"]

GROUPS = (*(f"B{number}" for number in range(1, 14)), "H", "speed", "metaworld")
TABULAR = tuple(f"B{number}" for number in range(1, 8))
ON_PEOPLE = ("B1", "B3", "B4", "B5", "B6", "B7", "B11")  # read people's files on the delivery board
TABULAR_SECONDS = 120.0  # bar of B1 to B7 together, one core
NO_DELIVERY = (
    "skipped: no people's preferences on the delivery board. Give data=FOLDER, or PREFRL_DATA, that holds "
    "regret_human_prefs/ with human_data/ and delivery_mdp/ (Texas Data Repository, doi:10.18738/T8/S4WTWR)"
)
NO_CONTROL = (
    "skipped: no people's preferences over continuous control. Give data=FILE.npz, or data=FOLDER or PREFRL_DATA with "
    "human_control_prefs/*_human_train.npz (github.com/jhejna/inverse-preference-learning)"
)


class Places(NamedTuple):
    """Where foreign data are. delivery: the folder ``regret_human_prefs``, or None · control: files of rows H."""

    delivery: Path | None
    control: tuple[Path, ...]


def run(
    *,
    parts: Parts,
    rows: Sequence[str] | None = None,
    seeds: int | Sequence[int] = 3,
    data: str | None = None,
    fresh: bool = False,
    workers: int = 2,
    folder: str = "bench/regret",
) -> list[dict[str, Any]]:
    """Rows of the benchmark.

    parts: what is measured, and how · rows: groups (all if None) · seeds: how many, or a list; some rows use the first
    data: a folder with regret_human_prefs/ and human_control_prefs/, one of these, or an .npz file for H; None: the
    environment variable PREFRL_DATA · fresh, workers, folder: of the cells of metaworld
    """
    chosen = tuple(rows or GROUPS)
    unknown = sorted(set(chosen) - set(GROUPS))
    if unknown:
        raise ConfigError(f"bench regret: unknown row group {unknown[0]!r}; these are there: {', '.join(GROUPS)}.")
    numbers = list(range(seeds)) if isinstance(seeds, int) else list(seeds)
    if not numbers:
        raise ConfigError("bench regret: seeds must name at least one.")
    with progress_bars() as bars:
        cells = {"fresh": fresh, "workers": workers, "folder": Path(folder)}
        bench = _Bench(parts, find_data(data), numbers, bars, cells)
        return [row for group in GROUPS if group in chosen for row in bench.rows(group)]


def find_data(data: str | None) -> Places:
    """The foreign data in ``data`` or, for what that does not hold, in the folder PREFRL_DATA."""
    usual = os.environ.get("PREFRL_DATA") or None
    found = Places(None, ()) if usual is None else _in_folder(Path(usual), "PREFRL_DATA")
    if data is None:
        return found
    path = Path(data)
    if path.is_file():
        if path.suffix != ".npz":
            raise ConfigError(f"data: {path} is no .npz file; give a file of preferences for row H, or a folder.")
        return found._replace(control=(path,))
    given = _in_folder(path, "data")
    return Places(given.delivery or found.delivery, given.control or found.control)


def _in_folder(folder: Path, name: str) -> Places:
    if not folder.is_dir():
        raise ConfigError(f"{name}: {folder} is no file and no folder. Is the path right?")
    delivery = next((f for f in (folder / "regret_human_prefs", folder) if (f / "human_data").is_dir()), None)
    control = [*folder.glob("*_human_train.npz"), *folder.glob("human_control_prefs/*_human_train.npz")]
    if delivery is None and not control:
        raise ConfigError(f"{name}: {folder} holds neither regret_human_prefs/ nor human_control_prefs/.")
    return Places(delivery, tuple(sorted(control)))


class Parts:
    """What is measured, and with which numbers; keys of configs/bench/regret.yaml."""

    def __init__(
        self,
        *,
        delivery: MakeEnv,
        random_grid: Callable[..., Any],
        double_integrator: MakeEnv,
        linear: MakeComparisonLearner,
        mlp: MakeComparisonLearner,
        fits: Mapping[str, Mapping[str, Any]],
        B5: Mapping[str, Any],
        B6: Mapping[str, Any],
        B7: Mapping[str, Any],
        B8: Mapping[str, Any],
        B9: Mapping[str, Any],
        B10: Mapping[str, Any],
        B13: Mapping[str, Any],
        H: Mapping[str, Any],
        speed: Mapping[str, Any],
        metaworld: Mapping[str, Any],
    ) -> None:
        self.delivery, self.random_grid, self.double_integrator = delivery, random_grid, double_integrator
        self.learners, self.fits = {"linear": linear, "mlp": mlp}, fits
        self.of = {
            "B5": B5, "B6": B6, "B7": B7, "B8": B8, "B9": B9, "B10": B10, "B13": B13, "H": H, "speed": speed,
            "metaworld": metaworld,
        }  # fmt: skip


class _Bench:
    """Measures each group once."""

    def __init__(self, parts: Parts, places: Places, seeds: list[int], bars: Bars, cells: dict[str, Any]) -> None:
        self._parts, self._places, self._seeds, self._bars, self._cells = parts, places, seeds, bars, cells
        self._measured: dict[str, tuple[list[Finding], float]] = {}

    def rows(self, group: str) -> list[dict[str, Any]]:
        reason = self._missing(group)
        if reason:
            return [_skipped(group, f"rows {group}", reason)]
        rows = to_rows(*self._measure(group))
        if group != "speed":
            return rows
        if self._places.delivery is None:
            return [_skipped("speed.tabular", "seconds of B1 to B7 together", NO_DELIVERY), *rows]
        seconds = sum(self._measure(name)[1] for name in TABULAR)
        total = at_most("speed.tabular", "seconds of B1 to B7 together", seconds, TABULAR_SECONDS)
        return [*to_rows([total], seconds), *rows]

    def _missing(self, group: str) -> str | None:
        if group in ON_PEOPLE and self._places.delivery is None:
            return NO_DELIVERY
        return NO_CONTROL if group == "H" and not self._places.control else None

    def _measure(self, group: str) -> tuple[list[Finding], float]:
        """Findings and seconds, measured now or before."""
        if group not in self._measured:
            begin = time.perf_counter()
            findings = self._find(group, lambda done, total: self._bars(group, done, total))
            self._measured[group] = findings, time.perf_counter() - begin
        return self._measured[group]

    def _find(self, group: str, show: Progress) -> list[Finding]:
        own, first = dict(self._parts.of.get(group, {})), {"seed": self._seeds[0]}
        if group == "metaworld":
            oracle = own.pop("oracle")
            results = train_metaworld(**own, **self._cells, seeds=self._seeds, show=show)
            return metaworld_findings(results, oracle=oracle)
        if group == "H":
            return measure_human(self._places.control, show, **own, seeds=self._seeds)
        if group == "B12":
            return measure_b12(show)
        if group == "B13":
            return measure_b13(self._regulator, show, learners=self._parts.learners, seeds=self._seeds, **own)
        if group in (*TABULAR, "B11"):
            measure = getattr(delivery_rows, f"measure_{group.lower()}")
            fitted = {**first, "fits": self._parts.fits} if group in ("B6", "B7") else {}
            return list(measure(self._delivery, show, **own, **fitted))
        if group == "B10":
            return tabular_rows.measure_b10(self._parts.random_grid, show, **own, **first)
        worlds: dict[str, Callable[..., list[Finding]]] = {
            "B8": tabular_rows.measure_b8, "B9": tabular_rows.measure_b9, "speed": tabular_rows.value_iteration_speed,
        }  # fmt: skip
        return worlds[group](self._parts.random_grid, show, **own, seeds=self._seeds)

    @cached_property
    def _delivery(self) -> Delivery:
        env: Any = self._parts.delivery(seed=0)
        return Delivery(env.unwrapped, self._places.delivery)

    @cached_property
    def _regulator(self) -> Regulator:
        env: Any = self._parts.double_integrator(seed=0)
        return Regulator(env.unwrapped)


def _skipped(id: str, what: str, reason: str) -> dict[str, Any]:
    nothing = dict.fromkeys(("value", "low", "high", "bar", "seconds"))
    return {"id": id, "what": what, **nothing, "holds": reason, "seeds": []}
