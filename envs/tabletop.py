"""Tabletop: a robot pushes blocks to where they should be, in a way that a person may like or not; headless 2-D.

A clean-room family after X-MAGICAL (Zakka et al. 2021, arXiv 2106.03911; its one task is our *sweep*) and the two
tasks by which "What matters to you?" (Tian et al. 2024, arXiv 2310.07932) modified it, *avoid* and *group*, whose
geometry was not published; *cluster* is MAGICAL's idea (Toyer et al. 2020, arXiv 2011.00401). Units are our own:
lengths in u, the table being [-1.1, 1.1]² u with x to the right and y up; times in s, a step being 0.1 s.

=========  ==================================================================  =====================================
task       what has to be done                                                 what the person prefers
=========  ==================================================================  =====================================
sweep      three blocks into the goal, the strip y ≥ 0.7 u                     nothing
avoid      one block into the goal, past a zone [-0.25, 0.25] x [0.1, 0.45] u  never through the zone; a side of it
group      two blocks into the goal                                            together, not one by one
cluster    four blocks into two piles (centers at most 0.3 u apart)            by color
=========  ==================================================================  =====================================

Blocks are squares of 0.2 u, in the goal when their center is. Bodies are sticks, 0.1 u thick, short (0.3 u), medium
(0.6 u) and long (1.0 u), and a gripper: a palm of 0.56 u and two fingers of 0.16 u, 0.1 to 0.5 u apart. The pushing
faces have much friction: a block that is pushed at less than about 60 degrees from the normal stays where it is.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box

from envs.names import UnknownName, check_name
from envs.rasterizer import Color, Rasterizer
from envs.tabletop_tasks import ARENA, GOAL, Judgement, make_task
from envs.tabletop_world import BODIES, DT, World

__all__ = ["COLORS", "Tabletop"]

COLORS: dict[str, Color] = {
    "table": (238, 236, 230),
    "goal": (170, 220, 175),
    "zone": (246, 208, 90),
    "robot": (52, 54, 62),
    "red": (208, 56, 48),
    "blue": (52, 104, 214),
}
"""RGB of everything that is drawn."""

_START = (-0.85, 0.1)  # [u] of the robot: y, and half the range of x


class Tabletop(gym.Env[np.ndarray, np.ndarray]):
    """A robot that is moved by velocities pushes the N blocks of a task.

    Actions, ``Box(-1, 1)``; values outside are clipped, and a velocity longer than 1 is shortened to it:

    | index | meaning | min | max | unit |
    |---|---|---|---|---|
    | 0 | velocity along x | -1 | 1 | 1 u/s |
    | 1 | velocity along y | -1 | 1 | 1 u/s |
    | 2, *cluster* alone | rate of turn, counterclockwise | -1 | 1 | 3 rad/s |
    | last, gripper alone | width between the fingers, 0.1 to 0.5 u | -1 | 1 | 0.2 u |

    Observations with ``obs="state"``, ``Box(-1, 1, (5 + 6 N,), float32)``, the same for all bodies of a task, clipped:

    | index | meaning | unit |
    |---|---|---|
    | 0, 1 | position x, y of the robot | 1.1 u |
    | 2, 3 | cosine and sine of its angle | 1 |
    | 4 | width between the fingers; 0 of a stick | 0.2 u about 0.3 u |
    | 5 + 6 i, 6 + 6 i | position x, y of block i | 1.1 u |
    | 7 + 6 i, 8 + 6 i | the same, from the robot | 2.2 u |
    | 9 + 6 i, 10 + 6 i | cosine and sine of 4 times its angle (a square looks alike after a quarter turn) | 1 |

    In *cluster* blocks 0 and 1 are red, 2 and 3 are blue.
    With ``obs="pixels"``: ``Box(0, 255, (size, size, 3), uint8)``, what ``render`` shows.

    Rewards [u] of a step, all at most 0, of the state that it led to; d is a block's distance to the goal along y:

    | task | task reward | preference reward |
    |---|---|---|
    | sweep | -0.5 mean d | the same |
    | avoid | -0.5 d | the same, -3 while the block touches the zone (as a disc of 0.1 u) |
    | group | -0.5 mean d | the same, -1 times the difference of the two d |
    | cluster | -0.5 mean distance to the nearest other block | -0.5 mean distance to the one of the own color |

    With ``preferred_side`` the zone of *avoid* continues, for the preference reward, to the wall on the other side.

    ``info``, of reset too: ``task_reward``, ``preference_reward`` (float), ``success`` (bool, the task is done now),
    ``is_preferred`` (bool, it is, and in the preferred way: never in the zone, and past it on the preferred side if
    there is one; never more than 0.25 u between the two d; piles of one color each) and of *avoid* ``side`` (where
    the block passed the zone: -1 left, +1 right, 0 not so far or through it).

    Termination: never. Truncation: after ``max_episode_steps`` (60).

    Args:
        task: "sweep", "avoid", "group" or "cluster".
        body: "gripper", "short", "medium" or "long".
        obs: "state" or "pixels".
        reward: which of the two ``step`` returns, "task" or "preference".
        preferred_side: of *avoid* alone: "left", "right", or None for both alike.
        render_mode: None or "rgb_array", drawn by Pillow.
        size: side of a frame, in observations and by ``render`` [px], in [8, 2048]; None: 64 and 256.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"], "render_fps": round(1 / DT)}  # type: ignore[misc]

    def __init__(
        self,
        *,
        task: str = "sweep",
        body: str = "medium",
        obs: Literal["state", "pixels"] = "state",
        reward: Literal["task", "preference"] = "task",
        preferred_side: Literal["left", "right"] | None = None,
        render_mode: str | None = None,
        size: int | None = None,
    ) -> None:
        self._task = make_task(task, preferred_side)
        self.task, self.body = task, check_name("body", body, BODIES)
        self.obs = check_name("obs", obs, ("state", "pixels"))
        self.reward = check_name("reward", reward, ("task", "preference"))
        check_name("render_mode", render_mode or "rgb_array", self.metadata["render_modes"])
        if size is not None and not 8 <= size <= 2048:
            raise ValueError(f"size must be in [8, 2048] px, got {size}")
        self.render_mode = render_mode
        self._sizes = {"obs": size or 64, "render": size or 256}
        self._rasterizers: dict[int, Rasterizer] = {}
        self._world: World | None = None
        if obs == "pixels":
            self.observation_space = Box(0, 255, (self._sizes["obs"],) * 2 + (3,), np.uint8)
        else:
            self.observation_space = Box(-1.0, 1.0, (5 + 6 * len(self._task.colors),), np.float32)
        self._turns, self._grips = self._task.turns, body == "gripper"
        self.action_space = Box(-1.0, 1.0, (2 + self._turns + self._grips,), np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin an episode, in a new simulation; with ``seed``, one that depends on the seed alone."""
        super().reset(seed=seed)
        if options:
            raise UnknownName(f"Tabletop.reset takes no options, got {sorted(options)}")
        y, spread = _START
        robot = (float(self.np_random.uniform(-spread, spread)), y)
        self._world = World(self.body, robot, self._task.draw(self.np_random), turns=self._turns)
        return self._observe(), self._info(self._task.judge(self._world.block_poses()))

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Move for 0.1 s by the commands of ``action``."""
        values = [float(value) for value in action]
        if len(values) != self.action_space.shape[0] or not all(map(math.isfinite, values)):  # type: ignore[index]
            raise ValueError(f"an action is {self.action_space.shape} finite numbers, got {action}")
        vx, vy, *rest = (min(1.0, max(-1.0, value)) for value in values)
        length = max(1.0, math.hypot(vx, vy))
        turn, finger = rest[0] if self._turns else 0.0, rest[-1] if self._grips else 0.0
        self.world.step(vx / length, vy / length, turn, finger)
        judgement = self._task.judge(self.world.block_poses())
        info = self._info(judgement)
        return self._observe(), info[f"{self.reward}_reward"], False, False, info

    @property
    def world(self) -> World:
        """The simulation of this episode, which scripts may read."""
        if self._world is None:
            raise RuntimeError("reset the environment first: there is nothing on the table")
        return self._world

    @property
    def colors(self) -> tuple[str, ...]:
        """(N,) color of each block."""
        return self._task.colors

    def _info(self, judgement: Judgement) -> dict[str, Any]:
        facts = judgement._asdict()
        if judgement.side is None:
            del facts["side"]
        return facts

    def _observe(self) -> np.ndarray:
        """The table of the class, or a frame."""
        if self.obs == "pixels":
            return self._frame(self._sizes["obs"])
        robot = self.world.robot
        (x, y), angle = robot.position, robot.angle
        values = [x / ARENA, y / ARENA, math.cos(angle), math.sin(angle), self.world.opening]
        for bx, by, turned in self.world.block_poses():
            values += [bx / ARENA, by / ARENA, (bx - x) / (2 * ARENA), (by - y) / (2 * ARENA)]
            values += [math.cos(4 * turned), math.sin(4 * turned)]
        return np.array(values, dtype=np.float32).clip(-1.0, 1.0)

    def render(self) -> np.ndarray | None:
        """(size, size, 3) uint8 of the table from above; None without a render_mode."""
        return None if self.render_mode is None else self._frame(self._sizes["render"])

    def _frame(self, size: int) -> np.ndarray:
        if size not in self._rasterizers:
            self._rasterizers[size] = self._make_rasterizer(size)
        world = self.world
        shapes = [(outline, COLORS[color]) for outline, color in zip(world.block_outlines(), self.colors, strict=True)]
        shapes += [(outline, COLORS["robot"]) for outline in world.robot_outlines()]
        return self._rasterizers[size].draw(shapes)

    def _make_rasterizer(self, size: int) -> Rasterizer:
        still = [(_box(-ARENA, GOAL, ARENA, ARENA), COLORS["goal"])] if self._task.goal else []
        if self._task.zone is not None:
            still.append((_box(*self._task.zone), COLORS["zone"]))
        return Rasterizer(size, ARENA, COLORS["table"], still)


def _box(left: float, bottom: float, right: float, top: float) -> list[tuple[float, float]]:
    """Corners of an upright rectangle."""
    return [(left, bottom), (right, bottom), (right, top), (left, top)]
