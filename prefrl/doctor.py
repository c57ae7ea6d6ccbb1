"""``prefrl doctor``: what works on this machine, each failure with its fix. Only what training needs fails.

Answers what the tracker of every robot-learning framework is full of: which versions go together?
"""

from __future__ import annotations

import os
import pkgutil
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.table import Table

from prefrl.catalog import read_yaml
from prefrl.errors import ConfigError
from prefrl.schemas import DoctorConfig
from prefrl.signatures import hint

__all__ = ["Check", "doctor", "examine", "read_settings", "show"]

PYTHON = ((3, 11), (3, 14))  # from, and below
NEEDED_DISK = 2.0  # [GB] of a run with videos
PACKAGES = (
    "torch", "numpy", "gymnasium", "mujoco", "metaworld", "packaging", "stable-baselines3", "pot",
    "hydra-core", "safetensors", "pyarrow", "tensorboard", "rich", "imageio", "imageio-ffmpeg", "matplotlib",
)  # fmt: skip


@dataclass(frozen=True)
class Check:
    """One line of the table. ``failed`` hinders training; ``warning`` only what is written in ``found``."""

    name: str
    status: Literal["ok", "warning", "failed"]
    found: str
    fix: str = ""


ProbeBackends = Callable[[], Sequence[tuple[str, bool, str]]]
"""For each GL backend: (name, whether it draws a frame, what happened)."""


def doctor(words: Sequence[str]) -> int:
    """Examine this machine and print the table; returns the exit code."""
    settings = read_settings(words)
    return show(examine(folder=Path(settings.out), probe_backends=lambda: pkgutil.resolve_name(settings.rendering)()))


def read_settings(words: Sequence[str]) -> DoctorConfig:
    """configs/doctor.yaml with ``key=value`` words, without Hydra, which may be what is broken.

    >>> read_settings(["out=runs"]).out
    'runs'
    """
    values = read_yaml("doctor")
    for key, _, value in (word.partition("=") for word in words):
        if key not in values:
            raise ConfigError(f"Unknown key {key!r}.{hint(key, values)}")
        values[key] = value
    return DoctorConfig(**values)


def examine(*, folder: Path, probe_backends: ProbeBackends) -> list[Check]:
    """All checks, of this machine and of ``folder`` for runs."""
    return [
        check_python(sys.version_info[:2]),
        *(check_package(name) for name in PACKAGES),
        check_rendering(probe_backends),
        check_ffmpeg(),
        check_accelerator(),
        check_threads(),
        check_folder(folder),
        check_disk(folder),
    ]


def show(checks: Sequence[Check], console: Console | None = None) -> int:
    """Print the table and the fixes; returns the exit code: 1 if something that training needs is broken."""
    console = console or Console()
    color = {"ok": "green", "warning": "yellow", "failed": "red"}
    table = Table("check", "status", "found")
    for check in checks:
        table.add_row(check.name, f"[{color[check.status]}]{check.status}[/]", check.found)
    console.print(table)
    for check in checks:
        if check.fix:
            console.print(f"{check.name}: {check.fix}", soft_wrap=True, markup=False, highlight=False)
    broken = [check.name for check in checks if check.status == "failed"]
    console.print(f"broken: {', '.join(broken)}" if broken else "Training works on this machine.")
    return 1 if broken else 0


def check_python(version: tuple[int, ...]) -> Check:
    """Python in the supported range.

    >>> check_python((3, 9)).status, check_python((3, 12)).status
    ('failed', 'ok')
    """
    low, high = (".".join(map(str, bound)) for bound in PYTHON)
    found = ".".join(map(str, version))
    if PYTHON[0] <= version < PYTHON[1]:
        return Check("python", "ok", found)
    return Check("python", "failed", found, f"Use Python >= {low} and < {high}: make demo PYTHON=python{low}")


def check_package(name: str) -> Check:
    try:
        return Check(name, "ok", metadata.version(name))
    except metadata.PackageNotFoundError:
        fix = 'Install what prefrl needs: pip install -c constraints.txt -e ".[dev]"'
        return Check(name, "failed", "not installed", fix)


