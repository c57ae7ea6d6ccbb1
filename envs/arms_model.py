"""MuJoCo models of two planar arms above a table with blocks, written as MJCF text from primitive shapes alone.

The bodies differ in where they stand, number, length and thickness of links, color and hand, so that what is learned
from one can be tried on the other; both carry a hand of the same width that faces the strip. Blocks slide and turn in
the plane of the table against viscous friction and touch each other and the hand; nothing can tip over.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

__all__ = ["BODIES", "HALF_BLOCK", "HALF_HAND", "Body", "hand_position", "joint_targets", "mjcf"]

HALF_BLOCK = 0.03  # [m]
HALF_HAND = 0.11  # [m] along x
_TIMESTEP = 0.005  # [s]
_BLOCK = 'type="box" size="0.03 0.03 0.03" mass="0.1" contype="2" conaffinity="3" friction="0.5 0.01 0.001"'
_SLIDE = 'type="slide" damping="3"'  # [N s/m]: a pushed block stops within 0.1 s
_DAMPING = 0.1  # [m] of the least squares: what a joint may add to the hand's error near a stretched arm
_POSTURE = 0.2  # share of the way back to the resting posture per iteration, where joints are to spare


class Body(NamedTuple):
    """An arm: where it stands [m], its links [m], its angles at rest [rad], its looks and its hand."""

    base: tuple[float, float]
    links: tuple[float, ...]
    rest: tuple[float, ...]
    radius: float  # [m] of the links
    height: float  # [m] of the links above the table
    color: str  # of the links, as "r g b"
    joint_color: str
    hand: str  # MJCF of the hand in its own frame


_TOUCH = 'contype="1" conaffinity="2" mass="0.02"'
_RAKE = f'<geom type="capsule" fromto="-0.1 0 0.065 0.1 0 0.065" size="0.01" rgba="1 1 1 1" {_TOUCH}/>' + "".join(
    f'<geom type="capsule" fromto="{x} 0 0.065 {x} 0 0.015" size="0.01" rgba="1 1 1 1" {_TOUCH}/>'
    for x in (-0.1, -0.06, -0.02, 0.02, 0.06, 0.1)
)
_PLATE = f'<geom type="box" pos="0 0 0.04" size="0.11 0.015 0.035" rgba="0.15 0.15 0.18 1" {_TOUCH}/>'

BODIES: dict[str, Body] = {
    "slim": Body((-0.4, 0.2), (0.36, 0.32, 0.22), (-1.2, 0.6, 1.0), 0.014, 0.1, "0.95 0.55 0.1", "1 1 1", _RAKE),
    "wide": Body((0.41, 0.14), (0.42, 0.38), (3.94, -1.6), 0.03, 0.11, "0.45 0.3 0.6", "0.2 0.2 0.25", _PLATE),
}
"""The two bodies by name: a thin arm of three links with a rake, from the left; a thick one of two with a plate, from
the right."""


def hand_position(body: Body, angles: np.ndarray) -> np.ndarray:
    """(J,) joint angles [rad], each relative to the link before -> (2,) position of the hand [m]."""
    headings = np.cumsum(angles)
    lengths = np.array(body.links)
    return np.array(body.base) + np.array([lengths @ np.cos(headings), lengths @ np.sin(headings)])


def _jacobian(body: Body, angles: np.ndarray) -> np.ndarray:
    """(2, J) of :func:`hand_position`: a joint turns all links after it."""
    headings = np.cumsum(angles)
    lengths = np.array(body.links)
    along = np.stack([-lengths * np.sin(headings), lengths * np.cos(headings)])  # (2, J)
    return along[:, ::-1].cumsum(axis=1)[:, ::-1]


def joint_targets(body: Body, angles: np.ndarray, goal: np.ndarray, *, iterations: int = 5) -> np.ndarray:
    """(J,) angles near ``angles`` that bring the hand to ``goal`` (2,), by damped least squares.

    ``q ← q + J⁺ (goal − hand(q)) + (I − J⁺ J) k (rest − q)`` with ``J⁺ = Jᵀ (J Jᵀ + λ² I)⁻¹`` (Buss 2004,
    "Introduction to inverse kinematics"): joints to spare go back to their resting posture.
    """
    for _ in range(iterations):
        jacobian = _jacobian(body, angles)
        error = goal - hand_position(body, angles)
        damping = (_DAMPING * float(np.hypot(*error))) ** 2  # vanishes with the error, so that the end is exact
        inverse = jacobian.T @ np.linalg.inv(jacobian @ jacobian.T + (damping + 1e-9) * np.eye(2))  # (J, 2)
        spare = _POSTURE * (np.array(body.rest) - angles)
        angles = angles + inverse @ error + spare - inverse @ (jacobian @ spare)
    return angles


def mjcf(body: Body, colors: tuple[str, ...], *, strip: float, half_strip: float) -> str:
    """The MJCF text of an arm, a table, a blue strip along x at y = ``strip`` [m], and a block per color.

    Joints come in the order: the arm's from the base, its wrist, then x, y and turn of each block.
    """
    blocks = "".join(
        f'<body name="block{i}" pos="0 0 0.03"><joint axis="1 0 0" {_SLIDE}/><joint axis="0 1 0" {_SLIDE}/>'
        f'<joint axis="0 0 1" damping="0.0015"/><geom {_BLOCK} rgba="{color} 1"/></body>'
        for i, color in enumerate(colors)
    )
    # equal gains: all joints lag by the same 0.02 s, so that the hand stays parallel to x while it moves
    servos = "".join(f'<position joint="arm{i}" kp="1000" kv="20"/>' for i in range(len(body.links) + 1))
    return f"""
