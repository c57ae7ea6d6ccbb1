"""PointReach: a velocity-controlled point in the plane with two sites to go to; trains in seconds.

A toy of our own for tests and demonstrations of preference learning: behaviors that start alike and want
opposite sites make a conflict mix in one line, and every quantity can be checked by hand.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box

from envs.names import UnknownName, check_name

__all__ = ["SITES", "PointReach"]

SITES: dict[str, tuple[float, float]] = {"left": (-0.7, 0.6), "right": (0.7, 0.6)}
"""Position of each site [m]."""

_START = (0.0, -0.7)  # [m]
_STEP = 0.1  # [m], largest displacement per step and axis
_RADIUS = 0.1  # [m], how close counts as success
_COLORS = {"background": (245, 245, 240), "preferred": (60, 150, 80), "other": (190, 80, 70)}
_POINT_COLOR = (40, 60, 160)


class PointReach(gym.Env[np.ndarray, np.ndarray]):
    """A point in a square goes to the preferred one of two sites, left or right.

    Actions, ``Box(-1, 1, (2,), float32)``; values outside are clipped:

    | index | meaning | min | max | unit |
    |---|---|---|---|---|
    | 0 | velocity along x | -1 | 1 | 0.1 m per step |
    | 1 | velocity along y | -1 | 1 | 0.1 m per step |

    Observations, ``Box(-1, 1, (2,), float32)``:

    | index | meaning | min | max | unit |
    |---|---|---|---|---|
    | 0 | position x, right is positive | -1 | 1 | m |
    | 1 | position y, up is positive | -1 | 1 | m |

    Dynamics: ``p' = clip(p + 0.1 clip(a, -1, 1), -1, 1)``, without noise. An episode starts at (0, -0.7) plus
    uniform noise of ``start_noise`` on each axis, at the same distance from both sites on average.

    Reward: ``-‖p' - site(target)‖`` [m], in (-2.4, 0]; at most 0, reached on the site.
    ``info``: ``success`` (bool, within 0.1 m of the preferred site), ``distance`` [m].

    Termination: never. Truncation: after ``max_episode_steps`` (50).

    Args:
        target: the preferred site, "left" or "right"; it is not observed.
        start_noise: half width of the start square, in [0, 0.3] [m].
        render_mode: None or "rgb_array", drawn by numpy alone.
        width: of a frame [px].
        height: of a frame [px].
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"], "render_fps": 20}  # type: ignore[misc]

    def __init__(
        self,
        *,
        target: Literal["left", "right"] = "right",
        start_noise: float = 0.1,
        render_mode: str | None = None,
        width: int = 128,
        height: int = 128,
    ) -> None:
        check_name("target", target, SITES)
        check_name("render_mode", render_mode or "rgb_array", self.metadata["render_modes"])
        if not 0.0 <= start_noise <= 0.3:
            raise ValueError(f"start_noise must be in [0, 0.3] m, got {start_noise}")
        self.target = target
        self.start_noise = start_noise
        self.render_mode = render_mode
        self.width, self.height = width, height
        self._x, self._y = _START
        self.observation_space = Box(-1.0, 1.0, (2,), np.float32)
        self.action_space = Box(-1.0, 1.0, (2,), np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin an episode near (0, -0.7); with ``seed``, one that depends on the seed alone."""
        super().reset(seed=seed)
        if options:
            raise UnknownName(f"PointReach.reset takes no options, got {sorted(options)}")
        dx, dy = self.np_random.uniform(-self.start_noise, self.start_noise, size=2).tolist()
        self._x, self._y = _START[0] + dx, _START[1] + dy
        return self._observe(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Move by 0.1 m times the (2,) ``action``."""
        # plain floats: numpy's cost per call would be ten times that of the arithmetic
        ax, ay = float(action[0]), float(action[1])
        if not (math.isfinite(ax) and math.isfinite(ay)):
            raise ValueError(f"the action has values that are not finite: {action}")
        self._x = _clip(self._x + _STEP * _clip(ax))
        self._y = _clip(self._y + _STEP * _clip(ay))
        site = SITES[self.target]
        distance = math.hypot(self._x - site[0], self._y - site[1])
        return (
            self._observe(),
            -distance,
            False,
            False,
            {"success": distance <= _RADIUS, "distance": distance},
        )

    def _observe(self) -> np.ndarray:
        return np.array((self._x, self._y), dtype=np.float32)

    def render(self) -> np.ndarray | None:
        """(height, width, 3) uint8: preferred site green, the other red, the point blue."""
        if self.render_mode is None:
            return None
        y, x = np.mgrid[1.0 : -1.0 : self.height * 1j, -1.0 : 1.0 : self.width * 1j]
        frame = np.full((self.height, self.width, 3), _COLORS["background"], dtype=np.uint8)
        for name, (sx, sy) in SITES.items():
            color = _COLORS["preferred" if name == self.target else "other"]
            frame[(x - sx) ** 2 + (y - sy) ** 2 <= _RADIUS**2] = color
        frame[(x - self._x) ** 2 + (y - self._y) ** 2 <= 0.05**2] = _POINT_COLOR
        return frame


def _clip(value: float) -> float:
    """Into [-1, 1].

    >>> _clip(-3.0), _clip(0.25)
    (-1.0, 0.25)
    """
    return -1.0 if value < -1.0 else 1.0 if value > 1.0 else value
