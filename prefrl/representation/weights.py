"""Weights of a user's own network from a local file: safetensors, or torch's format without its pickled classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from prefrl.errors import DamagedFile, InvalidData

__all__ = ["load_weights"]

TORCH_FILES = (".pt", ".pth", ".bin", ".ckpt")


def load_weights(module: nn.Module, source: Path | str | Mapping[str, Tensor], *, ignore: Sequence[str] = ()) -> None:
    """Give ``module`` all of its weights, from a file or as they are.

    Missing and unexpected names and wrong shapes are an ``InvalidData`` that lists them. ``ignore``: beginnings of
    names in the file that are not needed, such as ``fc.``, a classifier that was taken off.
    """
    given = dict(source) if isinstance(source, Mapping) else _read(Path(source))
    name = "The weights" if isinstance(source, Mapping) else str(source)
    given = {key: value for key, value in given.items() if not key.startswith(tuple(ignore))}
    wanted = module.state_dict()
    faults = {
        "missing": [key for key in wanted if key not in given],
        "unexpected": [key for key in given if key not in wanted],
        "of wrong shape": [
            f"{key} {tuple(given[key].shape)}, expected {tuple(wanted[key].shape)}"
            for key in wanted
            if key in given and given[key].shape != wanted[key].shape
        ],
    }
    words = [f"{len(keys)} {fault} ({_some(keys)})" for fault, keys in faults.items() if keys]
    if words:
        raise InvalidData(
            f"{name} do not fit {type(module).__name__}: {'; '.join(words)}. Make the module of the same architecture, "
            "and name what the file holds in excess with ignore=(…)."
        )
    module.load_state_dict(given)


def _some(keys: Sequence[str], shown: int = 4) -> str:
    return ", ".join(keys[:shown]) + (", …" if len(keys) > shown else "")


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise DamagedFile(f"{path} is missing. Nothing is downloaded: give the path of a local weights file.")
    if path.suffix not in (".safetensors", *TORCH_FILES):
        raise InvalidData(f"{path}: weights must be a .safetensors file or one of torch ({', '.join(TORCH_FILES)}).")
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # what torch's reader raises on bytes that are no weights is said nowhere
        reason = str(error).strip().splitlines()[:1] or [type(error).__name__]
        raise DamagedFile(
            f"{path} holds no readable weights ({reason[0]}). It must be complete, and hold tensors only: no pickled "
            "model, but torch.save(model.state_dict(), …)."
        ) from error
    return _tensors(path, found)


def _tensors(path: Path, found: Any) -> dict[str, Tensor]:
    """A state dict, which some files hold under ``state_dict`` or ``model``."""
    for key in ("state_dict", "model"):
        if isinstance(found, dict) and isinstance(found.get(key), dict):
            found = found[key]
    if not isinstance(found, dict) or not found or not all(torch.is_tensor(value) for value in found.values()):
        raise DamagedFile(f"{path} holds no state dict of tensors. Write one by torch.save(model.state_dict(), …).")
    return found
