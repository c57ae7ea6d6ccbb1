"""What an arm of an online run needs to be told: which arms there are, and when they ask, pause and keep a policy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from prefrl.protocols import MakeEnv, MakeOnlineLearner, Teacher
from prefrl.queries.schedules import Budget, Schedule
from prefrl.train.epoch import Augment
from prefrl.train.exploration import EntropyForm

__all__ = ["ARMS_ONLINE", "ASKING", "SCORED", "OnlineSettings"]

ARMS_ONLINE = {
    "aligned": "the learner on the reward learned from its answers",
    "true_reward": "the learner on the environment's own reward: what perfect preferences could give",
    "true_reward_from_start": "the same from the first step, without exploration: reinforcement learning as it is",
    "untrained": "control: the reward ensemble before any training",
    "zero": "control: no reward anywhere after the exploration",
    "negated": "control: asks as aligned does, and learns from the negative of that reward",
}
ASKING = ("aligned", "negated")
SCORED = (*ASKING, "untrained")  # arms that act by a reward ensemble


@dataclass(frozen=True, kw_only=True)
class OnlineSettings:
    """What an arm needs, as in configs/recipe/online.yaml. Picklable, because workers receive it.

    Defaults are what runs without these keys did.
    """

    env: MakeEnv
    online_agent: MakeOnlineLearner
    teacher: Teacher
    query: Any
    score: Callable[..., Any]
    fit: Callable[..., Any]
    steps: int
    explore_steps: int
    explore_neighbors: int
    explore_form: EntropyForm
    sessions: int
    session_interval: int
    comparisons: int
    schedule: Schedule
    first_share: float | None
    budget: Budget
    segment_length: int
    recent_episodes: int
    allow_variable_horizon: bool
    log_every: int
    episodes: int
    max_steps: int
    checkpoint_every: int
    seed: int = 0
    threads: int = 1
    deterministic: bool = True
    tensorboard: bool = True
    explore_normalize: bool = False
    refit: bool = False
    bonus: float = 0.0
    bonus_decay: float = 1e-5
    unlabelled: float = 0.0
    semi_supervised: Callable[..., Augment] | None = None
    meta_every: int = 0
    meta: Callable[..., dict[str, Any]] | None = None
    milestones: int = 0

    def sessions_at(self) -> list[int]:
        """The environment step of each session."""
        return [self.explore_steps + s * self.session_interval for s in range(self.sessions)]

    def stops(self) -> list[int]:
        """Steps at which the agent pauses: to ask, to log, to save."""
        return sorted({*range(self.log_every, self.steps, self.log_every), *self.sessions_at(), self.steps})

    def milestones_at(self) -> list[int]:
        """The stops at which a policy is kept: the first ones from each of so many equal parts of the steps on."""
        stops, n = self.stops(), self.milestones
        return sorted({min(stop for stop in stops if stop * n >= self.steps * i) for i in range(1, n + 1)})

    def is_meta(self, step: int) -> bool:
        """Whether the reward takes a step through the critic's own update at this stop, after it is first fitted."""
        return bool(self.meta_every) and step % self.meta_every == 0 and step >= self.explore_steps
