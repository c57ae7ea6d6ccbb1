"""The physics of the tabletop in pymunk (Chipmunk): a robot with commanded velocity, blocks with friction, four walls.

The robot is pulled along by joints of limited force, as are the blocks by their friction with the table (the way of
pymunk's own top-down examples): nothing has to be done in Python between the simulated pieces of a step. Lengths in
units u (see :mod:`envs.tabletop_tasks`), times in seconds. A world is made anew for every episode, so that nothing of
the last one is left in the solver.
"""

from __future__ import annotations

from collections.abc import Sequence

import pymunk

from envs.tabletop_tasks import ARENA, BLOCK

__all__ = ["BODIES", "DT", "FRONT", "MAX_SPEED", "MAX_TURN", "OPENING", "THICKNESS", "World"]

BODIES: dict[str, float] = {"gripper": 0.28, "short": 0.15, "medium": 0.3, "long": 0.5}
"""Half width of each body [u]: of the gripper's palm, and of the sticks."""

DT = 0.1
"""Simulated time of a step [s]."""
MAX_SPEED = 1.0
"""Speed of the robot at an action of length 1 [u/s]."""
MAX_TURN = 3.0
"""Rate of turn at an action of 1 [rad/s]."""
THICKNESS = 0.05
"""Half thickness of sticks and palm [u]."""
FRONT = THICKNESS
"""Distance of the face that pushes from the robot's center [u]."""
OPENING = (0.1, 0.5)
"""Least and largest width between the gripper's fingers [u]."""

_FINGER = (0.025, 0.08)  # [u] half width and half length of a finger
_PIECES = 5  # simulated pieces of a step
_ROBOT_MASS, _BLOCK_MASS, _FINGER_MASS = 0.4, 0.05, 0.05
_ROBOT_FORCE, _BLOCK_FRICTION, _TORQUE = 8.0, 0.4, 1.0  # largest forces and torque of the joints
_GRIP, _DAMPING = 60.0, 3.5  # of the springs of the fingers
_WALL = 0.2  # [u] thickness of a wall
_ROBOT_SURFACE, _BLOCK_SURFACE = 2.0, 1.0  # friction coefficients; those of a contact are multiplied

_Part = tuple[pymunk.Body, list[pymunk.Vec2d]]  # of one polygon, and its corners from the body


