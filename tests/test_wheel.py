"""The built wheel works alone: from another directory, with its configs inside."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).resolve().parents[1]
SHIPPED = ("prefrl", "agents", "envs", "configs", "pyproject.toml", "README.md", "LICENSE")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy, so that the build leaves nothing in the checkout."""
    source = tmp_path_factory.mktemp("source")
    for name in SHIPPED:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, source / name)
    command = [sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", "out"]
    subprocess.run(command, cwd=source, check=True, capture_output=True, timeout=120)
    (found,) = (source / "out").glob("*.whl")
    return found


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """Unpacked as pip does; the checkout is not on the path."""
    target = tmp_path_factory.mktemp("site")
    with ZipFile(wheel) as archive:
        archive.extractall(target)
    return target


def prefrl(installed, folder, *words):
    """Run the console script of the wheel in ``folder``."""
    code = "import sys; import prefrl; assert prefrl.__file__.startswith(sys.argv.pop(1)), prefrl.__file__\n"
    code += "from prefrl.cli import main; sys.exit(main())"
    environment = {**os.environ, "PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code, str(installed), *words]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_holds_packages_and_configs_and_nothing_else(wheel):
    """Three packages, and all configs inside prefrl; no tests, no caches."""
    names = ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"prefrl", "agents", "envs"}
    assert not [name for name in names if "__pycache__" in name or name.startswith("tests")]
    shipped = {name.removeprefix("prefrl/configs/") for name in names if name.endswith(".yaml")}
    assert shipped == {str(file.relative_to(ROOT / "configs")) for file in (ROOT / "configs").rglob("*.yaml")}


def test_the_console_script_is_declared(wheel):
    """pip makes the command ``prefrl``."""
    archive = ZipFile(wheel)
    (entry,) = [name for name in archive.namelist() if name.endswith("entry_points.txt")]
    assert "prefrl = prefrl.cli:main" in archive.read(entry).decode()


def test_the_wheel_works_from_another_directory(installed, tmp_path):
    """Help, list and the composed configuration need the wheel only, and leave nothing where they are run."""
    assert "usage: prefrl COMMAND" in prefrl(installed, tmp_path, "--help")
    assert "offline" in prefrl(installed, tmp_path, "list", "recipes")
    assert "_target_: prefrl.recipes.offline.Offline" in prefrl(installed, tmp_path, "train", "--cfg", "job")
    assert list(tmp_path.iterdir()) == []
