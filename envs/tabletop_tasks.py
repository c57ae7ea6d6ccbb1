"""The tasks of the tabletop: where blocks lie at the start, what is rewarded, and what a person prefers.

Two of them, *avoid* and *group*, are the manipulation tasks by which "What matters to you?" (Tian et al. 2024,
arXiv 2310.07932) modified X-MAGICAL's sweep (Zakka et al. 2021, arXiv 2106.03911); their geometry was not published.
All lengths here, in units u, are our own: the table is [-1.1, 1.1]² u, x to the right, y up.

A task draws the blocks of an episode and judges every state of it; what it remembers of an episode is in the judge.
N blocks, each (x, y, angle).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar, NamedTuple, Protocol

import numpy as np

from envs.names import check_name

__all__ = [
    "ARENA", "BLOCK", "GOAL", "NEAR", "SPREAD", "TASKS", "ZONE", "Avoid", "Cluster", "Group", "Judgement", "Sweep",
    "Task", "make_task",
]  # fmt: skip

Blocks = Sequence[tuple[float, float, float]]

ARENA = 1.1
"""Half side of the table [u]."""
BLOCK = 0.1
"""Half side of a block [u]."""
GOAL = 0.7
"""y of the lower edge of the goal strip [u]: a block is in the goal when its center is."""
ZONE = (-0.25, 0.1, 0.25, 0.45)
"""Left, bottom, right and top of the off-limits zone of *avoid* [u]."""
NEAR = 0.3
"""Largest distance of the centers of two blocks that lie together [u]; it is 0.2 where they touch."""
SPREAD = 0.25
"""Largest difference of two blocks' distances to the goal while they go together [u]."""


class Judgement(NamedTuple):
    """What is said of one state of an episode."""

    task_reward: float  # of the task, whatever the person prefers
    preference_reward: float  # of the task and the preference
    success: bool  # the task is done now
    is_preferred: bool  # it is, and so far in the preferred way
    side: int | None = None  # of *avoid*: -1 left, +1 right of the zone, 0 neither so far


class Task(Protocol):
    """What a task is to the environment."""

    @property
    def colors(self) -> tuple[str, ...]:
        """(N,) "red" or "blue"."""
        ...

    @property
    def goal(self) -> bool:
        """Whether there is one."""
        ...

    @property
    def zone(self) -> tuple[float, float, float, float] | None:
        """Left, bottom, right and top of what is off limits."""
        ...

    @property
    def turns(self) -> bool:
        """Whether the robot can turn."""
        ...

    def draw(self, rng: np.random.Generator) -> list[tuple[float, float, float]]:
        """The N blocks at the start of an episode, which begins here."""
        ...

    def judge(self, blocks: Blocks) -> Judgement:
        """Of the next state of the episode."""
        ...


def _uniform(rng: np.random.Generator, half: float) -> float:
    return float(rng.uniform(-half, half))


def _to_goal(block: tuple[float, float, float]) -> float:
    """Distance of a block to the goal [u], 0 in it."""
    return max(0.0, GOAL - block[1])


class Sweep:
    """Three blocks into the goal, in any way: preference and task are the same."""

    colors: ClassVar[tuple[str, ...]] = ("red", "red", "red")
    goal = True
    zone = None
    turns = False

    def draw(self, rng: np.random.Generator) -> list[tuple[float, float, float]]:
        """Near x = -0.4, 0, 0.4 and y = 0.4 u, each coordinate ± 0.05 u."""
        return [(x + _uniform(rng, 0.05), 0.4 + _uniform(rng, 0.05), 0.0) for x in (-0.4, 0.0, 0.4)]

    def judge(self, blocks: Blocks) -> Judgement:
        """Both rewards: -0.5 x mean distance to the goal."""
        distances = [_to_goal(block) for block in blocks]
        reward, done = -0.5 * sum(distances) / len(distances), not any(distances)
        return Judgement(reward, reward, done, done)


