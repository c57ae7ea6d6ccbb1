"""Work side by side in processes of its own: equal to one after another, stopped by Ctrl-C without losing a step."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait

__all__ = ["run_side_by_side"]


def run_side_by_side(
    names: Sequence[str], work: Callable[[str], None], *, workers: int, watch: Callable[[str], None]
) -> None:
    """Call ``work(name)`` of every name in new processes, ``workers`` at a time, and ``watch(name)`` here meanwhile.

    work must be picklable, and keep what it has done when KeyboardInterrupt comes. On an error here or in a worker,
    every worker is stopped that way, and the error is raised.
    """
    waiting = list(names)
    running: dict[Future[None], str] = {}
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_start_worker) as pool:
        try:
            while waiting or running:
                while waiting and len(running) < workers:  # no more: what is queued could not be taken back
                    name = waiting.pop(0)
                    running[pool.submit(_work, work, name)] = name
                done, _ = wait(running, timeout=0.5, return_when=FIRST_COMPLETED)
                for name in running.values():
                    watch(name)
                for future in done:
                    running.pop(future)
                    future.result()
        except BaseException:
            _stop(running)
            raise


def _start_worker() -> None:
    """In a new worker: Ctrl-C is for the work in progress only, and no worker outlives its parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end_with_parent() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()


def _work(work: Callable[[str], None], name: str) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        work(name)
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def _stop(running: dict[Future[None], str]) -> None:
    """Let every worker reach its checkpoint: a terminal's Ctrl-C reaches them all, a signal to us alone does not."""
    _, alive = wait(running, timeout=2)
    for child in multiprocessing.active_children() if alive else ():
        if child.pid is not None and child.is_alive():
            os.kill(child.pid, signal.SIGINT)
    _, alive = wait(alive, timeout=20)
    for child in multiprocessing.active_children() if alive else ():
        child.terminate()
