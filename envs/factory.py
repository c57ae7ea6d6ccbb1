"""Builds any registered Gymnasium environment by id, seeded, checked and able to render without a display."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import gymnasium as gym
from gymnasium.envs.mujoco import MujocoEnv
from gymnasium.envs.registration import load_env_creator

from envs.frames import FramesInInfo, frame_arguments
from envs.names import check_name
from envs.offscreen import OffScreen, lighten
from envs.rendering import require_backend

__all__ = ["make"]

_OF_GYMNASIUM = ("max_episode_steps", "disable_env_checker")


class _Frames(gym.Wrapper):
    """Frames of one of Gymnasium's MuJoCo environments by :class:`envs.offscreen.OffScreen`."""

    def __init__(self, env: gym.Env) -> None:
        super().__init__(env)
        require_backend()  # now, not at the first frame after hours of training
        self._screen: OffScreen | None = None

    def render(self) -> Any:
        """(height, width, 3) uint8."""
        if self._screen is None:
            renderer: Any = self.unwrapped.mujoco_renderer  # type: ignore[attr-defined]
            lighten(renderer.model)
            self._screen = OffScreen(
                renderer.model,
                renderer.data,
                width=renderer.width,
                height=renderer.height,
                camera=renderer.camera_id,
                follow=renderer.default_cam_config,
            )
        return self._screen.frame()

    def close(self) -> None:
        """Free the frame's buffers and the simulator."""
        if self._screen is not None:
            self._screen.close()
            self._screen = None
        super().close()


def make(id: str, *, seed: int, render_mode: str | None = None, frames: int | None = None, **kwargs: Any) -> gym.Env:
    """The environment ``id``, reset once with ``seed``; with ``id`` and ``kwargs`` bound, a ``MakeEnv``.

    Bind with ``functools.partial(envs.make, "prefrl/PointReach-v0", target="left")``: the result pickles, so
    worker processes can build their own.

    Args:
        id: a registered id, ``prefrl/...`` or plain Gymnasium; a misspelt one is an error with the nearest.
        seed: of the episode sequence and of the action space.
        render_mode: None, which never touches GL, "rgb_array", or another mode of the environment.
        frames: side [px] of the pictures that ``info["frame"]`` of reset and step shall have, (frames, frames, 3)
            uint8, drawn at this size where the environment can (:mod:`envs.frames`); None: there are none.
        kwargs: of the environment's constructor, and ``max_episode_steps``.

    >>> env = make("prefrl/PointReach-v0", seed=0, target="left", max_episode_steps=20)
    >>> observation, info = env.reset()
    >>> observation.shape
    (2,)
    """
    spec = gym.registry[check_name("environment id", id, gym.registry)]
    creator = spec.entry_point if callable(spec.entry_point) else load_env_creator(str(spec.entry_point))
    parameters = inspect.signature(creator).parameters
    _check_arguments(id, parameters, kwargs)
    if frames is not None:
        if render_mode not in (None, "rgb_array"):
            raise ValueError(
                f"frames={frames} are drawn with render_mode 'rgb_array', not {render_mode!r}: leave it out"
            )
        render_mode, kwargs = "rgb_array", {**kwargs, **frame_arguments(creator, parameters, kwargs, frames)}
    env = gym.make(id, render_mode=render_mode, **kwargs)
    if render_mode == "rgb_array" and isinstance(env.unwrapped, MujocoEnv):
        env = _Frames(env)
    if frames is not None:
        env = FramesInInfo(env, frames)
    env.reset(seed=seed)
    env.action_space.seed(seed)
    return env


def _check_arguments(id: str, parameters: Mapping[str, inspect.Parameter], kwargs: dict[str, Any]) -> None:
    """An argument that the constructor does not have is an error with the nearest name."""
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
        return  # the class takes any keyword and checks them itself
    for name in kwargs:
        check_name(f"argument of {id}", name, (*parameters, *_OF_GYMNASIUM))