def check_rendering(probe_backends: ProbeBackends) -> Check:
    """Which GL backend really draws a frame. Training never needs one; videos do."""
    try:
        probed = probe_backends()
    except Exception as error:  # noqa: BLE001  (whatever a broken package raises when imported is the finding)
        fix = "Videos are left out. Install first what fails here; if nothing does, reinstall mujoco."
        reason = str(error).partition("\n")[0]
        return Check("rendering", "warning", f"the probe failed: {type(error).__name__}: {reason}", fix)
    working = [name for name, works, _ in probed if works]
    found = "; ".join(f"{name}: {message}" for name, _, message in probed)
    if working:
        return Check("rendering", "ok", found)
    fix = "Videos are left out. Install a renderer: apt install libegl1 libgl1-mesa-dri, or libosmesa6."
    return Check("rendering", "warning", found, fix)


def check_ffmpeg() -> Check:
    """The ffmpeg that imageio-ffmpeg carries, or that of the system."""
    fix = "Videos cannot be written. Reinstall imageio-ffmpeg, or set IMAGEIO_FFMPEG_EXE to an ffmpeg."
    try:
        import imageio_ffmpeg  # heavy for a table of versions, and may be broken

        program = imageio_ffmpeg.get_ffmpeg_exe()
        done = subprocess.run([program, "-version"], capture_output=True, text=True, check=True, timeout=30)
    except (ImportError, OSError, RuntimeError, subprocess.SubprocessError) as error:
        return Check("ffmpeg", "warning", str(error).partition("\n")[0], fix)
    return Check("ffmpeg", "ok", " ".join(done.stdout.split()[:3]))


def check_accelerator() -> Check:
    """Which accelerator torch sees; none is fine."""
    try:
        import torch  # seconds
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        fix = 'Reinstall torch: pip install -c constraints.txt -e ".[dev]"'
        return Check("accelerator", "failed", f"torch cannot be imported: {error}", fix)
    if not torch.cuda.is_available():
        return Check("accelerator", "ok", f"none: everything runs on the CPU (torch {torch.__version__})")
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    try:
        torch.zeros(1).cuda()
    except RuntimeError as error:
        fix = "Training runs on the CPU and does not need it. Update the driver, or install the torch that fits it."
        return Check("accelerator", "warning", str(error).partition("\n")[0], fix)
    found = f"{', '.join(names)} (CUDA {torch.version.cuda}); not used, training runs on the CPU"
    return Check("accelerator", "ok", found)


def check_threads() -> Check:
    """Cores, and whether a variable of the shell asks for more threads than there are."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    asked = os.environ.get("OMP_NUM_THREADS", "")
    found = f"{cores} cores, OMP_NUM_THREADS={asked or 'not set'}"
    if asked.isdigit() and int(asked) > cores:
        fix = f"More threads than cores is slow: unset OMP_NUM_THREADS, or set at most {cores}."
        return Check("threads", "warning", found, fix)
    return Check("threads", "ok", found)


def check_folder(folder: Path) -> Check:
    """Whether runs can be written to ``folder`` (or the nearest one above it that exists)."""
    place = _existing(folder)
    try:
        with tempfile.TemporaryFile(dir=place) as file:
            file.write(b"x")
    except OSError as error:
        fix = "Choose a folder of your own with out=PATH."
        return Check("write access", "failed", f"{place}: {error.strerror}", fix)
    return Check("write access", "ok", str(place.resolve()))


def check_disk(folder: Path) -> Check:
    free = shutil.disk_usage(_existing(folder)).free / 1e9
    if free < NEEDED_DISK:
        fix = f"A run with videos needs up to {NEEDED_DISK:.0f} GB: free some space."
        return Check("disk", "warning", f"{free:.1f} GB free", fix)
    return Check("disk", "ok", f"{free:.1f} GB free")


def _existing(folder: Path) -> Path:
    return next(place for place in (folder, *folder.absolute().parents) if place.is_dir())
