"""Environments side by side, in this process or in processes of their own, whose states can be read and written there.

Gymnasium's ``SyncVectorEnv`` and ``AsyncVectorEnv`` step them. Each stands in a wrapper, so that ``agents.env_state``
works where the environment is. Which process steps an environment cannot change a number: each has a random generator
of its own, and what travels are float32 observations, float64 rewards and whole states.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
import traceback
from functools import partial
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv

from agents.env_state import env_description, load_env_state, save_env_state, why_not_kept
from prefrl.errors import ConfigError
from prefrl.files import flatten, unflatten
from prefrl.protocols import MakeEnv
from prefrl.spaces import as_vector

__all__ = ["KeptEnv", "Subprocesses", "env_seed", "side_by_side"]

Subprocesses = bool | Literal["auto"]

DEFAULT_FPS = 30.0  # [1/s], for environments that do not say how fast they run
TIMED_STEPS = 50
WAY_SECONDS = 250e-6  # [s] of cores that the way of a step to another process and back takes: measured by a pilot
WAY_SECONDS_HERE = 75e-6  # [s] of it that are of this process


def side_by_side(make_env: MakeEnv, *, seed: int, num_envs: int, subprocesses: Subprocesses) -> Any:
    """A ``SyncVectorEnv`` or ``AsyncVectorEnv`` of ``KeptEnv``, each with a seed of its own; only the caller resets.

    subprocesses: a process for each; "auto": where several share more than one core, and a step, which is timed,
    takes longer than its part of a step and of its way to another process on so many cores.
    """
    if num_envs < 1:
        raise ConfigError(f"num_envs must be >= 1, but is {num_envs}.")
    if subprocesses not in (True, False, "auto"):
        raise ConfigError(f"subprocesses must be true, false or auto, but is {subprocesses!r}.")
    makers = [partial(KeptEnv, make_env, env_seed(seed, which), os.getpid()) for which in range(num_envs)]
    apart = _pays(makers[0], num_envs) if subprocesses == "auto" else subprocesses
    if not apart:
        return SyncVectorEnv(makers, autoreset_mode=AutoresetMode.DISABLED)
    kind = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"  # fork copies threads
    if kind == "forkserver":
        multiprocessing.get_context(kind).set_forkserver_preload([__name__])  # imported once, for all of them
    return AsyncVectorEnv(makers, context=kind, autoreset_mode=AutoresetMode.DISABLED)


def env_seed(seed: int, which: int) -> int:
    """Of environment ``which``: ``seed`` itself for the first; others are not the seeds of neighboring runs.

    >>> env_seed(5, 0), env_seed(5, 1), env_seed(6, 1)
    (5, 1883527203, 2093112581)
    """
    if which == 0:
        return seed
    return int(np.random.SeedSequence(seed, spawn_key=(which,)).generate_state(1)[0] >> 1)


class KeptEnv(gym.Wrapper):
    """One environment, wherever it is: observations as float32 vectors, its state as a value, its errors as text.

    home: the process that acts; in another one, Ctrl-C is left to it.
    """

    def __init__(self, make_env: MakeEnv, seed: int, home: int) -> None:
        if os.getpid() != home:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        super().__init__(make_env(seed=seed))
        self.observation_space = self._box("observation_space")
        self.action_space = self._box("action_space")
        self.in_episode = False

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        """As the environment's own ``reset()``; of its infos, the frame alone."""
        try:
            observation, info = self.env.reset()
        except Exception as error:  # noqa: BLE001 (whatever it is, it must reach the process that acts)
            return self._failed(error)
        self.in_episode = True
        return as_vector(observation), _frame(info)

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """As the environment's own ``step``; of its infos, success and the frame alone."""
        try:
            observation, reward, terminated, truncated, info = self.env.step(action)
        except Exception as error:  # noqa: BLE001 (whatever it is, it must reach the process that acts)
            observation, info = self._failed(error)
            return observation, 0.0, False, False, info
        self.in_episode = not (terminated or truncated)
        success = {"success": True} if info.get("success", False) else {}
        return as_vector(observation), float(reward), bool(terminated), bool(truncated), success | _frame(info)

    @property
    def about(self) -> dict[str, Any]:
        """``{"env", "fps"}`` as in ``prefrl.data.dataset.Episodes``."""
        limit = self.env.spec.max_episode_steps if self.env.spec else None
        fps = float(self.env.metadata.get("render_fps") or DEFAULT_FPS)
        return {"env": {**env_description(self.env), "max_steps": limit}, "fps": fps}

    @property
    def sealed(self) -> str | None:
        """What keeps it from being saved now; None if nothing does."""
        return why_not_kept(self.env) if self.in_episode else None

    @property
    def kept(self) -> tuple[bool, dict[str, np.ndarray], Any]:
        """All of its state, in arrays, because tensors would not travel but be shared."""
        tensors, plain = flatten(save_env_state(self.env, between_episodes=not self.in_episode))
        return self.in_episode, {name: tensor.numpy() for name, tensor in tensors.items()}, plain

    @kept.setter
    def kept(self, kept: tuple[bool, dict[str, np.ndarray], Any]) -> None:
        self.in_episode, arrays, plain = kept
        load_env_state(self.env, unflatten({name: torch.from_numpy(array) for name, array in arrays.items()}, plain))

    def _box(self, which: str) -> gym.spaces.Box:
        """A space as float32, in which everything is kept."""
        space = getattr(self.env, which)
        if not isinstance(space, gym.spaces.Box) or len(space.shape) != 1:
            name = env_description(self.env)["id"]
            raise ConfigError(f"{name}: {which} must be a Box of shape (n,), but is {space}. Choose another env=….")
        with np.errstate(over="ignore"):
            return gym.spaces.Box(space.low.astype(np.float32), space.high.astype(np.float32), dtype=np.float32)

    def _failed(self, error: Exception) -> tuple[np.ndarray, dict[str, Any]]:
        """No observation, and why not: of arithmetic what it says, of anything else where it happened too."""
        text = str(error) if isinstance(error, ArithmeticError) else "".join(traceback.format_exception(error))
        return np.full(self.observation_space.shape or (), np.nan, np.float32), {"error": text}


def _frame(info: dict[str, Any]) -> dict[str, Any]:
    """A copy, because it is kept; in a tuple, so that Gymnasium hands on each environment's as it is."""
    frame = info.get("frame")
    return {"frame": (frame.copy(),)} if isinstance(frame, np.ndarray) and frame.dtype.kind in "biuf" else {}


def _pays(maker: Any, num_envs: int) -> bool:
    """Whether steps in as many processes as there are cores, and ways to them, take less than steps here."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    together = min(num_envs, cores)
    if together == 1 or multiprocessing.current_process().daemon:
        return False
    env, seconds, over = maker(), [], True
    middle = (env.action_space.low + env.action_space.high) / 2
    for _ in range(TIMED_STEPS):
        if over:
            env.reset()
        start = time.perf_counter()
        _, _, terminated, truncated, _ = env.step(middle)
        seconds.append(time.perf_counter() - start)
        over = terminated or truncated
    env.close()
    step = float(np.median(seconds))
    return step > max(WAY_SECONDS_HERE, (step + WAY_SECONDS) / together)
