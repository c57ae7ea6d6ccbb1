"""Episodes in memory: flat arrays, cut into segments and transitions by index arithmetic alone.

Letters: E episodes, N steps of all episodes together, T steps of one episode, D observation, A action. An
episode of T steps has T + 1 observations (the end state is kept): step i of episode e sees observation row i
+ e.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prefrl.core import SegmentBatch, SegmentRefs, Transitions
from prefrl.errors import InvalidData

__all__ = ["Episodes", "require_inside"]

_DTYPES = {
    "observations": np.float32,
    "actions": np.float32,
    "true_reward": np.float32,
    "success": np.bool_,
    "lengths": np.int64,
    "terminated": np.bool_,
    "seeds": np.int64,
}


def require_inside(refs: SegmentRefs, lengths: np.ndarray) -> None:
    """Raise ``InvalidData`` naming the first segment that is not inside its episode, of ``lengths`` (E,).

    >>> require_inside(SegmentRefs([0], [3], [5]), np.array([7]))
    Traceback (most recent call last):
    ...
    prefrl.errors.InvalidData: Segment 0 covers steps 3 to 8 of episode 0, which has only 7 steps. ...
    """
    unknown = np.flatnonzero(refs.episode >= len(lengths))
    if len(unknown):
        at = unknown[0]
        raise InvalidData(
            f"Segment {at} refers to episode {refs.episode[at]}, but there are only {len(lengths)} episodes "
            f"(0 to {len(lengths) - 1}). Are the references from another dataset?"
        )
    end = refs.start + refs.length
    past = np.flatnonzero(end > lengths[refs.episode])
    if len(past):
        at, episode = past[0], refs.episode[past[0]]
        raise InvalidData(
            f"Segment {at} covers steps {refs.start[at]} to {end[at]} of episode {episode}, which has only "
            f"{lengths[episode]} steps. Cut segments that fit, or check that they are from this dataset."
        )


@dataclass(frozen=True)
class Episodes:
    """E >= 1 episodes with N steps in all.

    observations: (N+E, D) float32 · actions: (N, A) float32 · success: (N,) bool
    true_reward: (N,) float32, the environment's own · lengths: (E,) int64 [steps]
    terminated: (E,) bool, the end state is terminal (time limits do not count)
    behavior: E strings, what acted · seeds: (E,) int64 for ``env.reset(seed=...)``, -1 if unknown
    env: plain JSON, ``{"id": ...}``; ``"has_true_reward": false`` marks data that came without a reward
    fps: steps per second [1/s]. Raises ``InvalidData`` on wrong shapes, and on NaN, naming the episode.
    """

    observations: np.ndarray
    actions: np.ndarray
    true_reward: np.ndarray
    success: np.ndarray
    lengths: np.ndarray
    terminated: np.ndarray
    behavior: tuple[str, ...]
    seeds: np.ndarray
    env: dict[str, Any]
    fps: float

    def __post_init__(self) -> None:
        for name, dtype in _DTYPES.items():
            object.__setattr__(self, name, np.asarray(getattr(self, name), dtype=dtype))
        object.__setattr__(self, "behavior", tuple(str(name) for name in self.behavior))
        self._check_shapes()
        self._check_values()

    def _check_shapes(self) -> None:
        E = len(self.lengths)
        if self.lengths.ndim != 1 or E == 0 or (self.lengths < 1).any():
            raise InvalidData("Episodes: lengths must name at least one episode, each of at least one step.")
        N = self.num_steps
        if self.observations.ndim != 2 or self.actions.ndim != 2:
            raise InvalidData(
                "Episodes: observations and actions must be two-dimensional (rows, size), but are "
                f"{self.observations.shape} and {self.actions.shape}. Flatten structured observations first."
            )
        rows = {
            "observations": N + E,
            "actions": N,
            "true_reward": N,
            "success": N,
            "terminated": E,
            "seeds": E,
        }
        for name, expected in rows.items():
            array = getattr(self, name)
            if len(array) != expected or (array.ndim != 1 and name not in ("observations", "actions")):
                raise InvalidData(
                    f"Episodes: {name} has shape {array.shape}, but {E} episodes with {N} steps in all need "
                    f"{expected} rows (an episode of T steps has T + 1 observations)."
                )
        if len(self.behavior) != E:
            raise InvalidData(f"Episodes: behavior names {len(self.behavior)} episodes, but there are {E}.")

    def _check_values(self) -> None:
        ends = {
            "observations": self.observation_offsets,
            "actions": self.step_offsets,
            "true_reward": self.step_offsets,
        }
        for name, offsets in ends.items():
            array = getattr(self, name)
            finite = np.isfinite(array).reshape(len(array), -1).all(axis=1)
            if not finite.all():
                row = int(np.argmin(finite))
                episode = int(np.searchsorted(offsets, row, side="right")) - 1
                raise InvalidData(
                    f"Episodes: {name} of episode {episode} (behavior {self.behavior[episode]!r}) is NaN or "
                    f"infinite at step {row - offsets[episode]}; {int((~finite).sum())} row(s) in all. "
                    "Drop the episode with select(), or find out why the environment made it."
                )
        if not np.isfinite(self.fps) or self.fps <= 0:
            raise InvalidData(f"Episodes: fps must be positive [1/s], but is {self.fps}.")
        try:  # the round trip makes tuples lists, as they will come back from disk
            object.__setattr__(self, "env", json.loads(json.dumps(self.env, allow_nan=False)))
        except (TypeError, ValueError) as error:
            raise InvalidData(f"Episodes: env must be plain JSON ({error}); it was {self.env!r}.") from error

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def num_steps(self) -> int:
        """N: steps of all episodes together."""
        return int(self.lengths.sum())

    @property
    def step_offsets(self) -> np.ndarray:
        """(E+1,) int64: episode e holds the steps from entry e up to entry e + 1."""
        return np.concatenate([[0], np.cumsum(self.lengths)])

    @property
    def observation_offsets(self) -> np.ndarray:
        """(E+1,) int64: episode e holds the observation rows from entry e up to entry e + 1."""
        return np.concatenate([[0], np.cumsum(self.lengths + 1)])

    @property
    def episode_of_step(self) -> np.ndarray:
        """(N,) int64: the episode that each step belongs to."""
        return np.repeat(np.arange(len(self)), self.lengths)

    @property
    def has_true_reward(self) -> bool:
        """False for imported data that came without the environment's reward (``true_reward`` is then 0)."""
        return bool(self.env.get("has_true_reward", True))

    def segments(self, refs: SegmentRefs) -> SegmentBatch:
        """The segments at ``refs``, padded to the longest; ``true_reward`` is None where it is not known.

        Padding repeats the end state and holds zero actions, as in ``SegmentBatch.from_segments``.
        """
        require_inside(refs, self.lengths)
        T = int(refs.length.max(initial=1))
        t, length = np.arange(T + 1), refs.length[:, None]
        first_state = (self.observation_offsets[refs.episode] + refs.start)[:, None]
        first_step = (self.step_offsets[refs.episode] + refs.start)[:, None]
        state = first_state + np.minimum(t, length)  # (B, T+1)
        step = first_step + np.minimum(t[:-1], length - 1)  # (B, T)
        mask = t[:-1] < length  # (B, T)
        reward = np.where(mask, self.true_reward[step], np.float32(0)) if self.has_true_reward else None
        at_end = refs.start + refs.length == self.lengths[refs.episode]
        return SegmentBatch(
            observations=torch.from_numpy(self.observations[state]),
            actions=torch.from_numpy(np.where(mask[..., None], self.actions[step], np.float32(0))),
            mask=torch.from_numpy(mask),
            true_reward=None if reward is None else torch.from_numpy(reward),
            terminal=torch.from_numpy(self.terminated[refs.episode] & at_end),
            refs=refs,
        )

    def transitions(self, rewards: Tensor) -> Transitions:
        """All N transitions with the given rewards (N,), learned or chosen: nothing is assumed about them."""
        if tuple(rewards.shape) != (self.num_steps,):
            raise InvalidData(
                f"Episodes.transitions: rewards must be ({self.num_steps},), one a step, "
                f"but are {tuple(rewards.shape)}."
            )
        row = np.arange(self.num_steps) + self.episode_of_step
        terminated = np.zeros(self.num_steps, dtype=np.float32)
        terminated[self.step_offsets[1:] - 1] = self.terminated
        return Transitions(
            observations=torch.from_numpy(self.observations[row]),
            actions=torch.from_numpy(self.actions.copy()),
            rewards=rewards.to(torch.float32),
            next_observations=torch.from_numpy(self.observations[row + 1]),
            terminated=torch.from_numpy(terminated),
        ).require_finite()

    def returns(self) -> np.ndarray:
        """(E,) float64: undiscounted sum of the true reward."""
        if not self.has_true_reward:
            raise InvalidData(
                "Episodes.returns: these data were imported without a true reward, so they have no return."
            )
        return np.add.reduceat(self.true_reward.astype(np.float64), self.step_offsets[:-1])

    def succeeded(self) -> np.ndarray:
        """(E,) bool: success at any step."""
        return np.logical_or.reduceat(self.success, self.step_offsets[:-1])

    def select(self, episodes: Sequence[int] | np.ndarray) -> Episodes:
        """The episodes at these indices (or a boolean mask), in this order."""
        chosen = np.arange(len(self))[np.asarray(episodes, dtype=None if len(episodes) else np.int64)]
        steps = _ranges(self.step_offsets[chosen], self.lengths[chosen])
        states = _ranges(self.observation_offsets[chosen], self.lengths[chosen] + 1)
        return replace(
            self,
            observations=self.observations[states],
            actions=self.actions[steps],
            true_reward=self.true_reward[steps],
            success=self.success[steps],
            lengths=self.lengths[chosen],
            terminated=self.terminated[chosen],
            behavior=tuple(self.behavior[e] for e in chosen),
            seeds=self.seeds[chosen],
        )

    @staticmethod
    def concat(parts: Sequence[Episodes]) -> Episodes:
        """All episodes of ``parts``, in order; they must be of one environment."""
        if not parts:
            raise InvalidData("Episodes.concat: there is nothing to join.")
        for part in parts[1:]:
            parts[0].require_same_kind(part)
        joined: dict[str, Any] = {name: np.concatenate([getattr(part, name) for part in parts]) for name in _DTYPES}
        return replace(parts[0], behavior=tuple(b for part in parts for b in part.behavior), **joined)

    def require_same_kind(self, other: Episodes) -> None:
        """Raise ``InvalidData`` unless both are of one environment, with equal sizes and frame rate."""
        for name, one, two in (
            ("observation size", self.observations.shape[1], other.observations.shape[1]),
            ("action size", self.actions.shape[1], other.actions.shape[1]),
            ("fps", self.fps, other.fps),
            ("env", self.env, other.env),
        ):
            if one != two:
                raise InvalidData(f"Episodes of different kinds cannot be joined: {name} {one} here, {two} there.")


def _ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """The indices of all ranges [start, start + length), one after the other.

    >>> _ranges(np.array([10, 3]), np.array([2, 3]))
    array([10, 11,  3,  4,  5])
    """
    ends = np.cumsum(lengths)
    return np.arange(ends[-1] if len(ends) else 0) + np.repeat(starts - (ends - lengths), lengths)
