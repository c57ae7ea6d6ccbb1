"""Resumable benchmark cells: each is one ``prefrl train`` in a single-threaded process of its own.

A finished cell leaves ``cell.json`` with its results, its overrides and the code version that made it, and is not run
again until ``fresh=true``; a killed benchmark continues with the cells that are missing.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefrl.errors import PrefrlError
from prefrl.files import read_json, write_json

__all__ = ["Cell", "CellResult", "code_version", "run_cells", "warn_of_old_code"]


@dataclass(frozen=True)
class Cell:
    """One training run: a name that is unique in its benchmark, a seed, and the overrides of ``prefrl train``."""

    name: str
    seed: int
    overrides: tuple[str, ...]

    @property
    def folder(self) -> str:
        return f"{self.name}-seed{self.seed}"


@dataclass(frozen=True)
class CellResult:
    """stages: the result of every stage of the run · seconds: wall clock since it was begun, pauses included
    code: version that made it.
    """

    cell: Cell
    stages: dict[str, Any]
    seconds: float
    code: str


def run_cells(
    cells: Sequence[Cell],
    *,
    folder: Path,
    workers: int,
    fresh: bool,
    show: Callable[[int, int], None],
    allowed: Callable[[PrefrlError], bool] = lambda error: False,
) -> list[CellResult]:
    """The results of all cells, in order; ``workers`` processes at a time; ``show(done, total)`` draws progress.

    A cell that fails with an ``allowed`` error has no result; any other failure is raised.
    """
    results: dict[Cell, CellResult] = {}
    show(0, len(cells))
    with ThreadPoolExecutor(workers) as pool:
        futures = {pool.submit(run_cell, cell, folder=folder, fresh=fresh): cell for cell in cells}
        try:
            for done, future in enumerate(as_completed(futures), start=1):
                try:
                    results[futures[future]] = future.result()
                except PrefrlError as error:
                    if not allowed(error):
                        raise
                show(done, len(cells))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return [results[cell] for cell in cells if cell in results]


def run_cell(cell: Cell, *, folder: Path, fresh: bool) -> CellResult:
    """The stored result of a cell, or a new one.

    A finished cell is kept, whatever code made it, as long as its overrides are these. An unfinished one continues
    only if overrides and code are those that began it.
    """
    place = folder / cell.folder
    finished, started = place / "cell.json", place / "started.json"
    origin = {"overrides": list(cell.overrides), "code": code_version()}
    if finished.is_file() and not fresh:
        found = read_json(finished)
        if found["overrides"] == origin["overrides"]:
            return CellResult(cell, found["stages"], found["seconds"], found["code"])
    if fresh or finished.is_file() or not started.is_file() or read_json(started) != origin:
        shutil.rmtree(place, ignore_errors=True)
        write_json(started, origin)
    _train(cell, place / "run")
    seconds = time.time() - started.stat().st_mtime
    stages = {file.stem: read_json(file) for file in sorted((place / "run" / "stages").glob("*.json"))}
    write_json(finished, {"stages": stages, "seconds": seconds, **origin})
    return CellResult(cell, stages, seconds, str(origin["code"]))


def _train(cell: Cell, run: Path) -> None:
    usual = [f"seed={cell.seed}", f"out={run}", "workers=1", "threads=1", "tensorboard=false"]
    command = ["train", *cell.overrides, *usual]
    if (run / "stages").is_dir():
        command = ["resume", str(run), "workers=1"]
    else:
        shutil.rmtree(run, ignore_errors=True)  # killed before its first stage was done
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-m", "prefrl", *command], env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        raise PrefrlError(f"Cell {cell.folder} failed (exit code {done.returncode}):\n{done.stderr[-2000:]}")


def warn_of_old_code(results: Sequence[CellResult]) -> None:
    """Say so where kept cells were made by other code than this."""
    old = sorted({r.code for r in results} - {code_version()})
    if old:
        print(f"note: some cells were made by other code versions ({', '.join(old)}); fresh=true makes them anew.")


def code_version() -> str:
    """The first 12 digits of a hash over our Python and YAML files: equal code, equal version, with or without git."""
    root = Path(__file__).resolve().parents[2]
    digest = hashlib.sha256()
    for package in ("prefrl", "agents", "envs", "configs"):
        for file in sorted((root / package).rglob("*")):
            if file.suffix in (".py", ".yaml"):
                digest.update(file.relative_to(root).as_posix().encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:12]
