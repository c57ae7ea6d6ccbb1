"""Files: every write is atomic, nothing is ever unpickled, every read error names the file and what to do.

A writer makes a temporary file beside the target, flushes it to the disk and renames it: a killed process, or a full
disk, leaves the old file as it was. Checkpoints are single safetensors files; what is not a tensor travels as JSON in
their header. ``flatten`` and ``unflatten`` turn nested states (modules, optimizers) into that and back.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from prefrl.errors import DamagedFile, PrefrlError

__all__ = [
    "CHECKPOINT_VERSION",
    "atomic_path",
    "flatten",
    "load_checkpoint",
    "read_json",
    "save_checkpoint",
    "unflatten",
    "write_json",
]

CHECKPOINT_VERSION = 1


@contextmanager
def atomic_path(target: Path | str) -> Iterator[Path]:
    """A temporary path to write to; on success it replaces ``target`` in one step, on any error it is removed."""
    target = Path(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent)
        os.close(handle)
    except OSError as error:
        raise PrefrlError(
            f"Cannot write {target}: {error.strerror or error}. Free or choose another folder, then try again."
        ) from error
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o644)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(target)
    except OSError as error:
        raise PrefrlError(
            f"Cannot write {target}: {error.strerror or error}. The previous version is untouched; "
            "free space and try again."
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path | str, value: Any) -> None:
    """Write JSON atomically; NaN is refused, because no other program could read it."""
    text = json.dumps(value, indent=2, allow_nan=False)
    with atomic_path(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def read_json(path: Path | str) -> Any:
    path = Path(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DamagedFile(f"{path} is missing. Is the folder complete, and the path right?") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DamagedFile(f"{path} is not readable JSON ({error}). Restore it, or make the folder anew.") from error


def flatten(state: Any, prefix: str = "") -> tuple[dict[str, Tensor], Any]:
    """Split a nested state of dicts, lists, tensors and plain values into named tensors and a JSON skeleton.

    >>> tensors, skeleton = flatten({"w": torch.zeros(2), "step": 3})
    >>> sorted(tensors), skeleton
    (['w'], {'w': {'tensor': 'w'}, 'step': {'value': 3}})
    """
    if torch.is_tensor(state):
        name = prefix or "tensor"
        return {name: state.detach().contiguous().cpu()}, {"tensor": name}
    if isinstance(state, dict):
        kinds = {type(key) for key in state}
        if not (kinds == {int} or kinds <= {str}):
            raise TypeError(f"A checkpoint's dict must have only text or only integer keys, but has {list(state)}.")
        parts = {key: flatten(value, _child(prefix, str(key))) for key, value in state.items()}
        merged = {name: t for tensors, _ in parts.values() for name, t in tensors.items()}
        skeleton = {str(key): child for key, (_, child) in parts.items()}
        return merged, {"keys": "integer", "items": skeleton} if kinds == {int} else skeleton
    if isinstance(state, (list, tuple)):
        items = [flatten(value, _child(prefix, str(i))) for i, value in enumerate(state)]
        return {name: t for tensors, _ in items for name, t in tensors.items()}, [child for _, child in items]
    return {}, {"value": state}


def unflatten(tensors: dict[str, Tensor], skeleton: Any) -> Any:
    """The inverse of ``flatten`` (tuples come back as lists)."""
    if isinstance(skeleton, list):
        return [unflatten(tensors, child) for child in skeleton]
    if set(skeleton) == {"tensor"} and isinstance(skeleton["tensor"], str):
        return tensors[skeleton["tensor"]]
    if set(skeleton) == {"value"} and not _is_branch(skeleton["value"]):
        return skeleton["value"]
    if skeleton.get("keys") == "integer":  # in a dict of the state, an entry "keys" is itself a dict or a list
        return {int(key): unflatten(tensors, child) for key, child in skeleton["items"].items()}
    return {key: unflatten(tensors, child) for key, child in skeleton.items()}


def _child(prefix: str, key: str) -> str:
    """The name of an entry; escaped as in JSON Pointer (RFC 6901), so that no two tensors get one name."""
    name = key.replace("~", "~0").replace("/", "~1") or "~2"
    return f"{prefix}/{name}" if prefix else name


def _is_branch(value: Any) -> bool:
    return isinstance(value, (dict, list))


def save_checkpoint(path: Path | str, state: Any) -> None:
    """Write a nested state (tensors, numbers, strings) atomically as one safetensors file."""
    tensors, skeleton = flatten(state)
    # clones: safetensors refuses tensors that share memory (tied weights, views)
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    metadata = {"prefrl_version": str(CHECKPOINT_VERSION), "skeleton": json.dumps(skeleton)}
    with atomic_path(path) as temporary:
        try:
            safetensors.torch.save_file(tensors, temporary, metadata=metadata)
        except safetensors.SafetensorError as error:
            raise OSError(str(error)) from error


def load_checkpoint(path: Path | str) -> Any:
    """Read what ``save_checkpoint`` wrote; raises ``DamagedFile`` on anything else."""
    path = Path(path)
    if not path.is_file():
        raise DamagedFile(f"{path} is missing. Is the run directory complete, and the path right?")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (safetensors.SafetensorError, OSError) as error:
        raise DamagedFile(
            f"{path} is not a readable safetensors file ({error}). Restore it, or make it anew."
        ) from error
    if metadata.get("prefrl_version") != str(CHECKPOINT_VERSION):
        raise DamagedFile(
            f"{path} has checkpoint version {metadata.get('prefrl_version')!r}, expected '{CHECKPOINT_VERSION}'. "
            "It was not written by this version of prefrl."
        )
    return unflatten(tensors, json.loads(metadata["skeleton"]))
