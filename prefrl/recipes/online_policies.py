"""Arms that learn while they act, one beside the other: run to their ends, judged on shared seeds, kept and loaded."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from prefrl.errors import ConfigError
from prefrl.evaluation.rollout import Rollouts, rollout
from prefrl.files import load_checkpoint, save_checkpoint
from prefrl.progress import Bars, progress_note
from prefrl.protocols import MakeEnv, MakeOnlineLearner, Policy
from prefrl.recipes.workers import run_side_by_side
from prefrl.runs import RunDirectory, read_metrics

__all__ = [
    "POLICY", "Acting", "Filmed", "finish_arms", "judge", "keep_milestone", "keep_policy", "load_arm_policy",
    "load_milestones", "load_policy", "require_arms", "weights_of",
]  # fmt: skip

POLICY = "policy.safetensors"  # in an arm's folder: what it acts by at the end


class Acting(Protocol):
    """What is read of an arm's settings."""

    @property
    def env(self) -> MakeEnv: ...

    @property
    def online_agent(self) -> MakeOnlineLearner: ...

    @property
    def seed(self) -> int: ...

    @property
    def max_steps(self) -> int: ...


class Filmed(Acting, Protocol):
    """The same of an arm whose policies are kept on the way."""

    def milestones_at(self) -> list[int]: ...


def require_arms(known: Mapping[str, str], **given: Sequence[str]) -> None:
    """Raise ``ConfigError`` for a key of the recipe that names an unknown arm, or one twice."""
    for name, arms in given.items():
        unknown = [arm for arm in arms if arm not in known]
        if unknown or len(set(arms)) < len(arms):
            wrong = f"unknown arm {unknown[0]!r}" if unknown else f"an arm twice in {list(arms)}"
            raise ConfigError(f"recipe.{name}: {wrong}; these are there: {', '.join(known)}.")


def finish_arms(
    run: RunDirectory, arms: Sequence[str], work: Callable[..., None], *, workers: int, steps: int, bars: Bars
) -> None:
    """Call ``work(arm)`` of every unfinished arm: here with ``show=bars``, or ``workers`` at a time in processes."""
    waiting = [arm for arm in arms if run.result(f"arms/{arm}") is None]
    if workers == 1 or len(waiting) <= 1:
        for arm in waiting:
            work(arm, show=bars)
        return

    def watch(arm: str) -> None:
        rows = read_metrics(run.path / "arms" / arm)
        if rows:
            known = {name: value for row in rows for name, value in row.items()}
            bars(arm, int(rows[-1]["step"]), steps, progress_note(known))

    run_side_by_side(waiting, work, workers=workers, watch=watch)


def judge(policy: Policy, settings: Acting, *, episodes: int, seed: int) -> Rollouts:
    """Roll a policy out, without noise; equal seeds give equal episodes to every arm."""
    return rollout(policy, settings.env, episodes=episodes, seed=seed, max_steps=settings.max_steps)


def weights_of(policy: Any) -> Any:
    """The policy, whose weights can be kept apart from all else."""
    if not hasattr(policy, "state_dict"):
        raise ConfigError(f"{type(policy).__name__} has no weights to keep: give it state_dict and load_state_dict.")
    return policy


def keep_policy(file: Path, policy: Policy) -> None:
    """Write the weights of a policy."""
    save_checkpoint(file, {"policy": dict(weights_of(policy).state_dict())})


def load_policy(file: Path, settings: Acting) -> Policy:
    """The policy whose weights :func:`keep_policy` has written."""
    learner = settings.online_agent(make_env=settings.env, seed=settings.seed)
    learner.close()
    weights_of(learner.policy).load_state_dict(load_checkpoint(file)["policy"])
    return learner.policy


def load_arm_policy(run: RunDirectory, arm: str, settings: Acting) -> Policy:
    """What a finished arm acts by."""
    if run.result(f"arms/{arm}") is None:
        raise ConfigError(f"{run.path} has no finished arm {arm!r}; finish it with `prefrl resume {run.path}`.")
    return load_policy(run.path / "arms" / arm / POLICY, settings)


def keep_milestone(folder: Path, stop: int, policy: Policy) -> None:
    """Write the weights of what acts now into an arm's folder; a run that repeats the stop writes the same again."""
    file = _file(folder, stop)
    file.parent.mkdir(exist_ok=True)
    keep_policy(file, policy)


def load_milestones(folder: Path, settings: Filmed) -> dict[int, Policy]:
    """Step → what an arm acted by then, for every milestone that is there."""
    return {
        stop: load_policy(_file(folder, stop), settings)
        for stop in settings.milestones_at()
        if _file(folder, stop).is_file()
    }


def _file(folder: Path, stop: int) -> Path:
    return folder / "milestones" / f"{stop}.safetensors"
