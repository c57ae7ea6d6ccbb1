"""Arm: a planar arm pushes blocks into a strip, alone or as a person prefers it, in two bodies (after RAPL).

The tasks *group* and *clutter* of "What matters to you?" (Tian et al. 2024, arXiv:2310.07932), whose Franka and Kuka
arms ran in a simulator for GPUs; here they are primitive shapes in MuJoCo, fast on one CPU core, also to draw. The
weights 3, 3 and 0.5, the 0.04 m of *clutter* and the episode's length are of that work, the rest is our own.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import gymnasium as gym
import mujoco
import numpy as np
from gymnasium.spaces import Box

from envs.arms_model import BODIES as _BODIES
from envs.arms_model import joint_targets, mjcf
from envs.names import UnknownName, check_name
from envs.offscreen import OffScreen, lighten
from envs.rendering import require_backend

__all__ = ["BODIES", "ROOM", "SPEED", "STRIP", "TASKS", "Arm"]

_GREEN, _RED, _BLUE = "0.1 0.65 0.2", "0.85 0.15 0.15", "0.3 0.75 0.9"
_COLORS = {"group": (_RED, "0.95 0.8 0.1"), "clutter": (_GREEN, _GREEN, _RED, _BLUE, _BLUE, _RED)}

TASKS: tuple[str, ...] = tuple(_COLORS)
"""The tasks, as in ``prefrl/Arm-<task>-<body>-v0``."""
BODIES: tuple[str, ...] = tuple(_BODIES)
"""The bodies, as in ``prefrl/Arm-<task>-<body>-v0``."""

STRIP = 0.42  # [m] y of the middle of the strip
_HALF_STRIP = 0.05  # [m], how close to the middle counts as success
_NEAR = 0.04  # [m], how close to the middle a block of another color is in the way
_TOGETHER = 0.15  # [m] between centers of two blocks that are together
SPEED = 0.5  # [m/s] of the hand at an action of 1
_STEPS = 20  # simulated, of a step
_DT = 0.1  # [s] of a step
ROOM = ((-0.25, -0.02), (0.25, 0.38))  # [m] of the hand: pushed by it to the end, blocks lie in the strip


class Arm(gym.Env[np.ndarray, np.ndarray]):
    """A robot arm with a hand 0.22 m wide pushes two blocks, 0.06 m wide, into the strip at y = 0.42 m.

    Tasks: in "group" the two blocks of the table are pushed, and a person wants them to stay together on the way, not
    to go one by one; in "clutter" the two green ones are, and the four of other colors shall stay out.

    Actions, ``Box(-1, 1, (2,), float32)``, the same for both bodies; values outside are clipped:

    | index | meaning | min | max | unit |
    |---|---|---|---|---|
    | 0 | velocity of the hand along x (right) | -1 | 1 | 0.5 m/s |
    | 1 | velocity of the hand along y (to the strip) | -1 | 1 | 0.5 m/s |

    The hand's target moves by 0.1 s times that velocity, inside x in [-0.25, 0.25] m, y in [-0.02, 0.38] m; damped
    least squares turn it into angles of the joints, which servos track. The wrist keeps the hand parallel to x.

    Observations, ``Box(5 + 4 N,), float32`` of N = 2 blocks in "group" and 6 in "clutter" (the green ones first), the
    same for both bodies; values outside are clipped to the bounds:

    | index | meaning | min | max | unit |
    |---|---|---|---|---|
    | 0–1 | hand position x, y | -1 | 1 | m |
    | 2–3 | hand velocity x, y | -2 | 2 | m/s |
    | 4–(3 + 2 N) | position x, y of each block | -1 | 1 | m |
    | (4 + 2 N)–(3 + 4 N) | velocity x, y of each block | -2 | 2 | m/s |
    | 4 + 4 N | y of the strip's middle | -1 | 1 | m |

    Rewards [m], with e_i the distance along y of block i = 1, 2 to the strip's middle and h_i that to the hand:

    - ``task_reward = -3 mean_i e_i - 0.5 mean_i h_i``;
    - ``preference_reward = -3 max_i e_i - 0.5 mean_i h_i - 3 c`` with c the distance of the two blocks in "group", and
      in "clutter" 1 where a block of another color is within 0.04 m of the strip's middle, 0 elsewhere.

    ``info``, of reset too: ``task_reward``, ``preference_reward`` (float), ``success`` (bool, both e_i ≤ 0.05 m now),
    ``is_preferred`` (bool, success and never before against the preference in this episode: blocks more than 0.15 m
    apart in "group", one of another color within 0.04 m of the middle in "clutter").

    Termination: never. Truncation: after ``max_episode_steps`` (50). One step is 0.1 s of simulated time.

    Seeding: the start of an episode (hand and blocks) is drawn from ``np_random``; nothing else is random.

    Args:
        task: "group" or "clutter".
        body: "slim", thin and orange with three links and a rake, from the left; "wide", thick and purple with two
            links and a plate, from the right.
        reward: which of the two is given by ``step``: "task" or "preference".
        obs: "state", the table above (frames come by :meth:`render`).
        render_mode: None or "rgb_array"; None never touches GL.
        width: of a frame [px].
        height: of a frame [px].
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"], "render_fps": 10}  # type: ignore[misc]

    def __init__(
        self,
        *,
        task: str = "group",
        body: str = "slim",
        reward: Literal["task", "preference"] = "task",
        obs: Literal["state"] = "state",
        render_mode: str | None = None,
        width: int = 128,
        height: int = 128,
    ) -> None:
        check_name("arm task", task, TASKS)
        check_name("body", body, BODIES)
        check_name("reward", reward, ("task", "preference"))
        check_name("obs", obs, ("state",))
        check_name("render_mode", render_mode or "rgb_array", self.metadata["render_modes"])
        self.task, self.body, self.reward = task, body, reward
        self.render_mode, self.width, self.height = render_mode, width, height
        if render_mode is not None:
            require_backend()  # now, not at the first frame after hours of training
        self._arm = _BODIES[body]
        text = mjcf(self._arm, _COLORS[task], strip=STRIP, half_strip=_HALF_STRIP)
        self._model = mujoco.MjModel.from_xml_string(text)
        lighten(self._model)
        self._data = mujoco.MjData(self._model)
        self._hand = int(self._model.body("hand").id)
        self._joints = len(self._arm.links) + 1  # with the wrist
        self._blocks = len(_COLORS[task])
        self._screen: OffScreen | None = None
        self._target = np.zeros(2)
        self._angles = np.zeros(self._joints - 1)
        self._broken = False  # the preference, in this episode
        bound = np.concatenate([np.repeat([1.0, 2.0, 1.0, 2.0], [2, 2, 2 * self._blocks, 2 * self._blocks]), [1.0]])
        self.observation_space = Box(-bound.astype(np.float32), bound.astype(np.float32))
        self.action_space = Box(-1.0, 1.0, (2,), np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin an episode; with ``seed``, one that depends on the seed (and the arguments) alone."""
        super().reset(seed=seed)
        if options:
            raise UnknownName(f"Arm.reset takes no options, got {sorted(options)}")
        mujoco.mj_resetData(self._model, self._data)
        self._target = self.np_random.uniform((-0.1, -0.02), (0.1, 0.0))
        self._angles = joint_targets(self._arm, np.array(self._arm.rest), self._target, iterations=50)
        self._data.qpos[: self._joints] = self._data.ctrl[:] = self._with_wrist(self._angles)
        blocks = self._data.qpos[self._joints :].reshape(self._blocks, 3)
        blocks[:, :2] = self._draw_blocks()
        blocks[:, 2] = self.np_random.uniform(-0.1, 0.1, self._blocks)
        mujoco.mj_forward(self._model, self._data)
        self._broken = False
        return self._observe(), self._facts()

    def _draw_blocks(self) -> np.ndarray:
        """(N, 2) positions [m]: two side by side; in "clutter" another right beside them, three out of the way."""
        draw = self.np_random.uniform
        x, y = draw(-0.05, 0.05), draw(0.1, 0.14)
        half = draw(0.05, 0.065) if self.task == "group" else draw(0.034, 0.037)
        places = [(x - half, y + draw(-0.01, 0.01)), (x + half, y + draw(-0.01, 0.01))]
        if self.task == "clutter":
            side = 1.0 if draw() < 0.5 else -1.0
            places += [
                (x + side * draw(0.107, 0.112), y + draw(0.0, 0.01)),
                (x + side * draw(0.2, 0.24), y + draw(0.02, 0.14)),
                (x - side * draw(0.23, 0.27), y + draw(0.08, 0.1)),
                (x - side * draw(0.23, 0.27), y + draw(0.0, 0.02)),
            ]
        return np.array(places)

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Move the hand for 0.1 s with the velocity (2,) ``action``."""
        action = np.asarray(action, dtype=np.float64)
        if not np.isfinite(action).all():
            raise ValueError(f"the action has values that are not finite: {action}")
        self._target = np.clip(self._target + _DT * SPEED * action.clip(-1.0, 1.0), *ROOM)
        self._angles = joint_targets(self._arm, self._angles, self._target)
        end = self._with_wrist(self._angles)
        move = (end - self._data.ctrl) / _STEPS
        for left in range(_STEPS - 1, -1, -1):
            self._data.ctrl[:] = end - left * move  # a ramp: the hand moves evenly
            mujoco.mj_step(self._model, self._data)
        mujoco.mj_forward(self._model, self._data)  # positions and velocities of the last state, not the one before
        facts = self._facts()
        return self._observe(), facts[f"{self.reward}_reward"], False, False, facts

    @staticmethod
    def _with_wrist(angles: np.ndarray) -> np.ndarray:
        return np.append(angles, -angles.sum())

    def _positions(self) -> tuple[np.ndarray, np.ndarray]:
        """(2,) of the hand and (N, 2) of the blocks [m]."""
        places = self._data.qpos[self._joints :].reshape(self._blocks, 3)[:, :2]
        return self._data.xpos[self._hand, :2], places

    def _observe(self) -> np.ndarray:
        """(5 + 4 N,) float32, the table of the class."""
        hand, blocks = self._positions()
        motion = np.empty(6)  # turning and moving
        mujoco.mj_objectVelocity(self._model, self._data, mujoco.mjtObj.mjOBJ_XBODY, self._hand, motion, 0)
        velocities = self._data.qvel[self._joints :].reshape(self._blocks, 3)[:, :2]
        parts = [hand, motion[3:5], blocks.ravel(), velocities.ravel(), [STRIP]]
        space: Any = self.observation_space
        return np.concatenate(parts).astype(np.float32).clip(space.low, space.high)

    def _facts(self) -> dict[str, Any]:
        """``info`` of the state as it is; remembers whether the preference was broken."""
        hand, blocks = self._positions()
        ours, others = blocks[:2], blocks[2:]
        errors = np.abs(ours[:, 1] - STRIP)
        reach = 0.5 * float(np.hypot(*(ours - hand).T).mean())
        apart = float(np.hypot(*(ours[0] - ours[1])))
        dirty = bool((np.abs(others[:, 1] - STRIP) <= _NEAR).any())
        self._broken |= apart > _TOGETHER if self.task == "group" else dirty
        success = bool((errors <= _HALF_STRIP).all())
        cost = apart if self.task == "group" else float(dirty)
        return {
            "task_reward": -3.0 * float(errors.mean()) - reach,
            "preference_reward": -3.0 * float(errors.max()) - reach - 3.0 * cost,
            "success": success,
            "is_preferred": success and not self._broken,
        }

    def render(self) -> np.ndarray | None:
        """(height, width, 3) uint8, or None without a ``render_mode``."""
        if self.render_mode is None:
            return None
        if self._screen is None:
            self._screen = OffScreen(self._model, self._data, width=self.width, height=self.height, camera=0)
        return self._screen.frame()

    def close(self) -> None:
        """Free the buffers of the frames."""
        if self._screen is not None:
            self._screen.close()
            self._screen = None
