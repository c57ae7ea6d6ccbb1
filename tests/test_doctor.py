"""The doctor: each failure is seen, has its fix, and fails the command only where training would fail."""

import builtins
import io
import os
import subprocess
import sys
from importlib import metadata

import imageio_ffmpeg
import pytest
import torch
from rich.console import Console

from prefrl import doctor
from prefrl.cli import main
from prefrl.doctor import Check, examine, show

DRAWS = [("egl", True, "draws frames")]


def shown(checks):
    console = Console(file=io.StringIO(), width=100)
    return show(checks, console), console.file.getvalue()


def test_a_sound_machine_can_train(tmp_path):
    """Here everything that training needs is there, and the table names each package with its version."""
    code, text = shown(examine(folder=tmp_path, probe_backends=lambda: DRAWS))
    assert code == 0
    assert "Training works on this machine." in text
    assert metadata.version("torch") in text
    assert metadata.version("metaworld") in text


def test_the_command_prints_the_table(tmp_path, capsys):
    """`prefrl doctor` reads its keys, asks the named probe, and ends with 0 where training works."""
    assert main(["doctor", f"out={tmp_path}", "rendering=toy_parts.probe"]) == 0
    out = capsys.readouterr().out
    assert "toy: draws frames" in out
    assert "Training works on this machine." in out


def test_a_missing_package_fails_with_the_command_that_installs_it(monkeypatch):
    """A package that is not installed is an error with its fix."""

    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(doctor.metadata, "version", missing)
    code, text = shown([doctor.check_package("metaworld")])
    assert code == 1
    assert "not installed" in text
    assert "pip install -c constraints.txt" in text
    assert "broken: metaworld" in text


def test_an_old_python_fails():
    """A Python out of range says which one to use."""
    check = doctor.check_python((3, 10))
    assert check.status == "failed"
    assert "3.11" in check.fix


@pytest.mark.parametrize(
    ("probed", "status"),
    [
        (DRAWS, "ok"),
        ([("egl", False, "no library"), ("osmesa", True, "draws frames")], "ok"),
        ([("egl", False, "no library"), ("osmesa", False, "draws only black frames")], "warning"),
        ([], "warning"),
    ],
)
def test_rendering_is_a_warning_at_most(probed, status):
    """One backend that draws is enough; none is a warning with a fix, because training renders nothing."""
    check = doctor.check_rendering(lambda: probed)
    assert check.status == status
    assert all(message in check.found for _, _, message in probed)
    assert ("apt install" in check.fix) == (status == "warning")
    assert shown([check])[0] == 0


def test_a_probe_that_breaks_is_a_warning():
    """A broken MuJoCo does not break the doctor."""

    def broken():
        raise ImportError("libEGL.so.1: cannot open shared object file")

    check = doctor.check_rendering(broken)
    assert check.status == "warning"
    assert "libEGL" in check.found


HIDE = """
import importlib.abc, sys
class Hide(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in HIDDEN:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Hide())
from importlib import metadata
real = metadata.version
def version(name):
    if name.removesuffix("-core") in HIDDEN:
        raise metadata.PackageNotFoundError(name)
    return real(name)
metadata.version = version
from prefrl.cli import main
sys.exit(main(["doctor"]))
"""


@pytest.mark.parametrize("hidden", ["hydra", "metaworld", "mujoco", "torch"])
def test_the_doctor_survives_what_it_diagnoses(hidden, tmp_path):
    """Without a package that everything else needs, there is a table that says so, and no traceback."""
    done = subprocess.run(
        [sys.executable, "-c", f"HIDDEN = {{{hidden!r}}}\n{HIDE}"],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr + done.stdout
    assert "not installed" in done.stdout
    assert "pip install -c constraints.txt" in done.stdout
    assert f"broken: {hidden}" in done.stdout


def test_a_missing_ffmpeg_is_a_warning(monkeypatch):
    """Without ffmpeg there are no videos, but training works."""

    def none():
        raise RuntimeError("No ffmpeg exe could be found.")

    monkeypatch.setattr(imageio_ffmpeg, "get_ffmpeg_exe", none)
    check = doctor.check_ffmpeg()
    assert check.status == "warning"
    assert "imageio-ffmpeg" in check.fix


def test_an_ffmpeg_that_does_not_run_is_a_warning(monkeypatch):
    """That it exists is not enough: it is run."""

    def fail(command, **kwargs):
        raise subprocess.CalledProcessError(127, command)

    monkeypatch.setattr(doctor.subprocess, "run", fail)
    assert doctor.check_ffmpeg().status == "warning"


def test_a_torch_that_cannot_be_imported_fails(monkeypatch):
    """Training needs torch."""
    real = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name == "torch":
            raise ImportError("libtorch_cpu.so: wrong ELF class")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    check = doctor.check_accelerator()
    assert check.status == "failed"
    assert "wrong ELF class" in check.found
    assert "Reinstall torch" in check.fix


def test_an_accelerator_that_cannot_compute_is_a_warning(monkeypatch):
    """A GPU that torch sees and cannot use is said; the CPU still trains."""

    def fail(self):
        raise RuntimeError("no kernel image is available for execution on the device")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "old card")
    monkeypatch.setattr(torch.Tensor, "cuda", fail)
    check = doctor.check_accelerator()
    assert check.status == "warning"
    assert "no kernel image" in check.found
    assert check.fix


def test_an_unwritable_folder_fails(tmp_path, monkeypatch):
    """Where nothing can be written, nothing can be trained; the fix is another folder."""

    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(doctor.tempfile, "TemporaryFile", refuse)
    check = doctor.check_folder(tmp_path / "new" / "runs")
    assert check.status == "failed"
    assert "Permission denied" in check.found
    assert "out=PATH" in check.fix


def test_a_folder_that_does_not_exist_yet_is_judged_by_the_one_above(tmp_path):
    """A run directory need not exist before the run, and the doctor does not make it."""
    assert doctor.check_folder(tmp_path / "new" / "runs").status == "ok"
    assert list(tmp_path.iterdir()) == []


def test_little_disk_space_is_a_warning(tmp_path, monkeypatch):
    """A nearly full disk is said before a run fills it."""
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 5e8})())
    check = doctor.check_disk(tmp_path)
    assert (check.status, check.found) == ("warning", "0.5 GB free")


def test_too_many_threads_is_a_warning(monkeypatch):
    """A shell that asks for more threads than cores makes everything slow."""
    monkeypatch.setenv("OMP_NUM_THREADS", "4096")
    assert doctor.check_threads().status == "warning"
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert doctor.check_threads().status == "ok"


def test_one_failure_is_enough():
    """The exit code is 1 if any check failed, and the message names which."""
    checks = [
        Check("a", "ok", ""),
        Check("b", "failed", "gone", "mend it"),
        Check("c", "warning", "", "or not"),
    ]
    code, text = shown(checks)
    assert code == 1
    assert "b: mend it" in text
    assert "broken: b" in text