<mujoco model="arm">
  <compiler angle="radian"/>
  <option timestep="{_TIMESTEP}" integrator="implicitfast" gravity="0 0 0"/>
  <visual><headlight ambient="0.45 0.45 0.45" diffuse="0.4 0.4 0.4" specular="0 0 0"/></visual>
  <worldbody>
    <light pos="0 -0.3 2" dir="0 0.2 -1" diffuse="0.4 0.4 0.4" specular="0 0 0"/>
    <camera name="front" pos="0 -0.22 1.1" xyaxes="1 0 0 0 0.94 0.34" fovy="40"/>
    <geom type="box" pos="0 0.2 -0.03" size="0.7 0.7 0.03" rgba="0.82 0.78 0.7 1" contype="0" conaffinity="0"/>
    <geom type="box" pos="0 {strip} 0.0005" size="0.7 {half_strip} 0.001" rgba="0.2 0.4 0.95 1" contype="0"
          conaffinity="0"/>
    {_arm(body)}
    {blocks}
  </worldbody>
  <actuator>{servos}</actuator>
</mujoco>"""


def _arm(body: Body) -> str:
    """The chain of links with a hinge before each, a wrist at the end and the hand below it."""
    shape = 'contype="0" conaffinity="0" mass="0.1"'
    post, joint = f'size="{2 * body.radius}"', f'rgba="{body.joint_color} 1"'
    x, y = body.base
    text = f'<geom type="cylinder" fromto="{x} {y} 0 {x} {y} {body.height}" {post} {joint} {shape}/>'
    for i, length in enumerate(body.links):
        place = f"{x} {y} {body.height}" if i == 0 else f"{body.links[i - 1]} 0 0"
        text += (
            f'<body pos="{place}"><joint name="arm{i}" axis="0 0 1" armature="0.01"/>'
            f'<geom type="capsule" fromto="0 0 0 {length} 0 0" size="{body.radius}" rgba="{body.color} 1" {shape}/>'
            f'<geom type="sphere" size="{1.3 * body.radius}" {joint} {shape}/>'
        )
    drop = f"0 0 {0.065 - body.height}"
    text += (
        f'<body pos="{body.links[-1]} 0 0"><joint name="arm{len(body.links)}" axis="0 0 1" armature="0.01"/>'
        f'<geom type="capsule" fromto="0 0 0 {drop}" size="{0.8 * body.radius}" {joint} {shape}/>'
        f'<body name="hand" pos="0 0 {-body.height}">{body.hand}</body>'
    )
    return text + "</body>" * (len(body.links) + 1)
