"""One run from its configuration: started in a new folder, or opened again; Ctrl-C says how to go on."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from concurrent.futures import BrokenExecutor
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefrl.config import Composed, from_saved
from prefrl.errors import PrefrlError
from prefrl.launch import limit_threads, make_recipe

if TYPE_CHECKING:
    from prefrl.runs import RunDirectory

__all__ = ["default_folder", "open_run", "start", "work"]


def start(config: Composed, out: Path | str, *, words: Sequence[str]) -> RunDirectory:
    """Make the recipe, then its folder ``out``, and work to the end; ``words`` are what the user gave."""
    recipe = make_recipe(config)
    from prefrl.runs import RunDirectory

    said = shlex.join(["prefrl", "train", *words])
    run = RunDirectory.create(out, config=f"# {said}\n{config.text}")
    work(recipe, run)
    return run


def default_folder(config: Composed) -> Path:
    """runs/<recipe>-<experiment, or else dataset or data, and where none is read env>-<date>-<time>."""
    choices, dataset = config.choices, config.settings.dataset
    slot = "env" if choices["recipe"] == "online" else "data"
    what = choices.get("experiment") or Path(dataset or choices.get(slot, "run")).name
    return Path("runs", f"{choices['recipe']}-{what}-{datetime.now():%Y%m%d-%H%M%S}")


def open_run(path: str) -> tuple[RunDirectory, Composed]:
    """A run directory and its configuration."""
    config = from_saved(Path(path) / "config.yaml") if (Path(path) / "config.yaml").is_file() else None
    if config is not None:
        limit_threads(config.settings.threads)
    from prefrl.runs import RunDirectory

    directory = RunDirectory.open(path)
    assert config is not None  # open raises where there is no config.yaml
    return directory, config


def work(recipe: Any, run: RunDirectory) -> None:
    """Every unfinished stage; what stops it says how to continue."""
    print(f"run:    {run.path}")
    again = f"prefrl resume {shlex.quote(str(run.path))}"
    try:
        recipe.train(run)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(again) from None
    except BrokenExecutor as error:
        raise PrefrlError(
            "A worker process was killed, probably because memory ran out. "
            f"Continue with `{again}`, with a lower workers=…"
        ) from error
