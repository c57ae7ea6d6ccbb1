"""Meta-World's 50 Sawyer tasks as reproducible Gymnasium environments (Yu et al. 2019, arXiv:1910.10897).

Wraps ``metaworld`` 3.x. Task names are the library's without ``-v3``. What is repaired, each at its cause:

- Seeding: the library ignores ``reset(seed=...)`` and fixes goals when a benchmark is built. Here every
  episode is a function of ``reset(seed=...)`` alone.
- Spaces: the library's bounds have zero width in the goal and are float64 without limits for objects. Here
  one finite float32 Box holds every observation of every task.
- Construction: one simulator instead of two and fifty resets (0.1 s of CPU time instead of 0.65 s).
"""

from __future__ import annotations

import sys
from typing import Any, ClassVar, Literal

import gymnasium as gym
import numpy as np
from gymnasium.envs.mujoco import MujocoEnv
from gymnasium.spaces import Box
from metaworld.env_dict import ENV_CLS_MAP

from envs.names import UnknownName, check_name
from envs.offscreen import OffScreen, lighten, turn_upright
from envs.rendering import require_backend

__all__ = ["TASKS", "MetaWorld"]

TASKS: tuple[str, ...] = tuple(sorted(name.removesuffix("-v3") for name in ENV_CLS_MAP))
"""The 50 task names, as in ``prefrl/MetaWorld-<task>-v0``."""

_HAND = ((-0.525, 0.348, -0.0525), (0.525, 1.025, 0.7))  # [m], the library's own limits
_OBJECT = ((-2.0,) * 3 + (-1.0,) * 4, (2.0,) * 3 + (1.0,) * 4)  # position [m], quaternion
_GOAL = ((-1.0,) * 3, (1.0,) * 3)  # [m]


def _observation_space() -> Box:
    """The Box of the table in :class:`MetaWorld`, the same for every task."""
    low, high = (np.concatenate([_HAND[side], (float(side),), _OBJECT[side], _OBJECT[side]]) for side in (0, 1))
    return Box(
        np.concatenate([low, low, _GOAL[0]]).astype(np.float32),
        np.concatenate([high, high, _GOAL[1]]).astype(np.float32),
    )


