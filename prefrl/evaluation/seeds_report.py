"""One report on many runs: means over seeds with bootstrap intervals, for settings side by side.

What differs in the seed alone is one group. Intervals are over seeds, each of which counts once (Agarwal et al. 2021,
arXiv 2108.13264: a run is the unit, not an episode); curves are means over seeds too, of rows as they were logged.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table as ConsoleTable

from prefrl.errors import ConfigError, RunDirectoryError
from prefrl.evaluation.intervals import Estimate, mean, stratified_bootstrap
from prefrl.evaluation.plots import Curve, colors_for, learning_curves
from prefrl.evaluation.report import Picture, Table
from prefrl.evaluation.seeds_page import write_page
from prefrl.evaluation.seeds_runs import SeedRun, differing_keys, is_run, read_run

__all__ = [
    "Group", "Row", "each_once", "find_runs", "groups", "mean_curve", "place_of_report", "report_seeds", "rows",
]  # fmt: skip

CURVES = {  # name in metrics.jsonl → what it is
    "true_return": "true return of the episodes learned from",
    "return": "return of evaluation episodes",
    "success": "success",
}
CAPTION = (
    "Means over seeds with 95 % bootstrap intervals over seeds, each of which counts as the mean of its evaluation "
    "episodes. Of few seeds such an interval is too narrow, and of one there is none. Success counts at any step."
)


@dataclass(frozen=True, kw_only=True)
class Group:
    """Runs of one task that differ in the seed alone; ``name`` says how they differ from the other groups."""

    task: str
    name: str
    runs: tuple[SeedRun, ...]

    def finished(self, arm: str) -> list[SeedRun]:
        return [run for run in self.runs if arm in run.results]

    @property
    def arms(self) -> list[str]:
        return list(dict.fromkeys(arm for run in self.runs for arm in run.arms))


@dataclass(frozen=True, kw_only=True)
class Row:
    """An arm of a group: (S,) seeds with the mean return and success of each, and the estimates over them."""

    group: Group
    arm: str
    seeds: tuple[int, ...]
    returns: np.ndarray  # (S,)
    successes: np.ndarray  # (S,)
    mean_return: Estimate
    mean_success: Estimate


def find_runs(paths: Sequence[Path | str]) -> list[Path]:
    """The run directories among ``paths`` and below those that are none, each once; an error where there is none."""
    found: dict[Path, Path] = {}
    for path in map(Path, paths):
        below = [path] if is_run(path) else list(_below(path))
        if not below:
            raise RunDirectoryError(f"{path} is not a run directory of prefrl, and none is below it.")
        for run in below:
            found.setdefault(run.resolve(), run)
    return list(found.values())


def _below(path: Path) -> Iterator[Path]:
    """Runs in the tree under a folder; what is inside a run is its own."""
    for folder in sorted(entry for entry in path.iterdir() if entry.is_dir()) if path.is_dir() else ():
        if is_run(folder):
            yield folder
        elif not folder.name.startswith("."):
            yield from _below(folder)


def place_of_report(paths: Sequence[Path | str], out: str | None) -> Path:
    """Where the page goes: ``out``, a .html file or a folder; else into the folder that all runs share."""
    if out is None:
        parents = [Path(path).absolute().parent if is_run(Path(path)) else Path(path).absolute() for path in paths]
        common = Path(os.path.commonpath(parents))
        place = common / "report.html"
    else:
        place = Path(out) if Path(out).suffix == ".html" else Path(out) / "report.html"
    if is_run(place.parent):
        raise ConfigError(f"{place} would be in a run, which has a report of its own. Choose another with out=PATH.")
    return Path(os.path.relpath(place)) if out is None and place.is_relative_to(Path.cwd()) else place


def groups(runs: Sequence[SeedRun]) -> list[Group]:
    """Runs by task and by their configuration without the seed."""
    gathered: dict[tuple[str, str], list[SeedRun]] = {}
    for run in runs:
        gathered.setdefault((run.task, run.settings), []).append(run)
    found = []
    for task in dict.fromkeys(task for task, _ in gathered):
        members = [sorted(some, key=lambda run: run.seed) for (of, _), some in gathered.items() if of == task]
        names = _names([some[0] for some in members])
        found += [Group(task=task, name=name, runs=tuple(some)) for name, some in zip(names, members, strict=True)]
    return found


def each_once(runs: Sequence[SeedRun]) -> tuple[list[SeedRun], list[str]]:
    """Of runs with equal configurations and seeds, which are one result, the one that has come farthest; and notes."""
    kept: dict[tuple[str, str, int], SeedRun] = {}
    for run in sorted(runs, key=lambda run: -len(run.results)):  # stable: the first of equals
        kept.setdefault((run.task, run.settings, run.seed), run)
    notes = [
        f"{run.path} is left out: {other.path} has the same configuration and seed."
        for run in runs
        if (other := kept[run.task, run.settings, run.seed]) is not run
    ]
    return [run for run in runs if kept[run.task, run.settings, run.seed] is run], notes


def _names(runs: Sequence[SeedRun]) -> list[str]:
    """How each of these, one a group, differs from the others: by up to three keys, or by the words of its start."""
    if len(runs) == 1:
        return [""]
    keys = differing_keys([run.flat for run in runs])
    if len(keys) <= 3:
        return [", ".join(f"{key}={run.flat.get(key, 'not set')}" for key in keys) for run in runs]
    words = differing_keys([run.words for run in runs])
    said = [", ".join(f"{key}={run.words.get(key, run.flat.get(key, 'default'))}" for key in words) for run in runs]
    if words and len(set(said)) == len(runs):
        return said
    shown = keys[:3]
    said = [", ".join(f"{key}={run.flat.get(key, 'not set')}" for key in shown) for run in runs]
    more = f" and {len(keys) - 3} more keys"
    return [f"{i + 1}: {text}{more}" for i, text in enumerate(said)]


def rows(some: Sequence[Group]) -> list[Row]:
    """Every arm of every group that at least one seed has finished."""
    rng = np.random.default_rng(0)
    return [_row(group, arm, rng) for group in some for arm in group.arms if group.finished(arm)]


def _row(group: Group, arm: str, rng: np.random.Generator) -> Row:
    runs = group.finished(arm)
    returns = np.array([np.mean(run.results[arm]["returns"]) for run in runs])
    successes = np.array([np.mean(run.results[arm]["success"]) for run in runs], dtype=np.float64)
    return Row(
        group=group,
        arm=arm,
        seeds=tuple(run.seed for run in runs),
        returns=returns,
        successes=successes,
        mean_return=stratified_bootstrap(returns[:, None], mean, rng=rng),
        mean_success=stratified_bootstrap(successes[:, None], mean, rng=rng),
    )


def report_seeds(paths: Sequence[Path | str], out: str | None = None) -> Path:
    """Write one page on all runs at and below ``paths``, print its table, and return where it is."""
    place = place_of_report(paths, out)
    runs, notes = each_once([read_run(path) for path in find_runs(paths)])
    grouped = groups(runs)
    measured = rows(grouped)
    missing = [*(text for run in runs for text in run.missing), *notes]
    show_table(measured, missing)
    write_page(
        place,
        title=f"prefrl: {len(runs)} runs",
        summary=_summary(grouped),
        missing=missing,
        tables=[table for task in _tasks(grouped) for table in _tables(task, measured)],
        pictures=[
            picture
            for task in _tasks(grouped)
            for metric in CURVES
            for picture in _pictures([group for group in grouped if group.task == task], metric, task)
        ],
        runs=runs,
    )
    return place


def show_table(measured: Sequence[Row], missing: Sequence[str]) -> None:
    """Print one row an arm of a group, and what is missing."""
    tasks = {row.group.task for row in measured}
    for task in dict.fromkeys(row.group.task for row in measured):
        some = [row for row in measured if row.group.task == task]
        named = any(row.group.name for row in some)
        table = ConsoleTable(title=task if len(tasks) > 1 else None, title_justify="left")
        for column in (*(["runs with"] if named else []), "policy", "seeds", "mean return", "95 % interval", "success",
                       "95 % interval"):  # fmt: skip
            table.add_column(column)
        for row in some:
            table.add_row(*([row.group.name] if named else []), row.arm, str(len(row.seeds)), *_cells(row))
        Console(width=None if Console().is_terminal else 140).print(table)
    for text in missing:
        print(f"missing: {text}")


def _cells(row: Row) -> tuple[str, str, str, str]:
    """Mean return and success, each with its interval, which one seed does not have."""
    several = len(row.seeds) > 1
    high_return = f"{_number(row.mean_return.low)} – {_number(row.mean_return.high)}" if several else ""
    high_success = f"{row.mean_success.low:.0%} – {row.mean_success.high:.0%}" if several else ""
    return _number(row.mean_return.value), high_return, f"{row.mean_success.value:.0%}", high_success


def _number(value: Any) -> str:
    return f"{float(value):,.4g}".replace("-", "−")


def _tasks(grouped: Sequence[Group]) -> list[str]:
    return list(dict.fromkeys(group.task for group in grouped))


def _summary(grouped: Sequence[Group]) -> list[str]:
    texts = []
    for task in _tasks(grouped):
        some = [group for group in grouped if group.task == task]
        seeds = "; ".join(
            f"{group.name + ': ' if group.name else ''}seeds {', '.join(str(run.seed) for run in group.runs)}"
            for group in some
        )
        texts.append(f"{task}: {seeds}.")
    return texts


def _tables(task: str, measured: Sequence[Row]) -> list[Table]:
    """The means of one task, and under them what each seed has."""
    some = [row for row in measured if row.group.task == task]
    if not some:
        return []
    columns = ("Policy", "Seeds", "Mean return", "95 % interval", "Success", "95 % interval")
    named = [(_called(row), row) for row in some]
    return [
        Table(
            title=task,
            columns=columns,
            rows=tuple((name, str(len(row.seeds)), *_cells(row)) for name, row in named),
            caption=CAPTION,
        ),
        Table(
            title=f"{task}: each seed",
            columns=("Policy", "Seed", "Mean return", "Success"),
            rows=tuple(
                (name, str(seed), _number(value), f"{success:.0%}")
                for name, row in named
                for seed, value, success in zip(row.seeds, row.returns, row.successes, strict=True)
            ),
        ),
    ]


def _called(row: Row) -> str:
    return f"{row.arm} ({row.group.name})" if row.group.name else row.arm


def mean_curve(group: Group, arm: str, metric: str) -> tuple[list[int], Estimate] | None:
    """(K,) steps that every finished seed has logged, and the mean over seeds there with its interval; None if none."""
    curves = [run.curve(arm, metric) for run in group.finished(arm)]
    shared = sorted(set.intersection(*(set(curve) for curve in curves))) if curves else []
    if not shared:
        return None
    values = np.array([[curve[step] for step in shared] for curve in curves])  # (S, K)
    rng = np.random.default_rng(0)
    return shared, stratified_bootstrap(values, lambda scores: scores.mean(-2), rng=rng)


def _pictures(some: Sequence[Group], metric: str, task: str) -> list[Picture]:
    """All arms of a single group on one picture; of several groups, one picture an arm with a line for each group."""
    arms = list(dict.fromkeys(arm for group in some for arm in group.arms))
    lines = {(arm, group.name): found for arm in arms for group in some if (found := mean_curve(group, arm, metric))}
    if len(some) == 1:
        pictures = [("", [(arm, found) for (arm, _), found in lines.items()])]
    else:
        pictures = [(arm, [(name, found) for (of, name), found in lines.items() if of == arm]) for arm in arms]
    return [_picture(arm, curves, metric, task) for arm, curves in pictures if curves]


def _picture(arm: str, found: Sequence[tuple[str, tuple[list[int], Estimate]]], metric: str, task: str) -> Picture:
    curves = [Curve(name, steps, over.value, over.low, over.high) for name, (steps, over) in found]
    title = f"{arm}: {metric.replace('_', ' ')}" if arm else metric.replace("_", " ").capitalize()
    percent = metric == "success"
    png = learning_curves(
        curves, title=title, xlabel="steps", ylabel=CURVES[metric], percent=percent,
        colors=colors_for([curve.name for curve in curves]),
    )  # fmt: skip
    ends = ", ".join(
        f"{curve.name} {curve.values[-1]:.0%}" if percent else f"{curve.name} {_number(curve.values[-1])}"
        for curve in curves
    )
    return Picture(
        title=title,
        png=png,
        alt=f"Mean over seeds at the end: {ends}.",
        caption=f"{task}: mean over seeds, band: 95 % bootstrap interval over seeds at each step; no smoothing",
    )
