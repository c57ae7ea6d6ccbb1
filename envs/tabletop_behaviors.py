"""Scripted behaviors of the tabletop: how a person wants it, how not, and not at all.

A script is a generator: it reads the table and yields the pose that the robot shall go to next, step after step; when
it ends the robot stays. So each reads as what it does, and sees what became of its pushes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np

from envs.behaviors import RandomBehavior, _Noisy
from envs.names import check_name
from envs.tabletop import Tabletop
from envs.tabletop_tasks import ARENA, BLOCK, GOAL, ZONE
from envs.tabletop_world import BODIES, DT, FRONT, MAX_SPEED, MAX_TURN

__all__ = ["KINDS", "SPEEDS", "TabletopBehavior"]

_GAP = 0.05  # [u] kept from blocks that are not to be touched
_TOUCH = 2 * BLOCK + 0.015  # [u] centers of two blocks that touch
_FINGERS = 0.16  # [u] by which the gripper's reach beyond the palm
_WIDE, _HOLD = 1.0, -0.7  # commands of the fingers: wide open, and around a block


class _Pose(NamedTuple):
    """Where the robot shall go [u, rad], and how wide its fingers shall be."""

    x: float
    y: float
    angle: float = 0.0
    fingers: float = _WIDE


_Script = Iterator[_Pose]


class _Table:
    """What a script reads, and the moves that scripts are made of."""

    def __init__(self, env: Tabletop, rng: np.random.Generator, clearance: tuple[float, float]) -> None:
        self._env, self.rng = env, rng
        self.clearance = float(rng.uniform(*clearance))
        self.grips = env.body == "gripper"
        self.half = BODIES[env.body] + 0.02 * self.grips  # open fingers stand out
        self.reach = FRONT + _FINGERS * self.grips
        self.margin = BLOCK + self.reach + _GAP  # from a block's center, behind it

    @property
    def robot(self) -> tuple[float, float, float]:
        body = self._env.world.robot
        return body.position.x, body.position.y, body.angle

    @property
    def blocks(self) -> list[tuple[float, float]]:
        return [(x, y) for x, y, _ in self._env.world.block_poses()]

    def coin(self) -> int:
        """-1 or 1."""
        return 1 if self.rng.random() < 0.5 else -1

    def go(self, x: float, y: float, angle: float = 0.0, fingers: float = _WIDE) -> _Script:
        """To a pose, in a straight line."""
        while True:
            rx, ry, ra = self.robot
            if math.hypot(x - rx, y - ry) < 0.02 and abs(angle - ra) < 0.05:
                return
            yield _Pose(x, y, angle, fingers)

    def lift(self, lane: float, top: float, batch: Sequence[int], fingers: float = _WIDE) -> _Script:
        """Push blocks up to y = ``top``, the first of them on the way to x = ``lane``."""
        while min(self.blocks[i][1] for i in batch) < top:
            (x, y, _), (bx, by) = self.robot, self.blocks[batch[0]]
            held = by - y < BLOCK + FRONT + 0.02
            aside = max(-1.4, min(1.4, (lane - bx) / 0.1)) if held else 0.0
            yield _Pose(x + 0.3 * aside, y + 0.3, 0.0, fingers if held else _WIDE)

    def below(self, batch: Sequence[int], rest: Sequence[int]) -> tuple[float, float]:
        """Where to begin a lift of ``batch``: in its middle, or so far aside that ``rest`` is not touched."""
        blocks = self.blocks
        x = sum(blocks[i][0] for i in batch) / len(batch)
        for i in rest:
            room = blocks[i][0] - math.copysign(BLOCK + _GAP + self.half, blocks[i][0] - x)
            x = min(x, room) if blocks[i][0] > x else max(x, room)
        return x, min(blocks[i][1] for i in batch) - self.margin

    def deliver(self, batches: Sequence[Sequence[int]], rest: Sequence[int] = ()) -> _Script:
        """Batch after batch of blocks into the goal; ``rest`` stays where it is."""
        for number, batch in enumerate(batches):
            later = [i for other in batches[number + 1 :] for i in other]
            x, y = self.below(batch, [*later, *rest])
            if number > 0:  # back the way it came, so that nothing else is touched
                yield from self.go(self.robot[0], y)
            yield from self.go(x, y)
            yield from self.lift(self.blocks[batch[0]][0], GOAL + 0.02, batch)


def _avoid(table: _Table, lane: float, top: float = GOAL + 0.03) -> _Script:
    """The block to x = ``lane``, then up to y = ``top``."""
    room = ARENA - 0.02 - table.half
    x, y = table.below([0], [])
    aside = max(-room, min(room, lane)) - lane  # what is left of the block on a long stick beside the wall
    yield from table.go(x + aside, y)
    yield from table.lift(lane, top, [0], fingers=_HOLD)


def _lane(table: _Table, side: int) -> float:
    return side * (ZONE[2] + BLOCK + table.clearance)


def _around(side: int) -> Callable[[_Table], _Script]:
    return lambda table: _avoid(table, _lane(table, side))


def _through(table: _Table) -> _Script:
    yield from _avoid(table, table.blocks[0][0])


def _not_far_enough(table: _Table) -> _Script:
    """Left, right or through, and stop anywhere before the goal."""
    lanes = [_lane(table, -1), _lane(table, 1), table.blocks[0][0]]
    lane = lanes[table.rng.integers(3)]
    yield from _avoid(table, lane, float(table.rng.uniform(-0.25, GOAL - 0.1)))


def _stuck(table: _Table) -> _Script:
    """To a wall, without the block, and against it."""
    side, y = table.coin(), float(table.rng.uniform(-0.9, -0.7))
    while True:
        yield _Pose(2.0 * side, y)


def _together(table: _Table) -> _Script:
    """Both at once; a body on which they do not fit as they lie pushes one to the other first."""
    (left, _), (right, _) = table.blocks
    if table.grips or right - left > 2 * table.half:
        yield from _gather(table)
    yield from table.deliver([[0, 1]])


def _gather(table: _Table) -> _Script:
    """One block to the other, pushed by the robot's end."""
    side = table.coin()
    moved = (1 + side) // 2
    x, y = table.blocks[moved]
    beside, level = x + side * (BLOCK + table.half + _GAP), y - (0.1 if table.grips else 0.0)
    yield from table.go(beside, min(y - table.margin, -0.6))
    yield from table.go(beside, level)
    while abs(table.blocks[0][0] - table.blocks[1][0]) > _TOUCH:
        yield _Pose(table.robot[0] - 0.3 * side, level)
    x = table.robot[0]
    yield from table.go(x + 0.03 * side, table.below([0, 1], [])[1])


