"""Every step that an agent has made, once: for its own learning, for queries and for metrics.

Letters: N steps so far, E finished episodes, n environments, B batch, D observation, A action. Steps lie in the order
of time, those of several environments in turn: step t is of environment t mod n, and its episode goes on at t + n.
Observations do so too; an episode of T steps has T + 1 of them, and each step knows the two rows that it leads from
and to. Finished episodes are numbered as they ended, those of one moment by environment; a number never changes.

Two rewards are kept apart. ``rewards`` is what the agent learns from, written by ``reward_steps`` as it acts.
``true_reward`` is the environment's own: teachers and metrics read it from ``episodes()``, a learner does not, unless
its caller asks for it by ``reward="env"``, as the runs do that learned rewards are compared with. A reward that needs
the whole episode, optimal transport of its video for one, is written by ``reward_episode`` when it has ended; the
steps that were rewarded so are ``rewarded``, in the order in which their episodes ended.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from prefrl.errors import ConfigError, DamagedFile, InvalidData

__all__ = [
    "EpisodeReward", "Experience", "FinishedEpisodes", "Reward", "RewardFunction", "Steps", "require_one_reward",
    "rewards_of",
]  # fmt: skip

RewardFunction = Callable[[Tensor, Tensor], Tensor]
Reward = RewardFunction | Literal["env"] | None
"""(B, D), (B, A) → (B,); "env" is the environment's own; None is 0, where there is no reward yet."""

EpisodeReward = Callable[[np.ndarray], np.ndarray]
"""The frames (T+1, ...) of a finished episode → (T,), the rewards of its steps."""

ROWS = 1024  # that an array has room for at first; it doubles when they are full


class Steps(NamedTuple):
    """B steps as arrays; ``terminated`` is 1 where the next observation is terminal."""

    observations: np.ndarray  # (B, D)
    actions: np.ndarray  # (B, A), in the environment's units
    next_observations: np.ndarray  # (B, D)
    terminated: np.ndarray  # (B,)
    rewards: np.ndarray  # (B,), what is learned from


class FinishedEpisodes(NamedTuple):
    """E episodes, one after the other, in the form and by the names of ``prefrl.data.dataset.Episodes``.

    Read-only: of one environment they are views, of several copies.
    """

    observations: np.ndarray  # (N+E, D) float32
    actions: np.ndarray  # (N, A) float32
    true_reward: np.ndarray  # (N,) float32
    success: np.ndarray  # (N,) bool
    lengths: np.ndarray  # (E,) int64
    terminated: np.ndarray  # (E,) bool
    behavior: tuple[str, ...]  # E names
    seeds: np.ndarray  # (E,) int64, -1: an episode goes on with the generator of the last
    env: dict[str, Any]
    fps: float


class _Rows:
    """An array that grows at its end. Rows that are there never move within the views that were given out."""

    def __init__(self, shape: tuple[int, ...], dtype: type) -> None:
        self._array: np.ndarray = np.zeros((ROWS, *shape), dtype)
        self._n = 0

    def append(self, values: Any) -> None:
        """One row, or several."""
        rows = np.reshape(values, (-1, *self._array.shape[1:]))
        while self._n + len(rows) > len(self._array):
            self._array = np.concatenate([self._array, np.zeros_like(self._array)])
        self._array[self._n : self._n + len(rows)] = rows
        self._n += len(rows)

    @property
    def all(self) -> np.ndarray:
        return self._array[: self._n]

    def replace(self, name: str, values: np.ndarray) -> None:
        if values.shape[1:] != self._array.shape[1:] or values.dtype != self._array.dtype:
            raise DamagedFile(
                f"The saved {name} are rows of {values.dtype} {values.shape[1:]}, but this environment's are of "
                f"{self._array.dtype} {self._array.shape[1:]}. Resume with the environment of the saved run."
            )
        self._array = np.concatenate([values, np.zeros((ROWS, *values.shape[1:]), values.dtype)])
        self._n = len(values)


