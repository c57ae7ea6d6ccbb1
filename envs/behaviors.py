"""Scripted behaviors that make data: Meta-World's experts, a point controller, uniform noise.

All follow one protocol: ``reset(env, rng)`` at the start of an episode, then ``act(observation)`` per step.
Randomness comes from ``rng`` alone. Different intents in one environment make a conflict mix, for example the
faucet-close script inside ``prefrl/MetaWorld-faucet-open-v0``.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, Literal

import gymnasium as gym
import numpy as np
from metaworld.policies import ENV_POLICY_MAP

from envs.metaworld import TASKS
from envs.names import check_name
from envs.point_reach import SITES

__all__ = ["OtherExpert", "PointBehavior", "RandomBehavior", "ScriptedExpert"]


def _noise_levels(noise: float | Sequence[float]) -> np.ndarray:
    """Levels (L,) from one number or several, each finite and >= 0."""
    levels = np.atleast_1d(np.asarray(noise, dtype=np.float64))
    if levels.ndim != 1 or levels.size == 0 or not np.isfinite(levels).all() or (levels < 0).any():
        raise ValueError(f"noise must be a number >= 0 or a non-empty list of them, got {noise!r}")
    return levels


class _Noisy:
    """``clip(action + σ N(0, I))`` into the action space; one σ per episode from ``levels``."""

    def __init__(self, noise: float | Sequence[float]) -> None:
        self.levels = _noise_levels(noise)

    def reset(self, env: gym.Env, rng: np.random.Generator) -> None:
        self._rng = rng
        self._low, self._high = _bounds(env)
        self.level = float(rng.choice(self.levels))

    def __call__(self, action: np.ndarray) -> np.ndarray:
        noise = self.level * self._rng.standard_normal(self._low.shape) if self.level > 0 else 0.0
        return np.clip(action + noise, self._low, self._high).astype(np.float32)


def _bounds(env: gym.Env) -> tuple[np.ndarray, np.ndarray]:
    """(A,) lower and upper bound of the actions."""
    space: Any = env.action_space
    return space.low, space.high


class ScriptedExpert:
    """The library's scripted policy of a Meta-World task, with Gaussian action noise.

    Args:
        task: whose script to run; it may differ from the environment's own task, which None stands for.
        noise: standard deviation of the noise, in units of the action (range [-1, 1]); a list draws one
            level per episode, all equally likely.
    """

    def __init__(self, *, task: str | None, noise: float | Sequence[float] = 0.0) -> None:
        self.task = None if task is None else check_name("Meta-World task", task, TASKS)
        self._add_noise = _Noisy(noise)

    def reset(self, env: gym.Env, rng: np.random.Generator) -> None:
        """Begin an episode of ``env``, any Meta-World task."""
        if env.observation_space.shape != (39,):
            raise ValueError(
                f"ScriptedExpert reads Meta-World's 39 observations; {env} has shape "
                f"{env.observation_space.shape}: use it in prefrl/MetaWorld-<task>-v0"
            )
        acting: Any = env.unwrapped
        make_script: Any = ENV_POLICY_MAP[f"{self.task or acting.task}-v3"]
        self._policy = make_script()  # anew per episode: it may remember its stage
        self._add_noise.reset(env, rng)

    def act(self, observation: np.ndarray) -> np.ndarray:
        """(39,) -> (4,) float32 inside the action space."""
        with warnings.catch_warnings():
            # the scripts exceed [-1, 1] on purpose and warn about it; the clip below is the answer
            warnings.filterwarnings("ignore", message="Constant", category=UserWarning)
            action = self._policy.get_action(observation)
        return self._add_noise(action)


class OtherExpert:
    """The script of another Meta-World task, one drawn per episode: skilled, but at something else.

    Args:
        tasks: whose scripts are drawn, all equally likely; the environment's own task is left out.
        noise: as in :class:`ScriptedExpert`.
    """

    def __init__(self, *, tasks: Sequence[str], noise: float | Sequence[float] = 0.0) -> None:
        self._experts = {task: ScriptedExpert(task=task, noise=noise) for task in tasks}
        if len(self._experts) < 2:
            raise ValueError(f"tasks must name at least two different tasks, so that one is another: {list(tasks)}")

    def reset(self, env: gym.Env, rng: np.random.Generator) -> None:
        """Begin an episode of ``env``, any Meta-World task, with a script that is not its own."""
        own = getattr(env.unwrapped, "task", None)
        others = [task for task in self._experts if task != own]
        self._acting = self._experts[others[rng.integers(len(others))]]
        self._acting.reset(env, rng)

    @property
    def task(self) -> str | None:
        """Whose script acts in this episode."""
        return self._acting.task

    def act(self, observation: np.ndarray) -> np.ndarray:
        """(39,) -> (4,) float32 inside the action space."""
        return self._acting.act(observation)


class PointBehavior:
    """Straight to one site of ``prefrl/PointReach-v0`` at full speed, with Gaussian action noise.

    ``a = clip(10 (site - p) + σ N(0, I))``, p and site in metres.

    Args:
        target: the site to go to, preferred by the environment or not.
        noise: standard deviation of the noise, in units of the action; a list draws one level per episode.
    """

    def __init__(self, *, target: Literal["left", "right"], noise: float | Sequence[float] = 0.0) -> None:
        self.target = check_name("target", target, SITES)
        self._site = np.array(SITES[target])
        self._add_noise = _Noisy(noise)

    def reset(self, env: gym.Env, rng: np.random.Generator) -> None:
        """Begin an episode of ``env``, a PointReach."""
        if env.observation_space.shape != (2,):
            raise ValueError(f"PointBehavior acts in prefrl/PointReach-v0, not in {env}")
        self._add_noise.reset(env, rng)

    def act(self, observation: np.ndarray) -> np.ndarray:
        """(2,) -> (2,) float32 inside the action space."""
        error = 10.0 * (self._site - observation)
        return self._add_noise(error / max(1.0, float(np.abs(error).max())))


class RandomBehavior:
    """Uniform random actions in any environment with a bounded or a discrete action space.

    Args:
        hold: steps for which an action is repeated, >= 1; a longer hold explores further.
    """

    def __init__(self, *, hold: int = 1) -> None:
        if hold < 1:
            raise ValueError(f"hold must be at least 1 step, got {hold}")
        self.hold = hold

    def reset(self, env: gym.Env, rng: np.random.Generator) -> None:
        """Begin an episode of ``env``."""
        self._rng, self._left = rng, 0
        self._space: Any = env.action_space
        if isinstance(self._space, gym.spaces.Discrete):
            return
        self._low, self._high = _bounds(env)
        if not (np.isfinite(self._low).all() and np.isfinite(self._high).all()):
            raise ValueError(f"RandomBehavior needs a bounded action space, {env} has {env.action_space}")

    def act(self, observation: np.ndarray) -> np.ndarray:
        """(D,) -> (A,) float32, (1,) of a discrete space; the observation is not read."""
        if self._left == 0:
            self._action = self._draw().astype(np.float32)
            self._left = self.hold
        self._left -= 1
        return self._action.copy()

    def _draw(self) -> np.ndarray:
        if isinstance(self._space, gym.spaces.Discrete):
            return self._rng.integers(self._space.n, size=1) + self._space.start
        return self._rng.uniform(self._low, self._high)
