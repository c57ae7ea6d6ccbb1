"""Scripted behaviors of the arm tasks: each way to succeed, the preferred one among them, a failure and noise.

The tasks are those of arXiv:2310.07932; the scripts are our own. All push the same way, by sweeps: go to a line behind
blocks, push along it to the end, come back if there is another. They differ in where they sweep.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import gymnasium as gym
import numpy as np

from envs.arms import ROOM, SPEED, Arm
from envs.arms_model import HALF_BLOCK, HALF_HAND
from envs.behaviors import RandomBehavior, _Noisy
from envs.names import check_name

__all__ = ["KINDS", "ArmBehavior"]

KINDS: dict[str, tuple[str, ...]] = {
    "group": ("together", "one_by_one", "fail", "random"),
    "clutter": ("clean", "messy", "fail", "random"),
}
"""The behaviors of each task, the preferred one first."""

_BACK, _END = 0.01, ROOM[1][1]  # [m] y where sweeps begin and end
_OVER = {"group": 0.03, "clutter": 0.02}  # [m] of the hand past the middle of a block that it pushes alone
_THERE = 0.02  # [m], how close to a waypoint is there
_GAIN = 10.0  # [1/s] from the distance to a velocity


class ArmBehavior:
    """One scripted way of acting in ``prefrl/Arm-<task>-<body>-v0``, either body.

    ``a = clip(clip(20 / m (waypoint - hand), ±pace) + σ N(0, I))``, along waypoints chosen when the episode begins.

    Args:
        kind: in "group": "together" (one sweep with both blocks, preferred), "one_by_one" (two sweeps with one block
            each); in "clutter": "clean" (one sweep with the green blocks, past the one beside them, preferred),
            "messy" (one sweep with all three); in both: "fail" (one of the two blocks is left behind), "random"
            (uniform actions, each held for 5 steps).
        noise: standard deviation of the noise, in units of the action; a list draws one level per episode.
        delay: fewest and most steps for which the hand waits before it acts; one number is drawn per episode.
        pace: slowest and fastest action, in (0, 1]; one is drawn per episode, uniformly.
    """

    def __init__(
        self,
        *,
        kind: Literal["together", "one_by_one", "clean", "messy", "fail", "random"],
        noise: float | Sequence[float] = 0.0,
        delay: Sequence[int] = (0, 0),
        pace: Sequence[float] = (1.0, 1.0),
    ) -> None:
        self.kind = check_name("kind of arm behavior", kind, {name for names in KINDS.values() for name in names})
        if len(delay) != 2 or not 0 <= delay[0] <= delay[1]:
            raise ValueError(f"delay must be the fewest and the most steps of waiting, 0 <= fewest <= most: {delay!r}")
        if len(pace) != 2 or not 0 < pace[0] <= pace[1] <= 1:
            raise ValueError(f"pace must be the slowest and the fastest action, 0 < slowest <= fastest <= 1: {pace!r}")
        self.delay, self.pace = tuple(delay), tuple(pace)
        self._add_noise = _Noisy(noise)
        self._random = RandomBehavior(hold=5)

    def reset(self, env: gym.Env, rng: np.random.Generator) -> None:
        """Begin an episode of ``env``, an :class:`envs.arms.Arm`."""
        arm: Any = env.unwrapped
        if not isinstance(arm, Arm):
            raise ValueError(f"ArmBehavior acts in prefrl/Arm-<task>-<body>-v0, not in {env}")
        check_name(f"kind of arm behavior in task {arm.task!r}", self.kind, KINDS[arm.task])
        self._task = arm.task
        self._add_noise.reset(env, rng)
        self._random.reset(env, rng)
        self._wait = int(rng.integers(self.delay[0], self.delay[1], endpoint=True))
        self._limit = float(rng.uniform(self.pace[0], self.pace[1]))
        self._left_first = bool(rng.integers(2))
        self._waypoints: list[np.ndarray] = []

    def act(self, observation: np.ndarray) -> np.ndarray:
        """(5 + 4 N,) -> (2,) float32 inside the action space."""
        if not self._waypoints:
            blocks = observation[4 : 4 + (observation.size - 5) // 2].reshape(-1, 2)  # (N, 2)
            self._waypoints = [np.array([x, y]) for x in self._lines(blocks) for y in (_BACK, _END, _BACK)][:-1]
        if self._wait > 0:
            self._wait -= 1
            return np.zeros(2, np.float32)
        if self.kind == "random":
            return self._random.act(observation)
        hand = observation[:2]
        while len(self._waypoints) > 1 and np.abs(self._waypoints[0] - hand).max() < _THERE:
            self._waypoints.pop(0)
        action = _GAIN * (self._waypoints[0] - hand) / SPEED
        return self._add_noise(action.clip(-self._limit, self._limit))

    def _lines(self, blocks: np.ndarray) -> list[float]:
        """x of each sweep, from the (N, 2) positions of the blocks at the start."""
        left, right = np.sort(blocks[:2, 0])
        out = HALF_HAND - _OVER[self._task]
        alone = [left - out, right + out]  # a sweep with that block and not the other
        if self._task == "clutter":
            return [self._in_clutter(blocks, alone)]
        first = 0 if self._left_first else 1
        sweeps = {"one_by_one": [alone[first], alone[1 - first]], "fail": [alone[first]]}
        return sweeps.get(self.kind, [(left + right) / 2])

    def _in_clutter(self, blocks: np.ndarray, alone: list[float]) -> float:
        """x of the sweep in "clutter", where another block is right beside the two, on either side."""
        middle = blocks[:2, 0].mean()
        beside = blocks[2 + np.abs(blocks[2:, 0] - middle).argmin(), 0]
        side = np.sign(beside - middle)
        if self.kind == "fail":
            return alone[0] if side > 0 else alone[1]
        if self.kind == "messy":
            return (blocks[:2, 0].sum() + beside) / 3
        outer = middle + side * np.ptp(blocks[:2, 0]) / 2
        edge = (outer + beside - side * HALF_BLOCK) / 2  # of the hand: past the green middle, short of the other
        return edge - side * HALF_HAND