class MetaWorld(gym.Env[np.ndarray, np.ndarray]):
    """One Meta-World task: a Sawyer arm moves its hand and gripper to manipulate an object on a table.

    Actions, ``Box(-1, 1, (4,), float32)``; values outside are clipped:

    | index | meaning | min | max | unit |
    |---|---|---|---|---|
    | 0–2 | hand displacement x (right), y (away from the base), z (up) | -1 | 1 | cm per step |
    | 3 | gripper effort: -1 open, 1 close | -1 | 1 | – |

    Observations, ``Box(39,), float32``; values outside are clipped to the bounds:

    | index | meaning | min | max | unit |
    |---|---|---|---|---|
    | 0–2 | hand position x, y, z | -0.525, 0.348, -0.0525 | 0.525, 1.025, 0.7 | m |
    | 3 | gripper opening | 0 | 1 | 0.1 m |
    | 4–6 | first object position | -2 | 2 | m |
    | 7–10 | first object quaternion (order as the task has it) | -1 | 1 | – |
    | 11–13 | second object position, 0 without one | -2 | 2 | m |
    | 14–17 | second object quaternion, 0 without one | -1 | 1 | – |
    | 18–35 | entries 0–17 one step earlier | | | |
    | 36–38 | goal position | -1 | 1 | m |

    Reward: the library's dense reward ``reward_function_version="v2"`` of the task, in [0, 10] per step, 10
    where the task is solved.

    ``info``: ``success`` (bool, of this step, not latched; the benchmark counts an episode as solved if any
    step is), ``near_object``, ``grasp_success``, ``grasp_reward``, ``in_place_reward``, ``obj_to_target``,
    ``unscaled_reward`` (float).

    Termination: never. Truncation: after ``max_episode_steps`` (500, the library's; an argument of
    ``envs.make`` and ``gymnasium.make``). One step is 12.5 ms of simulated time, 80 frames per second.

    Seeding: an episode's object and goal positions are drawn from ``np_random`` when ``goal="random"``, from
    ``goal_seed`` alone when ``goal="fixed"`` (every reset is then the same state); nothing else is random.

    Args:
        task: one of ``TASKS``.
        goal: "random" draws objects and goal anew at every reset, "fixed" once.
        goal_seed: which positions "fixed" uses (default 0); an error with "random".
        render_mode: None or "rgb_array"; None never touches GL.
        camera: corner, corner2, corner3, corner4, topview, behindGripper or gripperPOV; shown upright.
        width: of a frame [px].
        height: of a frame [px].
        fast: without shadows, reflections and multisampling; several times faster in software.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"], "render_fps": 80}  # type: ignore[misc]

    def __init__(
        self,
        *,
        task: str,
        goal: Literal["random", "fixed"] = "random",
        goal_seed: int | None = None,
        render_mode: str | None = None,
        camera: str = "corner2",
        width: int = 480,
        height: int = 480,
        fast: bool = True,
    ) -> None:
        check_name("Meta-World task", task, TASKS)
        check_name("goal", goal, ("random", "fixed"))
        check_name("render_mode", render_mode or "rgb_array", self.metadata["render_modes"])
        if goal == "random" and goal_seed is not None:
            raise ValueError(f"goal_seed={goal_seed} has no effect with goal='random'; use goal='fixed'")
        self.task, self.goal, self.goal_seed = task, goal, goal_seed or 0
        self.render_mode = render_mode
        self._simulator = ENV_CLS_MAP[f"{task}-v3"](width=width, height=height, reward_function_version="v2")
        self._unlock_simulator()
        self._prepare_rendering(camera, fast)
        self._width, self._height = width, height
        self.observation_space = _observation_space()
        self.action_space = Box(-1.0, 1.0, (4,), np.float32)

    def _unlock_simulator(self) -> None:
        """Put the library's environment into the state in which it draws goals by ``np_random``."""
        simulator = self._simulator
        simulator._set_task_called = True  # goals come from us, not from a pickled task
        simulator._partially_observable = False
        # cached while the goal was hidden, with which every goal would be clipped to zero
        simulator.__dict__.pop("sawyer_observation_space", None)
        simulator.seeded_rand_vec = True
        simulator.max_path_length = sys.maxsize  # gymnasium's TimeLimit truncates

    def _prepare_rendering(self, camera: str, fast: bool) -> None:
        """Set up everything that needs no GL, so that a wrong name is found without a renderer."""
        model = self._simulator.model
        check_name("camera", camera, [model.camera(i).name for i in range(model.ncam)])
        self._camera = int(model.camera(camera).id)
        self._screen: OffScreen | None = None
        turn_upright(model, self._simulator.data, self._camera)
        if fast:
            lighten(model)
        if self.render_mode is not None:
            require_backend()  # now, not at the first frame after hours of training

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin an episode; with ``seed``, one that depends on the seed (and the arguments) alone."""
        super().reset(seed=seed)
        if options:
            raise UnknownName(f"MetaWorld.reset takes no options, got {sorted(options)}")
        simulator = self._simulator
        fixed = self.goal == "fixed"
        simulator.np_random = np.random.default_rng(self.goal_seed) if fixed else self.np_random
        # The library builds the first observation before the new positions have gone through the forward
        # kinematics, so it resets twice with equal positions. The first of the two draws them here.
        simulator._freeze_rand_vec = False
        simulator.reset_model()
        simulator._freeze_rand_vec = True
        observation, _ = MujocoEnv.reset(simulator)
        simulator.curr_path_length = 0
        simulator._prev_obs = observation[:18].copy()
        observation[18:36] = observation[:18]
        return self._inside(observation), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Apply (4,) ``action`` for 12.5 ms of simulated time."""
        action = np.asarray(action, dtype=np.float32)
        if not np.isfinite(action).all():
            raise ValueError(f"the action has values that are not finite: {action}")
        observation, reward, _, _, facts = self._simulator.step(action.clip(-1.0, 1.0))
        info: dict[str, Any] = {key: float(value) for key, value in facts.items()}
        info["success"] = bool(facts["success"])
        return self._inside(observation), float(reward), False, False, info

    def _inside(self, observation: np.ndarray) -> np.ndarray:
        """(39,) float32 inside the space; a diverged simulation is an error, not an observation."""
        if not np.isfinite(observation).all():
            raise FloatingPointError(f"the simulation of Meta-World {self.task} diverged: {observation}")
        space: Any = self.observation_space
        return observation.astype(np.float32).clip(space.low, space.high)

    def render(self) -> np.ndarray | None:
        """(height, width, 3) uint8, or None without a ``render_mode``."""
        if self.render_mode is None:
            return None
        if self._screen is None:
            simulator = self._simulator
            self._screen = OffScreen(
                simulator.model,
                simulator.data,
                width=self._width,
                height=self._height,
                camera=self._camera,
            )
        return self._screen.frame()

    def close(self) -> None:
        """Free the buffers of the frames."""
        if self._screen is not None:
            self._screen.close()
            self._screen = None
        self._simulator.close()
