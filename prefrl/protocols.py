"""What the parts promise each other. ``prefrl`` knows environments and agents only by these protocols.

Shapes use B batch, T time, N ensemble, D observation, A action (see ``prefrl.core``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import gymnasium as gym
import numpy as np
from torch import Tensor

from prefrl.core import Comparisons, SegmentBatch, SegmentRefs, Transitions
from prefrl.runs import RunDirectory

__all__ = [
    "Behavior", "ComparisonLearner", "EpisodeActor", "Learner", "MakeComparisonLearner", "MakeEnv", "MakeLearner",
    "MakeOnlineLearner", "OnlineLearner", "Policy", "Query", "Recipe", "Score", "StatefulPolicy", "TabularEnv",
    "Teacher",
]  # fmt: skip


@runtime_checkable
class Policy(Protocol):
    """What acts. ``act`` is the deterministic (mean or mode) action."""

    def act(self, observations: Tensor) -> Tensor:
        """(B, D) float32 -> (B, A) float32, inside the action space."""
        ...

    def log_prob(self, segments: SegmentBatch) -> Tensor:
        """(B, T): log π(a_t | s_t) per step; 0 on padding."""
        ...


class EpisodeActor(Protocol):
    """A policy within one episode: may remember what it saw and planned, and draws from a generator of its own."""

    def act(self, observation: np.ndarray) -> np.ndarray:
        """(D,) float32 -> (A,) float32, inside the action space; called once a step, in order."""
        ...


@runtime_checkable
class StatefulPolicy(Protocol):
    """A policy that acts by episodes, in chunks or from a history for example: rollouts then use this, not ``act``."""

    def episode(self, seed: int) -> EpisodeActor:
        """What acts in one episode; equal seeds and observations give equal actions, whatever runs beside it."""
        ...


class Learner(Protocol):
    """What learns from transitions: owns networks, optimizers and counters."""

    policy: Policy

    def prepare(self, data: Transitions, lengths: np.ndarray) -> Transitions:
        """The whole dataset as this learner wants it, with n-step returns for example; ``lengths`` (E,) of episodes."""
        ...

    def update(self, batch: Transitions) -> dict[str, Tensor]:
        """One gradient step; returns scalar metrics (detached tensors)."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Everything that a bitwise resume needs: nested dicts of tensors and plain numbers."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class MakeLearner(Protocol):
    """A learner's constructor with its hyper-parameters bound (Hydra ``_partial_``)."""

    def __call__(self, *, data: Transitions, action_low: np.ndarray, action_high: np.ndarray, seed: int) -> Learner:
        """``data`` is the whole dataset: for sizes and normalization statistics only."""
        ...


class ComparisonLearner(Protocol):
    """What learns a policy from comparisons, without a reward."""

    policy: Policy

    def update(self, batch: Comparisons) -> dict[str, Tensor]:
        """One gradient step; returns scalar metrics (detached tensors)."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Everything that a bitwise resume needs: nested dicts of tensors and plain numbers."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class MakeComparisonLearner(Protocol):
    """A learner's constructor with its hyper-parameters bound (Hydra ``_partial_``)."""

    def __call__(
        self, *, comparisons: Comparisons, action_low: np.ndarray, action_high: np.ndarray, seed: int
    ) -> ComparisonLearner:
        """``comparisons`` are all of them: for sizes and normalization statistics only."""
        ...


class MakeEnv(Protocol):
    """An environment's constructor with its arguments bound; picklable."""

    def __call__(self, *, seed: int, render_mode: str | None = None) -> gym.Env: ...


class OnlineLearner(Protocol):
    """What acts in an environment and learns meanwhile; its reward may change, or be unknown at first."""

    policy: Policy

    @property
    def steps(self) -> int:
        """Environment steps so far."""
        ...

    @property
    def saveable(self) -> bool:
        """Whether ``state_dict`` can be had now: not where an environment cannot be kept within an episode."""
        ...

    def collect(
        self,
        steps: int,
        *,
        reward: Callable[[Tensor, Tensor], Tensor] | Literal["env"] | None = None,
        batch_reward: Callable[[Tensor, Tensor], Tensor] | None = None,
        episode_reward: Callable[[np.ndarray], np.ndarray] | None = None,
    ) -> dict[str, float]:
        """Act and learn for so many steps; rewards are (B, D), (B, A) → (B,), "env" the environment's. Metrics.

        episode_reward: in place of both: the frames (T+1, ...) of a finished episode, as ``info["frame"]`` gave them
        at reset and at each step, → (T,); nothing is learned from a step before its episode has ended.
        """
        ...

    def relabel(self, reward: Callable[[Tensor, Tensor], Tensor] | Literal["env"] | None) -> None:
        """Write the rewards of all that may be learned from again anew; not those of whole episodes."""
        ...

    def reset_critic(self) -> None:
        """Forget the values, which were of another reward."""
        ...

    def episodes(self, first: int = 0) -> Any:
        """A named tuple of what ``prefrl.data.dataset.Episodes`` takes: finished episodes from number ``first`` on."""
        ...

    def states(self) -> Tensor:
        """(M, D): states that were visited, for rewards of novelty."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Everything that a bitwise resume needs, the environment and the experience too."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...

    def close(self) -> None: ...


class MakeOnlineLearner(Protocol):
    """A learner's constructor with its hyper-parameters bound (Hydra ``_partial_``)."""

    def __call__(self, *, make_env: MakeEnv, seed: int) -> OnlineLearner: ...


