"""The smallest online runs that hold two sessions and several checkpoints, and what two runs must share to be equal.

Beside them stands an environment for what others do not do: it pays above 0, and fails where it is told to.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import torch

from envs.point_reach import PointReach
from prefrl.config import compose
from prefrl.data.preferences import Preferences, read_preferences
from prefrl.files import flatten, load_checkpoint
from prefrl.launch import make_recipe
from prefrl.runs import RunDirectory, read_metrics

WORDS = {
    "recipe": "online", "env": "point_reach", "env.max_episode_steps": 20, "recipe.arms": "[aligned]",
    "recipe.video_arms": "[]", "recipe.steps": 240, "recipe.explore_steps": 80, "recipe.sessions": 2,
    "recipe.session_interval": 80, "recipe.comparisons": 14, "recipe.segment_length": 5, "recipe.log_every": 40,
    "recipe.episodes": 3, "recipe.max_steps": 20, "recipe.checkpoint_every": 40, "recipe.fit.epochs": 3,
    "score.hidden": "[16]", "workers": 1, "tensorboard": "false",
}  # fmt: skip
AGENT = {
    "sac": {
        "online_agent.learning_starts": 40, "online_agent.batch_size": 16, "online_agent.hidden": "[16]",
        "online_agent.train_every": 3, "online_agent.reset_updates": 5,
    },
    "ppo": {
        "online_agent": "ppo_online", "online_agent.rollout_steps": 40, "online_agent.batch_size": 8,
        "online_agent.hidden": "[16]", "online_agent.epochs": 2,
    },
}  # fmt: skip
SURF = {
    "recipe__unlabelled": 10, "recipe__semi_supervised__threshold": 0.6, "recipe__semi_supervised__crop": "[4, 5]",
}  # fmt: skip


POSITIVE = "tests/PositivePoint-v0"


class PositivePoint(PointReach):
    """PointReach with rewards in (0.5, 3]; ``spoil`` may change what a step gives: (step of all, its five values)."""

    spoil: ClassVar[Callable[[int, tuple[Any, ...]], tuple[Any, ...]] | None] = None

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.steps = 0  # of all episodes; kept, as all attributes are

    def step(self, action: np.ndarray) -> Any:
        observation, reward, *rest = super().step(action)
        self.steps += 1
        given = (observation, reward + 3.0, *rest)
        return given if self.spoil is None else type(self).spoil(self.steps, given)


if POSITIVE not in gym.registry:  # pytest imports this file as a module of tests, and to look for examples
    gym.register(POSITIVE, "tiny_online:PositivePoint", max_episode_steps=50, disable_env_checker=True)


def words(kind: str = "sac", **changed: object) -> list[str]:
    """``key=value`` words of a tiny run; a changed key is written with ``__`` for its dots, None leaves it out."""
    given = WORDS | AGENT[kind] | {key.replace("__", "."): value for key, value in changed.items()}
    return [f"{key}={value}" for key, value in given.items() if value is not None]


def recipe(kind: str = "sac", **changed: object) -> Any:
    """The recipe of these words."""
    return make_recipe(compose("train", words(kind, **changed)))


def begun(path: Path) -> RunDirectory:
    """A run directory for arms that are run by themselves."""
    return RunDirectory.create(path, config="")


def state(run: RunDirectory, arm: str = "aligned") -> dict[str, Any]:
    """What an arm has saved last."""
    return load_checkpoint(run.path / "arms" / arm / "checkpoint.safetensors")


def rows(run: RunDirectory, arm: str = "aligned") -> dict[int, dict[str, float]]:
    """An arm's metrics: step → row."""
    return {int(row["step"]): row for row in read_metrics(run.path / "arms" / arm)}


def stopping(call: Callable[..., Any], number: int, *, after: bool) -> Callable[..., Any]:
    """``call``, with Ctrl-C at its so-manieth time, before it has begun or when it is done."""
    calls = []

    def stopped(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == number and not after:
            raise KeyboardInterrupt
        result = call(*args, **kwargs)
        if len(calls) == number:
            raise KeyboardInterrupt
        return result

    return stopped


def answers_of(run: RunDirectory, arm: str = "aligned") -> Preferences:
    """All answers of a finished arm."""
    return read_preferences(run.path / "arms" / arm / "dataset")


def places(answers: Preferences) -> np.ndarray:
    """(N, 6): what was asked."""
    sides = (answers.first, answers.second)
    return np.stack([getattr(refs, part) for refs in sides for part in ("episode", "start", "length")], axis=1)


def assert_same_run(one: RunDirectory, two: RunDirectory, arm: str = "aligned") -> None:
    """Bitwise: weights, moments, experience, environment, random states; metrics, results, questions and answers."""
    (tensors, plain), (others, other_plain) = (flatten(state(run, arm)) for run in (one, two))
    assert plain == other_plain
    assert tensors.keys() == others.keys()
    assert [name for name, tensor in tensors.items() if not torch.equal(tensor, others[name])] == []
    assert read_metrics(one.path / "arms" / arm) == read_metrics(two.path / "arms" / arm)
    assert one.result(f"arms/{arm}") == two.result(f"arms/{arm}")
    assert one.result(f"arms/{arm}") is not None
    mine, other = answers_of(one, arm), answers_of(two, arm)
    np.testing.assert_array_equal(places(mine), places(other))
    np.testing.assert_array_equal(mine.p_first, other.p_first)
    np.testing.assert_array_equal(mine.rater, other.rater)
    assert mine.teacher == other.teacher
