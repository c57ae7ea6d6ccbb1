"""Gymnasium environments and the scripted behaviors that act in them; imports nothing else of the project.

=======================================  ===================================================================
``prefrl/MetaWorld-<task>-v0``           the 50 Meta-World manipulation tasks (:mod:`envs.metaworld`)
``prefrl/PointReach-v0``                 a point in the plane with two sites (:mod:`envs.point_reach`)
plain Gymnasium ids                      as they are, for example ``HalfCheetah-v5``
=======================================  ===================================================================

Importing this package registers the ids; :func:`make` builds any of them.
"""

import gymnasium as gym

from envs import rendering  # first: it makes MuJoCo importable whatever MUJOCO_GL says
from envs.behaviors import PointBehavior, RandomBehavior, ScriptedExpert
from envs.factory import make
from envs.metaworld import TASKS, MetaWorld
from envs.names import UnknownName
from envs.point_reach import PointReach
from envs.rendering import RenderingUnavailable

__all__ = [
    "TASKS",
    "MetaWorld",
    "PointBehavior",
    "PointReach",
    "RandomBehavior",
    "RenderingUnavailable",
    "ScriptedExpert",
    "UnknownName",
    "make",
    "rendering",
]

gym.register("prefrl/PointReach-v0", entry_point="envs.point_reach:PointReach", max_episode_steps=50)
for _task in TASKS:
    gym.register(
        f"prefrl/MetaWorld-{_task}-v0",
        entry_point="envs.metaworld:MetaWorld",
        kwargs={"task": _task},
        max_episode_steps=500,
    )