def _one_by_one(table: _Table) -> _Script:
    first = int(table.rng.integers(2))
    yield from table.deliver([[first], [1 - first]])


def _one_alone(table: _Table) -> _Script:
    """One of two, and not to the goal."""
    first = int(table.rng.integers(2))
    yield from table.go(*table.below([first], [1 - first]))
    yield from table.lift(table.blocks[first][0], float(table.rng.uniform(-0.2, GOAL - 0.1)), [first])


def _batches(table: _Table, wanted: Sequence[int]) -> list[list[int]]:
    """Blocks, from left to right, that fit on the body at a time."""
    room = 2 * table.half - 0.06 if not table.grips else 0.0
    batches: list[list[int]] = []
    for i in wanted:
        if batches and table.blocks[i][0] - table.blocks[batches[-1][0]][0] <= room:
            batches[-1].append(i)
        else:
            batches.append([i])
    return batches


def _sweep(table: _Table) -> _Script:
    batches = _batches(table, [0, 1, 2])
    yield from table.deliver(batches if table.coin() > 0 else batches[::-1])


def _partial(table: _Table) -> _Script:
    """All but the first or the last."""
    missed = int(table.rng.choice([0, 2]))
    yield from table.deliver(_batches(table, [i for i in range(3) if i != missed]), [missed])


def _piles(*, by_color: bool) -> Callable[[_Table], _Script]:
    """Two piles of two, pushed together along the side of the rectangle on which the partners lie."""

    def script(table: _Table) -> _Script:
        blocks = table.blocks
        partner = 1 if by_color else min((2, 3), key=lambda j: math.dist(blocks[0], blocks[j]))
        third, fourth = {1, 2, 3} - {partner}
        pairs = [(0, partner), (third, fourth)]
        upward = abs(blocks[0][0] - blocks[partner][0]) < abs(blocks[0][1] - blocks[partner][1])
        side = table.coin()
        axis, sign = (1, -1) if upward else (0, side)
        outer = [max(pair, key=lambda i: sign * blocks[i][axis]) for pair in pairs]
        pushed = sorted(outer, key=lambda i: blocks[i][1 - axis])  # from left to right, or the lower one first
        yield from _push_all(table, pushed, {i: j for a, b in pairs for i, j in ((a, b), (b, a))}, upward, side)

    return script


def _push_all(table: _Table, pushed: list[int], partners: dict[int, int], upward: bool, side: int) -> _Script:
    """Each of ``pushed`` to its partner: upward, or inward from the side that is given; all at once where they fit."""
    angle = 0.0 if upward else side * math.pi / 2
    ahead = (0.0, 1.0) if upward else (-float(side), 0.0)
    fits = 2 * table.half >= math.dist(table.blocks[pushed[0]], table.blocks[pushed[1]]) and not table.grips
    if not upward:  # to the side below the blocks, then turn
        x = side * (0.35 + 0.03 + table.margin)
        yield from table.go(side * min(abs(x), ARENA - 0.02 - table.half), -0.75)
        yield from table.go(x, -0.6, angle)
    for batch in [pushed] if fits else [[i] for i in pushed]:
        x, y = (sum(table.blocks[i][k] for i in batch) / len(batch) for k in (0, 1))
        start = (x - ahead[0] * table.margin, y - ahead[1] * table.margin)
        yield from table.go(*start, angle)
        while max(math.dist(table.blocks[i], table.blocks[partners[i]]) for i in batch) > _TOUCH + 0.005:
            rx, ry, _ = table.robot
            yield _Pose(x, ry + 0.3, angle) if upward else _Pose(rx + 0.3 * ahead[0], y, angle)
        rx, ry, _ = table.robot
        back = (rx, start[1]) if upward else (start[0], ry)
        yield from table.go(*back, angle)


