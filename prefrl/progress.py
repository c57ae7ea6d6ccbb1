"""Progress on the terminal: one bar a job on a terminal, one line a finished job elsewhere (logs, CI)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

__all__ = ["Bars", "progress_bars", "progress_note"]


class Bars:
    """``bars(name, done, total)`` draws or moves the bar of that name; a note stands beside it."""

    def __init__(self, progress: Progress, console: Console) -> None:
        self._progress, self._console = progress, console
        self._tasks: dict[str, TaskID] = {}

    def __call__(self, name: str, done: int, total: int, note: str = "") -> None:
        if name not in self._tasks:
            self._tasks[name] = self._progress.add_task(name, total=total, note=note)
        task = self._tasks[name]
        was_finished = self._progress.tasks[task].finished
        self._progress.update(task, completed=done, total=total, note=note)
        if done >= total and not was_finished and not self._console.is_terminal:
            self._console.print(f"{name}: {done}/{total} done" + (f" ({note})" if note else ""))


@contextmanager
def progress_bars(console: Console | None = None) -> Iterator[Bars]:
    """Bars that live for the block."""
    console = console or Console()
    columns = (
        TextColumn("{task.description:<24}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    progress = Progress(*columns, console=console, disable=not console.is_terminal)
    with progress:
        yield Bars(progress, console)


def progress_note(known: Mapping[str, float]) -> str:
    """Answers, accuracy of the reward and return, as far as metrics say them.

    >>> progress_note({"answered": 40, "reward_accuracy": 0.871, "true_return": -3.25})
    '40 answers · reward 87 % right · return −3.25'
    """
    told = {"answered": "{:.0f} answers", "reward_accuracy": "reward {:.0%} right", "true_return": "return {:.4g}"}
    parts = [text.format(known[name]) for name, text in told.items() if name in known]
    return " · ".join(parts).replace("%", " %").replace("-", "−")