class Experience:
    """observation_size, action_size: D and A · name: of what acts, in ``episodes()``
    env: of ``prefrl.data.dataset.Episodes``, JSON · fps: steps per second [1/s] · num_envs: n, side by side.
    """

    def __init__(
        self,
        observation_size: int,
        action_size: int,
        *,
        name: str,
        env: dict[str, Any],
        fps: float,
        num_envs: int = 1,
    ) -> None:
        self.name, self.env, self.fps, self.num_envs = name, env, fps, num_envs
        self._columns = {
            "observations": _Rows((observation_size,), np.float32),  # N+E rows, and one more of each open episode
            "actions": _Rows((action_size,), np.float32),
            "rewards": _Rows((), np.float32),
            "true_reward": _Rows((), np.float32),
            "success": _Rows((), np.bool_),
            "terminated": _Rows((), np.bool_),
            "row": _Rows((), np.int64),  # of the observations, that each step sees
            "next_row": _Rows((), np.int64),  # that it leads to
            "lengths": _Rows((), np.int64),  # of finished episodes
            "first_step": _Rows((), np.int64),  # of theirs
            "rewarded": _Rows((), np.int64),  # steps that have an episode reward
        }
        self._open = np.zeros((2, num_envs), np.int64)  # present row, and first step, of each environment's episode

    def __getattr__(self, name: str) -> np.ndarray:
        """The rows of a column so far, as a view."""
        if name.startswith("_") or name not in self._columns:
            raise AttributeError(name)
        return self._columns[name].all

    @property
    def steps(self) -> int:
        """N."""
        return len(self.actions)

    @property
    def present(self) -> np.ndarray:
        """(n, D): where each environment is, if it is in an episode."""
        return self.observations[self._open[0]]

    def begin(self, observation: np.ndarray, which: int = 0) -> None:
        """An episode of environment ``which`` begins at ``observation`` (D,)."""
        self._open[:, which] = len(self.observations), self.steps + which
        self._columns["observations"].append(observation)

    def add(
        self, actions: np.ndarray, observations: np.ndarray, *, true_reward: Any, success: Any, terminated: Any
    ) -> None:
        """A step of every environment: ``actions`` (n, A) led to ``observations`` (n, D); the others are (n,).

        The reward is 0 until ``reward_steps``.
        """
        next_row = len(self.observations) + np.arange(self.num_envs)
        values = {
            "observations": observations,
            "actions": actions,
            "rewards": np.zeros(self.num_envs),
            "true_reward": true_reward,
            "success": success,
            "terminated": terminated,
            "row": self._open[0],
            "next_row": next_row,
        }
        for name, value in values.items():
            self._columns[name].append(value)
        self._open[0] = next_row

    def end(self, which: int = 0) -> None:
        """The episode of environment ``which`` is over, by a terminal state or by its time limit."""
        first = self._open[1, which]
        self._columns["lengths"].append((self.steps + which - first) // self.num_envs)
        self._columns["first_step"].append(first)

    def so_far(self, which: int) -> tuple[int, int]:
        """Finished episodes of environment ``which``, and steps since the present one began."""
        finished = int((self.first_step % self.num_envs == which).sum())
        return finished, int(self.steps + which - self._open[1, which]) // self.num_envs

    def at(self, steps: np.ndarray) -> Steps:
        """The steps of these indices (B,)."""
        return Steps(
            self.observations[self.row[steps]],
            self.actions[steps],
            self.observations[self.next_row[steps]],
            self.terminated[steps].astype(np.float32),
            self.rewards[steps],
        )

    def reward_steps(self, first: int, reward: Reward, *, batch_size: int = 8192) -> np.ndarray:
        """Write the reward of every step from ``first`` on, and return it: (N - first,)."""
        for start in range(first, self.steps, batch_size):
            batch = np.arange(start, min(start + batch_size, self.steps))
            if reward == "env":
                self.rewards[batch] = self.true_reward[batch]
            elif reward is None:
                self.rewards[batch] = 0.0
            else:
                self.rewards[batch] = rewards_of(reward, self.at(batch))
        return self.rewards[first:]

    def reward_episode(self, episode_reward: EpisodeReward, frames: np.ndarray) -> None:
        """Write the rewards of the episode that ended last, which had these ``frames`` (T+1, ...)."""
        number, T = len(self.lengths) - 1, int(self.lengths[-1])
        with np.errstate(over="ignore"):
            values = np.asarray(episode_reward(frames)).astype(np.float32)
        if values.shape != (T,):
            raise InvalidData(
                f"The episode reward of {T} steps, which have {T + 1} frames, must be ({T},), but is {values.shape}: "
                "each step has its own."
            )
        if not np.isfinite(values).all():
            wrong = int((~np.isfinite(values)).sum())
            raise InvalidData(f"The episode reward of episode {number} is NaN or infinite at {wrong} of {T} steps.")
        steps = self.first_step[-1] + self.num_envs * np.arange(T)
        self.rewards[steps] = values
        self._columns["rewarded"].append(steps)

    def episodes(self, first: int = 0) -> FinishedEpisodes:
        """All finished episodes from number ``first`` on: ``Episodes(**learner.episodes()._asdict())``."""
        lengths = self.lengths[first:]
        if not len(lengths):
            raise InvalidData(
                f"There is no finished episode from number {first} on: {len(self.lengths)} have ended in "
                f"{self.steps} steps. Collect more steps first."
            )
        steps, rows, last = self._where(first)
        E = len(lengths)
        return FinishedEpisodes(
            observations=self.observations[rows],
            actions=self.actions[steps],
            true_reward=self.true_reward[steps],
            success=self.success[steps],
            lengths=lengths,
            terminated=self.terminated[last],
            behavior=(self.name,) * E,
            seeds=np.full(E, -1),
            env=self.env,
            fps=self.fps,
        )

    def _where(self, first: int) -> tuple[Any, Any, np.ndarray]:
        """Steps and rows of the finished episodes from ``first`` on, one after the other; and their last steps (E,)."""
        begins, lengths = self.first_step[first:], self.lengths[first:]
        last, ends = begins + self.num_envs * (lengths - 1), lengths.cumsum()
        if self.num_envs == 1:  # they lie as they are asked for
            return slice(begins[0], last[-1] + 1), slice(self.row[begins[0]], self.next_row[last[-1]] + 1), last
        within = np.arange(ends[-1]) - np.repeat(ends - lengths, lengths)
        steps = np.repeat(begins, lengths) + self.num_envs * within
        return steps, np.insert(self.row[steps], ends, self.next_row[last]), last

    def state_dict(self) -> dict[str, Tensor]:
        columns = {name: torch.from_numpy(column.all.copy()) for name, column in self._columns.items()}
        if not len(self.rewarded):
            del columns["rewarded"]
        return columns | {"open": torch.from_numpy(self._open.copy())}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        state = {"rewarded": torch.empty(0, dtype=torch.int64), **state}
        if set(state) != {*self._columns, "open"}:
            raise DamagedFile("The saved experience was written by another version of this package. Train anew.")
        if state["open"].shape[1] != self.num_envs:
            raise DamagedFile(
                f"The saved experience is of {state['open'].shape[1]} environments side by side, but here are "
                f"{self.num_envs}. Resume with num_envs of the saved run."
            )
        for name, column in self._columns.items():
            column.replace(name, state[name].numpy())
        self._open = state["open"].numpy().copy()


def rewards_of(reward: RewardFunction, steps: Steps) -> np.ndarray:
    """(B,) float32 of a learned reward; what is not finite must not be learned from."""
    with torch.no_grad():
        values = reward(torch.from_numpy(steps.observations), torch.from_numpy(steps.actions))
    if tuple(values.shape) != (len(steps.actions),):
        raise InvalidData(
            f"The reward of {len(steps.actions)} steps must be ({len(steps.actions)},), but is {tuple(values.shape)}; "
            "of an ensemble, give the mean over its members."
        )
    if not values.isfinite().all():
        raise InvalidData(f"The learned reward is NaN or infinite at {int((~values.isfinite()).sum())} steps.")
    return values.detach().cpu().numpy()


def require_one_reward(
    name: str, episode_reward: EpisodeReward | None, reward: Reward, batch_reward: RewardFunction | None
) -> None:
    """That an episode reward stands alone; ``name``: of the learner, for the error."""
    if episode_reward is not None and not (reward is None and batch_reward is None):
        given = "reward" if reward is not None else "batch_reward"
        raise ConfigError(f"{name}: episode_reward cannot be combined with {given}: both reward the same steps.")
