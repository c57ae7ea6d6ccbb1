"""Pictures of the way: a wrapper that puts a frame of every state into ``info``, for learners that judge videos."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.mujoco import MujocoEnv
from PIL import Image

__all__ = ["FramesInInfo", "frame_arguments"]


class FramesInInfo(gym.Wrapper):
    """``info["frame"]``, (size, size, 3) uint8, at reset and at every step: what ``render`` shows then.

    A frame of another size is brought to it by Pillow's box filter (the mean of what a pixel covers), whatever its
    shape was; one of the same size is not touched.

    Args:
        env: with render_mode "rgb_array".
        size: side of a frame [px], at least 1.
    """

    def __init__(self, env: gym.Env, size: int) -> None:
        super().__init__(env)
        if size < 1:
            raise ValueError(f"frames must be at least 1 px, got {size}")
        if env.render_mode != "rgb_array":
            raise ValueError(f"frames need an environment with render_mode 'rgb_array', {env} has {env.render_mode!r}")
        self.size = size

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """As the environment, with the first frame."""
        observation, info = super().reset(seed=seed, options=options)
        return observation, {**info, "frame": self._frame()}

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """As the environment, with the frame of the state that the action led to."""
        observation, reward, terminated, truncated, info = super().step(action)
        return observation, reward, terminated, truncated, {**info, "frame": self._frame()}

    def _frame(self) -> np.ndarray:
        frame: Any = self.env.render()
        if not isinstance(frame, np.ndarray) or frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
            raise ValueError(
                f"frames need pictures (height, width, 3) uint8 of {self.env}, render() gave {frame!r:.80}"
            )
        if frame.shape[:2] == (self.size, self.size):
            return frame
        return np.array(Image.fromarray(frame).resize((self.size, self.size), Image.Resampling.BOX))


def frame_arguments(creator: Any, parameters: Iterable[str], kwargs: dict[str, Any], size: int) -> dict[str, Any]:
    """The arguments by which the environment draws frames of ``size`` itself; empty where it has none.

    They take the place of the user's width and height; a ``size`` that is of the observations too is left as it is.

    >>> frame_arguments(None, ["width", "height"], {"width": 240}, 64)
    {'width': 64, 'height': 64}
    >>> frame_arguments(None, ["obs", "size"], {"obs": "pixels"}, 32)
    {}
    """
    of_mujoco = isinstance(creator, type) and issubclass(creator, MujocoEnv)  # hidden in their **kwargs
    if of_mujoco or {"width", "height"} <= set(parameters):
        return {"width": size, "height": size}
    if "size" in parameters and kwargs.get("obs") != "pixels":
        return {"size": size}
    return {}
