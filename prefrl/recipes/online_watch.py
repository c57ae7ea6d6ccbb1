"""What is seen of an online run while it learns: a line beside its bar, and policies that are kept to be filmed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prefrl.errors import ConfigError
from prefrl.files import load_checkpoint, save_checkpoint
from prefrl.protocols import Policy
from prefrl.recipes.online_settings import OnlineSettings

__all__ = ["keep_milestone", "keep_policy", "load_milestones", "load_policy", "progress_note", "weights_of"]


def progress_note(known: Mapping[str, float]) -> str:
    """Answers, accuracy of the reward and return, as far as metrics say them.

    >>> progress_note({"answered": 40, "reward_accuracy": 0.871, "true_return": -3.25})
    '40 answers · reward 87 % right · return −3.25'
    """
    told = {"answered": "{:.0f} answers", "reward_accuracy": "reward {:.0%} right", "true_return": "return {:.4g}"}
    parts = [text.format(known[name]) for name, text in told.items() if name in known]
    return " · ".join(parts).replace("%", " %").replace("-", "−")


def weights_of(policy: Any) -> Any:
    """The policy, whose weights can be kept apart from all else."""
    if not hasattr(policy, "state_dict"):
        raise ConfigError(f"{type(policy).__name__} has no weights to keep: give it state_dict and load_state_dict.")
    return policy


def keep_milestone(folder: Path, stop: int, policy: Policy) -> None:
    """Write the weights of what acts now into an arm's folder; a run that repeats the stop writes the same again."""
    file = _file(folder, stop)
    file.parent.mkdir(exist_ok=True)
    keep_policy(file, policy)


def keep_policy(file: Path, policy: Policy) -> None:
    """Write the weights of a policy."""
    save_checkpoint(file, {"policy": dict(weights_of(policy).state_dict())})


def load_policy(file: Path, settings: OnlineSettings) -> Policy:
    """The policy whose weights :func:`keep_policy` has written."""
    learner = settings.online_agent(make_env=settings.env, seed=settings.seed)
    learner.close()
    weights_of(learner.policy).load_state_dict(load_checkpoint(file)["policy"])
    return learner.policy


def load_milestones(folder: Path, settings: OnlineSettings) -> dict[int, Policy]:
    """Step → what an arm acted by then, for every milestone that is there."""
    return {
        stop: load_policy(_file(folder, stop), settings)
        for stop in settings.milestones_at()
        if _file(folder, stop).is_file()
    }


def _file(folder: Path, stop: int) -> Path:
    return folder / "milestones" / f"{stop}.safetensors"