class Avoid:
    """One block into the goal, and not through the off-limits zone in the middle; left and right mirror each other.

    preferred_side: "left" or "right" prefers this way round the zone; None has no preference between them.
    """

    colors: ClassVar[tuple[str, ...]] = ("red",)
    goal = True
    zone = ZONE
    turns = False

    def __init__(self, preferred_side: str | None = None) -> None:
        self.preferred_side = preferred_side
        self._wanted = {"left": -1, "right": 1}.get(preferred_side or "", 0)
        self._begin()

    def _begin(self) -> None:
        self._entered, self._beside, self._side = False, 0, 0

    def draw(self, rng: np.random.Generator) -> list[tuple[float, float, float]]:
        """Near (0, -0.4) u, ± 0.1 u in x, ± 0.04 u in y."""
        self._begin()
        return [(_uniform(rng, 0.1), -0.4 + _uniform(rng, 0.04), 0.0)]

    def judge(self, blocks: Blocks) -> Judgement:
        """Task: -0.5 x distance to the goal. Preference: that, and -3 in the zone or beside it on the unwanted side."""
        x, y, _ = blocks[0]
        in_zone = touches_zone(x, y)
        self._entered |= in_zone
        if ZONE[1] <= y <= ZONE[3]:
            self._beside = 0 if in_zone else 1 if x > 0 else -1
        elif y > ZONE[3] and self._side == 0:
            self._side = self._beside
        wrong_side = self._beside == -self._wanted != 0 and ZONE[1] <= y <= ZONE[3]
        distance = _to_goal(blocks[0])
        task, done = -0.5 * distance, distance == 0.0
        kept = not self._entered and self._wanted in (0, self._side)
        return Judgement(task, task - 3.0 * (in_zone or wrong_side), done, done and kept, self._side)


def touches_zone(x: float, y: float) -> bool:
    """Whether a block at (x, y), as a disc inside its square, overlaps the zone.

    >>> touches_zone(0.34, 0.3), touches_zone(0.36, 0.3)
    (True, False)
    """
    left, bottom, right, top = ZONE
    return math.hypot(max(left - x, 0.0, x - right), max(bottom - y, 0.0, y - top)) < BLOCK


class Group:
    """Two blocks into the goal, together and not one after the other."""

    colors: ClassVar[tuple[str, ...]] = ("red", "red")
    goal = True
    zone = None
    turns = False

    def __init__(self) -> None:
        self._spread = 0.0

    def draw(self, rng: np.random.Generator) -> list[tuple[float, float, float]]:
        """Near (-0.25, -0.3) and (0.25, -0.3) u, each coordinate ± 0.03 u."""
        self._spread = 0.0
        return [(x + _uniform(rng, 0.03), -0.3 + _uniform(rng, 0.03), 0.0) for x in (-0.25, 0.25)]

    def judge(self, blocks: Blocks) -> Judgement:
        """Task: -0.5 x mean distance to the goal. Preference: that, and -1 x the difference of the two distances."""
        first, second = (_to_goal(block) for block in blocks)
        spread = abs(first - second)
        self._spread = max(self._spread, spread)
        task, done = -0.25 * (first + second), first == second == 0.0
        return Judgement(task, task - spread, done, done and self._spread <= SPREAD)


class Cluster:
    """Four blocks into two piles, and by color: two red ones, two blue ones, at the corners of a rectangle."""

    colors: ClassVar[tuple[str, ...]] = ("red", "red", "blue", "blue")
    goal = False
    zone = None
    turns = True

    def draw(self, rng: np.random.Generator) -> list[tuple[float, float, float]]:
        """Near x = ± 0.35 and y = -0.3, 0.4 u, each coordinate ± 0.03 u; a coin says whether colors are rows or
        columns, another which is which."""
        corners = [(x, y) for x in (-0.35, 0.35) for y in (-0.3, 0.4)]  # by columns
        if rng.random() < 0.5:
            corners = [(x, y) for y in (-0.3, 0.4) for x in (-0.35, 0.35)]
        if rng.random() < 0.5:
            corners = corners[2:] + corners[:2]
        return [(x + _uniform(rng, 0.03), y + _uniform(rng, 0.03), 0.0) for x, y in corners]

    def judge(self, blocks: Blocks) -> Judgement:
        """Task: -0.5 x mean distance of a block to the nearest other. Preference: the other one of its own color."""
        between = [[math.hypot(a[0] - b[0], a[1] - b[1]) for b in blocks] for a in blocks]
        partners = [between[i][i ^ 1] for i in range(4)]
        others = [min(between[i][j] for j in range(4) if j not in (i, i ^ 1)) for i in range(4)]
        nearest = [min(pair) for pair in zip(partners, others, strict=True)]
        done = max(nearest) <= NEAR
        by_color = max(partners) <= NEAR and min(others) > NEAR
        return Judgement(-0.125 * sum(nearest), -0.125 * sum(partners), done, done and by_color)


TASKS: dict[str, type[Task]] = {"sweep": Sweep, "avoid": Avoid, "group": Group, "cluster": Cluster}
"""The tasks, as in ``prefrl/Tabletop-<task>-<body>-v0``."""


def make_task(task: str, preferred_side: str | None = None) -> Task:
    """The task of a name; a ``preferred_side`` is for *avoid* alone."""
    made = TASKS[check_name("tabletop task", task, TASKS)]
    if preferred_side is None:
        return made()
    check_name("preferred_side", preferred_side, ("left", "right"))
    if made is not Avoid:
        raise ValueError(f"preferred_side={preferred_side!r} is for the task 'avoid', not for {task!r}: leave it out")
    return Avoid(preferred_side)
