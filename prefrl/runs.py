"""A run directory: resolved config, versions, one folder a stage, metrics as JSONL and TensorBoard events.

    RUN/config.yaml  versions.json  stages/<stage>.json  <stage>/metrics.jsonl  <stage>/checkpoint.safetensors …

A stage is finished when ``stages/<stage>.json`` is there; it is written last and atomically, so that ``prefrl resume``
can trust it. Within a stage, training continues from its last checkpoint.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

from prefrl.errors import InvalidData, PrefrlError, RunDirectoryError
from prefrl.files import atomic_path, read_json, write_json

__all__ = ["MetricLogger", "RunDirectory", "read_metrics", "versions"]

RUN_VERSION = 1
REPORTED_PACKAGES = (
    "prefrl", "torch", "numpy", "gymnasium", "mujoco", "metaworld", "stable-baselines3", "pot", "hydra-core",
    "safetensors", "pyarrow",
)  # fmt: skip


class RunDirectory:
    """One run's folder. Make it with ``create`` or ``open``."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(cls, path: Path | str, *, config: str) -> RunDirectory:
        """Make a new run directory; ``config`` is the resolved YAML. A used folder is refused, and left as it is."""
        path = Path(path)
        if path.exists() and not _is_new(path):
            raise RunDirectoryError(
                f"{path} is already used. Continue it with `prefrl resume {shlex.quote(str(path))}`, "
                "or choose another with out=PATH."
            )
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunDirectoryError(
                f"Cannot make the run directory {path}: {error.strerror}. Choose another with out=PATH."
            ) from error
        write_json(path / "versions.json", versions())
        with atomic_path(path / "config.yaml") as temporary:  # last: with it, the run can be resumed
            temporary.write_text(config, encoding="utf-8")
        return cls(path)

    @classmethod
    def open(cls, path: Path | str) -> RunDirectory:
        path = Path(path)
        if not (path / "config.yaml").is_file() or not (path / "versions.json").is_file():
            raise RunDirectoryError(
                f"{path} is not a run directory of prefrl (it has no config.yaml and versions.json)."
            )
        found = read_json(path / "versions.json").get("run_version")
        if found != RUN_VERSION:
            raise RunDirectoryError(f"{path} has run version {found!r}, expected {RUN_VERSION}: start a new run.")
        return cls(path)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """For the block, no other process may work in this run; a killed process lets go by itself."""
        with (self.path / ".lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise RunDirectoryError(
                    f"{self.path} is in use by another process. Wait for it, or stop it."
                ) from error
            yield

    def stage(self, name: str) -> Path:
        """The folder of a stage, for example ``arms/aligned``."""
        folder = self.path / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def result(self, name: str) -> dict[str, Any] | None:
        """What a finished stage left, or None while it is unfinished."""
        file = self._stage_file(name)
        return read_json(file) if file.is_file() else None

    def finish(self, name: str, result: dict[str, Any]) -> dict[str, Any]:
        """Mark a stage as finished with its JSON result."""
        write_json(self._stage_file(name), result)
        return result

    def _stage_file(self, name: str) -> Path:
        return self.path / "stages" / f"{name.replace('/', '.')}.json"


def _is_new(path: Path) -> bool:
    """Empty, or holding only what a run leaves that was killed while it was made."""
    return path.is_dir() and all(
        entry.is_file() and (entry.name == "versions.json" or (entry.name.startswith(".") and entry.suffix == ".tmp"))
        for entry in path.iterdir()
    )


class MetricLogger:
    """Scalars by step, to ``metrics.jsonl`` (the source of truth) and TensorBoard events in the same folder.

    Lines and events after ``resume_step`` are cut off first, so that no step stands twice.
    """

    def __init__(self, folder: Path, *, resume_step: int = 0, tensorboard: bool = True) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / "metrics.jsonl"
        kept = [row for row in read_metrics(folder) if row["step"] <= resume_step] if resume_step else []
        with atomic_path(self._path) as temporary:
            temporary.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
        self._file = self._path.open("a", encoding="utf-8")
        self._events: Any = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter  # heavy, and only here

            # also without a checkpoint: a run killed before its first one has left events
            self._events = SummaryWriter(str(folder), purge_step=resume_step + 1)

    def log(self, step: int, /, **scalars: float) -> None:
        """Write scalars; NaN or infinity is an error at once, never a silent training run."""
        values = {name: float(value) for name, value in scalars.items()}
        for name, value in values.items():
            if not math.isfinite(value):
                raise InvalidData(
                    f"{self._path}: {name} became {value} at step {step}. "
                    "Lower the learning rate, or check the rewards."
                )
        with self._writing():
            self._file.write(json.dumps({"step": step, **values}) + "\n")
            self._file.flush()
            if self._events is not None:
                for name, value in values.items():
                    self._events.add_scalar(name, value, step)

    def close(self) -> None:
        with self._writing():
            try:
                self._file.close()  # tries again to write what a full disk refused
            finally:
                if self._events is not None:
                    self._events.close()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """A full disk is an error that names the file."""
        try:
            yield
        except OSError as error:
            raise PrefrlError(
                f"Cannot write {self._path} or the events beside it: {error.strerror or error}. "
                "Free space, then continue with `prefrl resume`."
            ) from error

    def __enter__(self) -> MetricLogger:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_metrics(folder: Path) -> list[dict[str, float]]:
    """The rows of ``metrics.jsonl``; a last line that a kill cut short is dropped."""
    path = folder / "metrics.jsonl"
    rows: list[dict[str, float]] = []
    if not path.is_file():
        return rows
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def versions() -> dict[str, Any]:
    """What ran: package versions, Python, machine, and the git state of our source, if it is a checkout."""
    found = {}
    for package in REPORTED_PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return {
        "run_version": RUN_VERSION,
        "packages": found,
        "python": sys.version.split()[0],
        "machine": {"system": platform.platform(), "cores": os.cpu_count()},
        "git": _git_state(),
    }


def _git_state() -> dict[str, Any] | None:
    """None where git does not track this file: an installed wheel may lie inside another project's checkout."""
    here = Path(__file__).resolve()
    try:
        _, commit, status = (
            subprocess.run(
                ["git", *command], cwd=here.parent, capture_output=True, text=True, check=True, timeout=10
            ).stdout.strip()
            for command in (
                ["ls-files", "--error-unmatch", here.name],
                ["rev-parse", "HEAD"],
                ["status", "--porcelain"],
            )
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return {"commit": commit, "dirty": bool(status)}