class TabularEnv(Protocol):
    """An environment with finitely many states whose rewards are linear in F features, known as arrays."""

    feature_names: tuple[str, ...]
    true_weights: np.ndarray

    def tables(self) -> tuple[np.ndarray, ...]:
        """Next states, probabilities, features, terminal, start: for ``prefrl.solvers.TabularMDP.from_arrays``."""
        ...

    def draw_segment(self, states: np.ndarray, actions: np.ndarray) -> np.ndarray:
        """(height, width, 3) uint8: a segment of states (T+1,) and actions (T,), for a person who compares two."""
        ...

    def draw_policy(self, policy: np.ndarray) -> np.ndarray:
        """(height, width, 3) uint8: the actions of a policy (S, A) of probabilities."""
        ...


class Behavior(Protocol):
    """A policy that made data: scripted, random or learned; may keep state within an episode."""

    def reset(self, env: gym.Env, rng: np.random.Generator) -> None: ...

    def act(self, observation: np.ndarray) -> np.ndarray: ...


class Score(Protocol):
    """s(segment), by an ensemble of N members."""

    def __call__(self, segments: SegmentBatch) -> Tensor:
        """(N, B): score of each segment under each member."""
        ...

    def reward(self, observations: Tensor, actions: Tensor) -> Tensor:
        """(N, B): per-step reward of (B, D), (B, A) under each member."""
        ...


class Teacher(Protocol):
    """Who answers. Reads ``true_reward``; nobody else may.

    May have ``check() -> None``, which raises ``ConfigError`` before data are collected if it could not answer, and
    ``ineffective(key) -> str | None`` for its own options, as a recipe has; ``reward``, a function of segments (B, T),
    which it compares in place of the true reward; and ``raters`` with ``assign(n, rng) -> (n,) int64``: then an answer
    is stored with its own rater's number and parameters.
    """

    def answer(self, first: SegmentBatch, second: SegmentBatch, rng: np.random.Generator) -> np.ndarray:
        """(N,) float64 p_first in [0, 1]; NaN where the teacher skips ("cannot compare")."""
        ...

    def calibrated(self, reward_per_step: float | None, *, session: int = 0, answered: int = 0) -> Teacher:
        """The same teacher in this state: the mean reward of a step, the sessions and its own answers before."""
        ...

    def parameters(self) -> dict[str, Any]:
        """Plain values that say who answered; stored beside every answer."""
        ...


class Query(Protocol):
    """Which pairs to ask for. May take episodes, a score and what was asked before: :mod:`prefrl.data.query`."""

    def __call__(
        self, lengths: np.ndarray, n: int, segment_length: int, rng: np.random.Generator
    ) -> tuple[SegmentRefs, SegmentRefs]:
        """n pairs of segments from episodes of ``lengths`` (E,) steps."""
        ...


class Recipe(Protocol):
    """One system from data to report; its constructor takes components and numbers by name (``prefrl.launch``)."""

    def train(self, run: RunDirectory) -> None:
        """Run every unfinished stage."""
        ...

    def evaluate(self, run: RunDirectory, *, arm: str, episodes: int, seed: int) -> dict[str, Any]:
        """Roll a trained policy out on other seeds."""
        ...

    def render(self, run: RunDirectory, *, arms: Sequence[str] | None = None) -> Path | None:
        """Make the side-by-side video anew; None where nothing can be rendered."""
        ...

    def report(self, run: RunDirectory) -> Path:
        """Write the report anew."""
        ...

    def ineffective(self, key: str) -> str | None:
        """Why a key that the user set cannot change anything in this run; None if it can."""
        ...