class World:
    """One episode of a robot and N blocks.

    Args:
        body: one of BODIES.
        robot: where its center starts (x, y) [u]; it faces up.
        blocks: (x, y, angle) of each block [u, rad].
        turns: whether the robot can turn; it keeps facing up where it cannot.
    """

    # no __dict__: it is made anew at a reset, never saved
    __slots__ = ("_block_parts", "_control", "_fingers", "_robot_parts", "_space", "_springs", "blocks", "robot")

    def __init__(
        self, body: str, robot: tuple[float, float], blocks: Sequence[tuple[float, float, float]], *, turns: bool
    ) -> None:
        self._space = pymunk.Space()
        self._space.iterations = 15
        self._space.collision_slop = 0.002
        self._add_walls()
        self._robot_parts: list[_Part] = []
        self._block_parts: list[_Part] = []
        self.robot, self._control = self._add_robot(BODIES[body], robot, turns)
        self._fingers: list[pymunk.Body] = []
        self._springs: list[pymunk.DampedSpring] = []
        if body == "gripper":
            for side in (-1, 1):
                self._add_finger(side, turns)
        self.blocks = [self._add_block(block) for block in blocks]

    def step(self, vx: float, vy: float, turn: float, finger: float) -> None:
        """Simulate DT with these commands: velocity in the table's axes, rate of turn and opening in [-1, 1] each."""
        control = self._control
        control.velocity = (MAX_SPEED * vx, MAX_SPEED * vy)
        control.angular_velocity = MAX_TURN * turn
        least, largest = OPENING
        width = least + 0.5 * (1.0 + finger) * (largest - least)
        for side, spring in zip((-1, 1), self._springs, strict=False):
            spring.anchor_a = (side * (0.5 * width + _FINGER[0]), spring.anchor_a[1])
        for _ in range(_PIECES):
            self._space.step(DT / _PIECES)

    @property
    def opening(self) -> float:
        """Width between the fingers, from -1 (least) to 1 (largest); 0 of a stick."""
        if not self._fingers:
            return 0.0
        least, largest = OPENING
        left, right = self._fingers
        width = (right.position - left.position).length - 2 * _FINGER[0]
        return 2.0 * (width - least) / (largest - least) - 1.0

    def block_poses(self) -> list[tuple[float, float, float]]:
        """(x, y, angle) of each block [u, rad]."""
        return [(block.position.x, block.position.y, block.angle) for block in self.blocks]

    def robot_outlines(self) -> list[list[tuple[float, float]]]:
        """Corners of the robot's parts on the table [u]."""
        return [_outline(*part) for part in self._robot_parts]

    def block_outlines(self) -> list[list[tuple[float, float]]]:
        """Corners of each block [u]."""
        return [_outline(*part) for part in self._block_parts]

    def _add_walls(self) -> None:
        far, static = ARENA + _WALL / 2, self._space.static_body
        corners = [(-far, -far), (far, -far), (far, far), (-far, far)]
        for start, end in zip(corners, [*corners[1:], corners[0]], strict=True):
            self._space.add(pymunk.Segment(static, start, end, _WALL / 2))

    def _add_robot(self, half_width: float, at: tuple[float, float], turns: bool) -> tuple[pymunk.Body, pymunk.Body]:
        """The body, and the one whose velocity it is pulled to."""
        robot = self._add_part(_ROBOT_MASS, half_width, THICKNESS, at, turns)
        control = pymunk.Body(body_type=pymunk.Body.KINEMATIC)
        control.position = at
        self._space.add(control)
        pull = pymunk.PivotJoint(control, robot, (0.0, 0.0), (0.0, 0.0))
        pull.max_bias, pull.max_force = 0.0, _ROBOT_FORCE  # velocities alone: a blocked robot does not catch up
        self._space.add(pull)
        if turns:
            gear = pymunk.GearJoint(control, robot, 0.0, 1.0)
            gear.max_bias, gear.max_force = 0.0, _TORQUE
            self._space.add(gear)
        return robot, control

    def _add_finger(self, side: int, turns: bool) -> None:
        """Slides along the palm, held by a spring at the commanded width."""
        width, length = _FINGER
        y = THICKNESS + length
        least, largest = (0.5 * opening + width for opening in OPENING)
        x, palm = self.robot.position
        finger = self._add_part(_FINGER_MASS, width, length, (x + side * largest, palm + y), turns)
        spring = pymunk.DampedSpring(self.robot, finger, (side * largest, y), (0.0, 0.0), 0.0, _GRIP, _DAMPING)
        groove = pymunk.GrooveJoint(self.robot, finger, (side * least, y), (side * largest, y), (0.0, 0.0))
        self._space.add(spring, groove)
        if turns:
            self._space.add(pymunk.GearJoint(self.robot, finger, 0.0, 1.0))
        self._fingers.append(finger)
        self._springs.append(spring)

    def _add_part(
        self, mass: float, half_width: float, half_height: float, at: tuple[float, float], turns: bool
    ) -> pymunk.Body:
        """A box with much friction, which collides with no other part of the robot."""
        size = (2 * half_width, 2 * half_height)
        part = pymunk.Body(mass, pymunk.moment_for_box(mass, size) if turns else float("inf"))
        part.position = at
        shape = pymunk.Poly.create_box(part, size)
        shape.friction = _ROBOT_SURFACE
        shape.filter = pymunk.ShapeFilter(group=1)
        self._space.add(part, shape)
        self._robot_parts.append((part, shape.get_vertices()))
        return part

    def _add_block(self, pose: tuple[float, float, float]) -> pymunk.Body:
        size = (2 * BLOCK, 2 * BLOCK)
        block = pymunk.Body(_BLOCK_MASS, pymunk.moment_for_box(_BLOCK_MASS, size))
        block.position, block.angle = pose[:2], pose[2]
        shape = pymunk.Poly.create_box(block, size)
        shape.friction = _BLOCK_SURFACE
        slide = pymunk.PivotJoint(self._space.static_body, block, (0.0, 0.0), (0.0, 0.0))
        slide.max_bias, slide.max_force = 0.0, _BLOCK_FRICTION
        spin = pymunk.GearJoint(self._space.static_body, block, 0.0, 1.0)
        spin.max_bias, spin.max_force = 0.0, _BLOCK_FRICTION * BLOCK
        self._space.add(block, shape, slide, spin)
        self._block_parts.append((block, shape.get_vertices()))
        return block


def _outline(body: pymunk.Body, corners: list[pymunk.Vec2d]) -> list[tuple[float, float]]:
    """A body's corners on the table."""
    (x, y), (cos, sin) = body.position, body.rotation_vector
    return [(x + cos * u - sin * v, y + sin * u + cos * v) for u, v in corners]