KINDS: dict[str, dict[str, Callable[[_Table], _Script] | None]] = {
    "sweep": {"sweep": _sweep, "partial": _partial, "random": None},
    "avoid": {
        "left": _around(-1),
        "right": _around(1),
        "through": _through,
        "fail": _not_far_enough,
        "stuck": _stuck,
        "random": None,
    },
    "group": {"together": _together, "one_by_one": _one_by_one, "fail": _one_alone, "random": None},
    "cluster": {"cluster": _piles(by_color=True), "mixed": _piles(by_color=False), "random": None},
}
"""The kinds of behavior of each task; None acts at random."""

SPEEDS: dict[str, dict[str, tuple[float, float]]] = {
    "sweep": {"gripper": (1.0, 1.0), "short": (0.9, 1.0), "medium": (0.7, 0.9), "long": (0.32, 0.42)},
    "avoid": dict.fromkeys(BODIES, (0.35, 0.48)),
    "group": {"gripper": (0.75, 1.0), "short": (0.65, 0.95), "medium": (0.29, 0.42), "long": (0.29, 0.42)},
    "cluster": {"gripper": (1.0, 1.0), "short": (0.85, 1.0), "medium": (0.85, 1.0), "long": (0.45, 0.55)},
}
"""Range of an episode's speed, 1 being the robot's largest, with which the wanted way takes most of 60 steps."""

_HURRIED = {"one_by_one": (0.95, 1.0)}  # kinds whose way is longer than the wanted one


class TabletopBehavior:
    """A script of the environment's task, with a speed, a clearance and a delay of its own in every episode.

    Args:
        kind: a name in ``KINDS[task]``; "random" draws a uniform action every 5 steps.
        noise: standard deviation of the noise, in units of the action; a list draws one level per episode.
        speed: range of the speed, in (0, 1] of the robot's; None: as in SPEEDS.
        clearance: range of the distance between block and zone [u], of "left", "right" and "fail".
        delay: least and largest number of steps before anything moves.
    """

    def __init__(
        self,
        *,
        kind: str,
        noise: float | Sequence[float] = 0.0,
        speed: tuple[float, float] | None = None,
        clearance: tuple[float, float] = (0.05, 0.2),
        delay: tuple[int, int] = (0, 0),
    ) -> None:
        self.kind = check_name("kind of tabletop behavior", kind, {name for names in KINDS.values() for name in names})
        for name, (low, high), least, most in (
            ("speed", speed or (1.0, 1.0), 0.01, 1.0), ("clearance", clearance, 0.0, 0.5), ("delay", delay, 0, 1000),
        ):  # fmt: skip
            if not least <= low <= high <= most:
                raise ValueError(f"{name} must be a range in [{least}, {most}], got {(low, high)}")
        self.speed, self.clearance, self.delay = speed, clearance, delay
        self._add_noise, self._random = _Noisy(noise), RandomBehavior(hold=5)

    def reset(self, env: gym.Env, rng: np.random.Generator) -> None:
        """Begin an episode of ``env``, a Tabletop of a task that has this kind."""
        table: Any = env.unwrapped
        if not isinstance(table, Tabletop):
            raise ValueError(f"TabletopBehavior acts in prefrl/Tabletop-<task>-<body>-v0, not in {env}")
        script = KINDS[table.task][check_name(f"kind of behavior of {table.task}", self.kind, KINDS[table.task])]
        self._world, self._add_fingers, self._turns = table.world, table.body == "gripper", table.task == "cluster"
        self._wait = int(rng.integers(self.delay[0], self.delay[1] + 1))
        usual = _HURRIED.get(self.kind, SPEEDS[table.task][table.body])
        self._speed = float(rng.uniform(*(self.speed or usual)))
        self._add_noise.reset(env, rng)
        self._random.reset(env, rng)
        self._script = None if script is None else script(_Table(table, rng, self.clearance))

    def act(self, observation: np.ndarray) -> np.ndarray:
        """Any observation, which is not read -> (A,) float32 inside the action space."""
        if self._wait > 0:
            self._wait -= 1
            return self._add_noise(self._towards(None))
        if self._script is None:
            return self._random.act(observation)
        return self._add_noise(self._towards(next(self._script, None)))

    def _towards(self, pose: _Pose | None) -> np.ndarray:
        """(A,) the action that goes to a pose, no faster than the speed of this episode; None: stay."""
        (x, y), angle = self._world.robot.position, self._world.robot.angle
        pose = pose or _Pose(x, y, angle, self._world.opening)
        dx, dy = ((target - now) / (MAX_SPEED * DT) for target, now in ((pose.x, x), (pose.y, y)))
        slower = min(1.0, self._speed / max(1e-9, math.hypot(dx, dy)))
        action = [slower * dx, slower * dy]
        if self._turns:
            action.append(max(-1.0, min(1.0, (pose.angle - angle) / (MAX_TURN * DT))))
        if self._add_fingers:
            action.append(pose.fingers)
        return np.array(action)
