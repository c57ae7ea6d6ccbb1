"""Laws of files: atomic, versioned, never unpickled, read back to the bit."""

import ast
import errno
import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import example, given
from strategies import make_episodes, random_preferences, same, states

from prefrl.data.importers import read_npz
from prefrl.data.preferences import append_preferences, preferences_path, read_preferences
from prefrl.data.storage import append_episodes, read_dataset, write_dataset
from prefrl.errors import DamagedFile, PrefrlError
from prefrl.files import (
    atomic_path,
    flatten,
    load_checkpoint,
    read_json,
    save_checkpoint,
    unflatten,
    write_json,
)

ROOT = Path(__file__).resolve().parents[1]


class Malicious:
    """Unpickling it makes a folder, which proves that something was executed."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


# --- checkpoints


@given(states())
@example({"integer_keys": {"a": 1}, "keys": {"items": 2}, "value": {"tensor": "x"}})
@example({"a/b": torch.ones(1), "a": {"b": torch.zeros(1), "": torch.ones(2)}, "": {"a": torch.zeros(2)}})
@example({"": torch.ones(1), "tensor": torch.zeros(1), "~1": torch.ones(2), "/": torch.zeros(2)})
def test_flatten_then_unflatten_is_the_identity(state):
    """Any nested state survives, through JSON too (tuples come back as lists)."""
    tensors, skeleton = flatten(state)
    assert same(unflatten(tensors, json.loads(json.dumps(skeleton))), state)


def test_dicts_with_mixed_keys_are_refused():
    """Keys that would come back as others are an error before anything is written."""
    with pytest.raises(TypeError, match="keys"):
        flatten({"a": 1, 2: 3})


def test_a_checkpoint_continues_training_to_the_bit(tmp_path):
    """A module and its Adam optimizer, saved and loaded, take the same steps as those that went on."""

    def make():
        torch.manual_seed(0)
        module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1))
        return module, torch.optim.Adam(module.parameters(), lr=0.1)

    def step(module, optimizer, k):
        optimizer.zero_grad()
        module(torch.full((2, 3), float(k))).pow(2).mean().backward()
        optimizer.step()

    module, optimizer = make()
    for k in range(3):
        step(module, optimizer, k)
    save_checkpoint(tmp_path / "c.safetensors", {"module": module.state_dict(), "optimizer": optimizer.state_dict()})
    other, other_optimizer = make()
    state = load_checkpoint(tmp_path / "c.safetensors")
    other.load_state_dict(state["module"])
    other_optimizer.load_state_dict(state["optimizer"])
    for k in range(3, 6):
        step(module, optimizer, k)
        step(other, other_optimizer, k)
    assert same(dict(other.state_dict()), dict(module.state_dict()))


def test_tied_weights_can_be_saved(tmp_path):
    """Tensors that share memory are saved like any others."""
    weight = torch.arange(6.0)
    save_checkpoint(tmp_path / "c.safetensors", {"one": weight, "two": weight, "view": weight[2:4]})
    assert same(load_checkpoint(tmp_path / "c.safetensors"), {"one": weight, "two": weight, "view": weight[2:4]})


@pytest.mark.parametrize("kept", [0, 1, 7, 8, 100, -1])
def test_a_truncated_checkpoint_is_a_named_error(tmp_path, kept):
    """However short it was cut, the error names the file."""
    file = tmp_path / "cut.safetensors"
    save_checkpoint(file, {"weight": torch.ones(100), "step": 3})
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(DamagedFile, match=r"cut\.safetensors"):
        load_checkpoint(file)


@pytest.mark.parametrize("metadata", [None, {"prefrl_version": "999", "skeleton": "{}"}])
def test_a_checkpoint_of_another_version_is_a_named_error(tmp_path, metadata):
    """A safetensors file that is not ours, or of another version, is refused with both versions."""
    safetensors.torch.save_file({"w": torch.ones(2)}, tmp_path / "c.safetensors", metadata=metadata)
    with pytest.raises(DamagedFile, match="expected '1'"):
        load_checkpoint(tmp_path / "c.safetensors")


def test_a_missing_checkpoint_is_a_named_error(tmp_path):
    """The error names the path that was looked for."""
    with pytest.raises(DamagedFile, match="nowhere"):
        load_checkpoint(tmp_path / "nowhere")


# --- atomic writes


def test_an_interrupted_write_leaves_the_old_file_and_no_other(tmp_path):
    """Whatever is raised inside ``atomic_path``, Ctrl-C included, the target stays as it was."""
    file = tmp_path / "value.json"
    write_json(file, 1)
    with pytest.raises(KeyboardInterrupt), atomic_path(file) as temporary:  # noqa: PT012
        temporary.write_text("half of")
        raise KeyboardInterrupt
    assert read_json(file) == 1
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("writer", [write_json, save_checkpoint])
def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch, writer):
    """No space left: the old content stays, the temporary file goes, the message says what to do."""
    file = tmp_path / "state"
    writer(file, {"step": 1})
    before = file.read_bytes()

    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("prefrl.files.os.fsync", full)
    with pytest.raises(PrefrlError, match=r"state.*No space left.*free space"):
        writer(file, {"step": 2})
    assert file.read_bytes() == before
    assert list(tmp_path.iterdir()) == [file]


def test_an_unwritable_folder_is_a_named_error(tmp_path):
    """A target below a regular file, or in a folder that takes no files, is an error that names it."""
    (tmp_path / "file").write_text("")
    for target in (tmp_path / "file" / "x.json", Path("/proc/prefrl/x.json")):
        with pytest.raises(PrefrlError, match=r"Cannot write .*x\.json"):
            write_json(target, 1)


def test_nan_is_not_written_as_json(tmp_path):
    """JSON has no NaN: nothing is written."""
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "x.json", float("nan"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b'{"a": 1}}'])
def test_damaged_json_is_a_named_error(tmp_path, content):
    """Truncated, binary or doubled JSON is an error that names the file."""
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(DamagedFile, match=r"x\.json"):
        read_json(tmp_path / "x.json")


# --- pickles


def malicious_bytes(tmp_path: Path) -> bytes:
    return pickle.dumps(Malicious(tmp_path / "executed"))


def test_the_malicious_file_is_malicious(tmp_path):
    """Control: the file of the tests below does execute its content when it is unpickled."""
    pickle.loads(malicious_bytes(tmp_path))
    assert (tmp_path / "executed").is_dir()


@pytest.mark.parametrize("reader", [read_json, load_checkpoint, lambda file: read_npz(file, ("obs_1",))])
def test_a_pickle_is_never_executed_by_a_file_reader(tmp_path, reader):
    """A pickle in place of JSON, a checkpoint or an archive is a named error, and nothing runs."""
    (tmp_path / "evil").write_bytes(malicious_bytes(tmp_path))
    with pytest.raises(DamagedFile, match="evil"):
        reader(tmp_path / "evil")
    assert not (tmp_path / "executed").exists()


def test_a_pickle_inside_an_archive_is_never_executed(tmp_path):
    """An .npz with an array of objects is refused by name, and nothing runs."""
    np.savez(tmp_path / "evil.npz", obs_1=np.array([Malicious(tmp_path / "executed")], dtype=object))
    with pytest.raises(DamagedFile, match=r"evil\.npz"):
        read_npz(tmp_path / "evil.npz", ("obs_1",))
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    "name",
    [
        "meta/info.json",
        "meta/stats.json",
        "meta/tasks.parquet",
        "meta/preferences.parquet",
        "meta/episodes/chunk-000/file-000.parquet",
        "data/chunk-000/file-000.parquet",
    ],
)
def test_a_pickle_is_never_executed_by_a_dataset_reader(tmp_path, name):
    """A pickle in place of any file of a dataset is a named error of whoever reads it, and nothing runs."""
    data, rng = make_episodes([2, 3]), np.random.default_rng(0)
    write_dataset(tmp_path / "set", data)
    append_preferences(tmp_path / "set", random_preferences(data, 2, rng))
    (tmp_path / "set" / name).write_bytes(malicious_bytes(tmp_path))
    with pytest.raises(DamagedFile, match=Path(name).name):  # noqa: PT012 (whichever of them reads it)
        for reader in (read_dataset, read_preferences, lambda path: append_episodes(path, data)):
            reader(tmp_path / "set")
    assert not (tmp_path / "executed").exists()
    assert preferences_path(tmp_path / "set").is_file()


PICKLING_MODULES = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
PICKLING_CALLS = {"torch.load", "th.load", "torch.save", "th.save"}
PICKLING_NAMES = {"save_to_zip_file", "load_from_zip_file", "read_pickle", "to_pickle"}  # of whichever module


def pickling(source: str) -> list[str]:
    """What in this source may read or write pickles: imports, calls, a careless ``np.load``."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.split(".")[0] in PICKLING_MODULES]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in PICKLING_MODULES:
            found.append(str(node.module))
        elif isinstance(node, ast.Call):
            name, keywords = ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}
            load = name in ("np.load", "numpy.load")
            careless = keywords.get("allow_pickle", None if load else "False") != "False"
            of_weights = name in ("torch.load", "th.load") and keywords.get("weights_only") == "True"
            if careless or (name in PICKLING_CALLS and not of_weights) or name.rpartition(".")[2] in PICKLING_NAMES:
                found.append(name)
    return found


def test_no_pickle_anywhere_in_the_source():
    """No module of ours imports a pickling library, or calls what pickles or unpickles."""
    files = [file for package in ("prefrl", "agents", "envs") for file in (ROOT / package).rglob("*.py")]
    assert len(files) > 10
    assert {str(file): found for file in files if (found := pickling(file.read_text(encoding="utf-8")))} == {}


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from joblib import load",
        "torch.load(f)",
        "torch.load(f, weights_only=False)",
        "np.load(f)",
        "np.load(f, allow_pickle=True)",
        "g(allow_pickle=True)",
        "g(allow_pickle=flag)",
        "pd.read_pickle(f)",
        "read_pickle(f)",
        "save_util.load_from_zip_file(f)",
    ],
)
def test_the_search_for_pickles_finds_them(source):
    """Control: each forbidden form is found."""
    assert pickling(source)


def test_the_search_for_pickles_lets_safe_reading_pass():
    """Control: arrays without objects are read with ``allow_pickle=False``."""
    assert pickling("np.load(f, allow_pickle=False)\nnp.loadtxt(f)") == []
