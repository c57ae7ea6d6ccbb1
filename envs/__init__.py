"""Gymnasium environments and the scripted behaviors that act in them; imports nothing else of the project.

=======================================  ===================================================================
``prefrl/MetaWorld-<task>-v0``           the 50 Meta-World manipulation tasks (:mod:`envs.metaworld`)
``prefrl/PointReach-v0``                 a point in the plane with two sites (:mod:`envs.point_reach`)
``prefrl/DoubleIntegrator-v0``           a point mass with a known optimum (:mod:`envs.double_integrator`)
``prefrl/Delivery-v0``                   the grid world of regret-based preferences (:mod:`envs.delivery`)
``prefrl/Tabletop-<task>-<body>-v0``     blocks pushed in the plane, as a person likes it (:mod:`envs.tabletop`)
``prefrl/Arm-<task>-<body>-v0``          the same with an arm in MuJoCo (:mod:`envs.arms`)
plain Gymnasium ids                      as they are, for example ``HalfCheetah-v5``
=======================================  ===================================================================

Importing this package registers the ids; :func:`make` builds any of them. :func:`random_grid` draws grid worlds.
"""

from itertools import product

import gymnasium as gym

from envs import rendering  # first: it makes MuJoCo importable whatever MUJOCO_GL says
from envs.arms import BODIES as _ARMS
from envs.arms import TASKS as _ARM_TASKS
from envs.arms import Arm
from envs.arms_scripts import ArmBehavior
from envs.behaviors import OtherExpert, PointBehavior, RandomBehavior, ScriptedExpert
from envs.delivery import Delivery
from envs.double_integrator import DoubleIntegrator
from envs.factory import make
from envs.gaits import Gait, GaitBehavior, search_gaits
from envs.grid_world import GridWorld, Tables
from envs.metaworld import TASKS, MetaWorld
from envs.names import UnknownName
from envs.point_reach import PointReach
from envs.random_grids import random_grid
from envs.rendering import RenderingUnavailable
from envs.tabletop import Tabletop
from envs.tabletop_behaviors import TabletopBehavior
from envs.tabletop_tasks import TASKS as _TABLETOP_TASKS
from envs.tabletop_world import BODIES as _TABLETOP_BODIES

__all__ = [
    "TASKS",
    "Arm",
    "ArmBehavior",
    "Delivery",
    "DoubleIntegrator",
    "Gait",
    "GaitBehavior",
    "GridWorld",
    "MetaWorld",
    "OtherExpert",
    "PointBehavior",
    "PointReach",
    "RandomBehavior",
    "RenderingUnavailable",
    "ScriptedExpert",
    "Tables",
    "Tabletop",
    "TabletopBehavior",
    "UnknownName",
    "make",
    "random_grid",
    "rendering",
    "search_gaits",
]

gym.register("prefrl/PointReach-v0", entry_point="envs.point_reach:PointReach", max_episode_steps=50)
gym.register("prefrl/DoubleIntegrator-v0", entry_point="envs.double_integrator:DoubleIntegrator")
gym.register("prefrl/Delivery-v0", entry_point="envs.delivery:Delivery", max_episode_steps=100)
for _task in TASKS:
    gym.register(
        f"prefrl/MetaWorld-{_task}-v0",
        entry_point="envs.metaworld:MetaWorld",
        kwargs={"task": _task},
        max_episode_steps=500,
    )
for _task, _body in product(_TABLETOP_TASKS, _TABLETOP_BODIES):
    gym.register(
        f"prefrl/Tabletop-{_task}-{_body}-v0",
        entry_point="envs.tabletop:Tabletop",
        kwargs={"task": _task, "body": _body},
        max_episode_steps=60,
    )
for _task, _body in product(_ARM_TASKS, _ARMS):
    gym.register(
        f"prefrl/Arm-{_task}-{_body}-v0",
        entry_point="envs.arms:Arm",
        kwargs={"task": _task, "body": _body},
        max_episode_steps=50,
    )
