"""Progress on the terminal: one bar a job on a terminal, one line a finished job elsewhere (logs, CI)."""

from __future__ import annotations

from collections.abc import Iterator
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

__all__ = ["Bars", "progress_bars"]


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
