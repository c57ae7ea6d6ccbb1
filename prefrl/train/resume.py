"""Resuming: the same settings or an error, and Ctrl-C that waits for the step in progress."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from prefrl.errors import RunDirectoryError

__all__ = ["interrupt_after_step", "require_same_settings"]


def require_same_settings(file: Path, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Raise ``RunDirectoryError`` naming what differs: a resumed run must be the one that was interrupted.

    >>> require_same_settings(Path("c.safetensors"), {"seed": 0}, {"seed": 1})
    Traceback (most recent call last):
    ...
    prefrl.errors.RunDirectoryError: c.safetensors was made with seed=0, but now seed=1. ...
    """
    different = [key for key in sorted({*found, *wanted}) if found.get(key) != wanted.get(key)]
    if different:
        was = ", ".join(f"{key}={found.get(key)}" for key in different)
        now = ", ".join(f"{key}={wanted.get(key)}" for key in different)
        raise RunDirectoryError(f"{file} was made with {was}, but now {now}. Use the old values, or a new folder.")


@contextmanager
def interrupt_after_step() -> Iterator[Callable[[], bool]]:
    """Within the block, a first Ctrl-C only makes the yielded function true; a second one interrupts at once.

    A step that Ctrl-C cuts in half (critic updated, policy not) could not be resumed exactly. Signals reach
    the main thread only; elsewhere, and where Ctrl-C is ignored (``nohup``), the function stays false.
    """
    ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    if ignored or threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    requested = threading.Event()
    previous = signal.getsignal(signal.SIGINT)

    def handle(_number: int, _frame: FrameType | None) -> None:
        requested.set()
        signal.signal(signal.SIGINT, previous)

    signal.signal(signal.SIGINT, handle)
    try:
        yield requested.is_set
    finally:
        signal.signal(signal.SIGINT, previous)
