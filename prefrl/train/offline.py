"""Offline learning: draw transitions or comparisons, update, log, checkpoint; continue a killed run exactly."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import torch

from prefrl.core import Comparisons, Transitions, require_finite
from prefrl.errors import ConfigError, InvalidData, RunDirectoryError
from prefrl.files import load_checkpoint, save_checkpoint
from prefrl.protocols import ComparisonLearner, Learner
from prefrl.runs import MetricLogger
from prefrl.train.resume import interrupt_after_step, require_same_settings

__all__ = ["train_offline"]

CHECKPOINT = "checkpoint.safetensors"


def train_offline(
    learner: Learner | ComparisonLearner,
    data: Transitions | Comparisons,
    *,
    updates: int,
    batch_size: int,
    seed: int,
    folder: Path,
    log_every: int = 100,
    checkpoint_every: int = 1000,
    evaluate: Callable[[int], dict[str, float]] | None = None,
    evaluate_every: int = 0,
    progress: Callable[[int], None] | None = None,
    tensorboard: bool = True,
) -> None:
    """Update ``learner`` in place ``updates`` times on uniform batches, with replacement, of ``data``.

    ``data`` are what the learner learns from: transitions, or comparisons for one of ``ComparisonLearner``.
    Metrics go to ``folder`` every ``log_every`` updates, those of ``evaluate(update)`` every
    ``evaluate_every`` (0: never); NaN in them is an error. A checkpoint (learner, random state, update) is
    written every ``checkpoint_every`` updates, at the end, and when Ctrl-C comes, after the update in
    progress. If ``folder`` holds one already, it is continued: the result is bitwise that of an uninterrupted
    run (``evaluate`` must leave the learner as it is).
    """
    kind = type(data).__name__.lower()
    _validate(kind, len(data), updates, batch_size, log_every, checkpoint_every)
    for name, values in _tensors(data):
        require_finite(name, values)
    device = data.rewards.device if isinstance(data, Transitions) else "cpu"  # comparisons take rows on the processor
    file = Path(folder) / CHECKPOINT
    settings = {"batch_size": batch_size, "seed": seed, kind: len(data)}
    generator = torch.Generator().manual_seed(seed)
    done = _resume(file, learner, generator, settings, updates)

    with (
        MetricLogger(Path(folder), resume_step=done, tensorboard=tensorboard) as log,
        interrupt_after_step() as interrupted,
    ):
        for update in range(done + 1, updates + 1):
            rows = torch.randint(len(data), (batch_size,), generator=generator)
            metrics = learner.update(data[rows.to(device)])  # type: ignore[arg-type]

            last = update == updates
            scalars: dict[str, float] = {}
            if update % log_every == 0 or last:
                scalars.update({name: value.item() for name, value in metrics.items()})
            if evaluate is not None and evaluate_every > 0 and (update % evaluate_every == 0 or last):
                scalars.update(evaluate(update))
            if scalars:
                log.log(update, **scalars)
            if update % checkpoint_every == 0 or last or interrupted():
                save_checkpoint(file, _state(learner, generator, settings, update))
            if interrupted():
                raise KeyboardInterrupt
            if progress is not None and (update % log_every == 0 or last):
                progress(update)


def _state(learner: Any, generator: torch.Generator, settings: dict[str, Any], update: int) -> dict[str, Any]:
    return {
        "learner": learner.state_dict(),
        "generator": generator.get_state(),
        "settings": settings,
        "update": update,
    }


def _resume(file: Path, learner: Any, generator: torch.Generator, settings: dict[str, Any], updates: int) -> int:
    """Load the checkpoint, if there is one; how many updates are done."""
    if not file.is_file():
        return 0
    state = load_checkpoint(file)
    require_same_settings(file, state["settings"], settings)
    if state["update"] > updates:
        raise RunDirectoryError(
            f"{file} has {state['update']} updates already, more than updates={updates}. Use a new folder."
        )
    learner.load_state_dict(state["learner"])
    generator.set_state(state["generator"])
    return int(state["update"])


def _tensors(data: Any, of: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """(name, tensor) of every tensor in nested dataclasses."""
    for field in fields(data):
        value = getattr(data, field.name)
        if torch.is_tensor(value):
            yield f"{of}{field.name}", value
        elif is_dataclass(value):
            yield from _tensors(value, f"{of}{field.name}.")


def _validate(kind: str, rows: int, updates: int, batch_size: int, log_every: int, checkpoint_every: int) -> None:
    if rows == 0:
        raise InvalidData(f"There are no {kind} to learn from.")
    if min(updates, batch_size, log_every, checkpoint_every) < 1:
        raise ConfigError(
            "updates, batch_size, log_every and checkpoint_every must be >= 1, but are "
            f"{updates}, {batch_size}, {log_every} and {checkpoint_every}."
        )
