"""The environments that an agent acts in: what happened is kept, checked at once, and can be saved at any step.

All act at once, one step each; an episode's reset is put off to its first step, so that between two episodes the random
generators say all. Where an environment shows itself (``info["frame"]`` at reset and at every step), the frames of an
episode are kept while it goes on, for rewards that need all of them.
"""

from __future__ import annotations

import math
import multiprocessing.connection
import warnings
from collections.abc import Iterable
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AsyncVectorEnv

from agents.kept_env import Subprocesses, side_by_side
from agents.online_experience import EpisodeReward, Experience
from prefrl.errors import ConfigError, InvalidData, PrefrlError
from prefrl.files import flatten, unflatten
from prefrl.protocols import MakeEnv

__all__ = ["OnlineEnv", "OnlySpaces", "losses_of"]


class OnlineEnv:
    """make_env: its environment has Boxes of shape (n,) for observations and actions, the latter with finite bounds
    seed: of its random numbers · name: of what acts · num_envs, subprocesses: as in ``agents.kept_env.side_by_side``.
    """

    def __init__(
        self, make_env: MakeEnv, *, seed: int, name: str, num_envs: int = 1, subprocesses: Subprocesses = False
    ) -> None:
        self.envs = side_by_side(make_env, seed=seed, num_envs=num_envs, subprocesses=subprocesses)
        self.num_envs = num_envs
        observations, self.actions = self.envs.single_observation_space, self.envs.single_action_space
        about = self.envs.get_attr("about")[0]
        self.id = about["env"]["id"]
        if not np.isfinite([self.actions.low, self.actions.high]).all():
            self.close()
            raise ConfigError(f"{name}: actions of {self.id} must have finite bounds, but are of {self.actions}.")
        self.spaces = OnlySpaces(observations, self.actions)
        self.experience = Experience(
            observations.shape[0], self.actions.shape[0], name=name, num_envs=num_envs, **about
        )
        self.in_episode = np.zeros(num_envs, np.bool_)
        self.frames: list[list[np.ndarray]] = [[] for _ in range(num_envs)]  # of each open episode, if it has all

    def observe(self) -> np.ndarray:
        """(n, D): where the agent is; the first state of a new episode where the last is over."""
        if not self.in_episode.all():
            beginning = ~self.in_episode
            observations, infos = self._ask("reset", options={"reset_mask": beginning.copy()})
            self._check(observations, np.zeros(self.num_envs), infos)
            for which in np.flatnonzero(beginning).tolist():
                self.experience.begin(observations[which], which)
                frame = _frame_of(infos, which)
                self.frames[which] = [] if frame is None else [frame]
            self.in_episode[:] = True
        return self.experience.present

    def step(
        self, actions: np.ndarray, *, episode_reward: EpisodeReward | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Apply actions (n, A) of the action space; ``observe`` comes before. Who (n,) ended, and ran out of time.

        episode_reward: of the episodes that end with this step.
        """
        if episode_reward is not None:
            self._require_frames(range(self.num_envs))
        observations, rewards, terminated, truncated, infos = self._ask("step", actions)
        self._check(observations, rewards, infos)
        self.experience.add(
            actions,
            observations,
            true_reward=rewards,
            success=infos.get("success", np.zeros(self.num_envs)),
            terminated=terminated,
        )
        self.in_episode = ~(terminated | truncated)
        self._keep_frames(infos)
        for which in np.flatnonzero(~self.in_episode).tolist():
            self.experience.end(which)
            if episode_reward is not None:
                self._require_frames([which])
                self.experience.reward_episode(episode_reward, np.stack(self.frames[which]))
            self.frames[which] = []
        return terminated, truncated & ~terminated

    @property
    def saveable(self) -> bool:
        """Whether ``state_dict`` can be had now: always, but for environments that cannot be kept in an episode."""
        return not any(self._ask("get_attr", "sealed"))

    def state_dict(self) -> dict[str, Any]:
        why = next(filter(None, self._ask("get_attr", "sealed")), None)
        if why is not None:
            raise ConfigError(
                f"The state of {self.id} cannot be kept in the middle of an episode ({why}). "
                "Save at the end of an episode, when saveable is true."
            )
        kept = self._ask("get_attr", "kept")
        frames = [torch.from_numpy(np.stack(frames)) if frames else None for frames in self.frames]
        return {
            "envs": [
                unflatten({name: torch.from_numpy(array) for name, array in arrays.items()}, plain)
                for _, arrays, plain in kept
            ],
            "in_episode": self.in_episode.tolist(),
            "experience": self.experience.state_dict(),
        } | ({"frames": frames} if any(self.frames) else {})

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.experience.load_state_dict(state["experience"])
        self._ask("reset")  # what Gymnasium remembers of an episode that was over
        kept = []
        for in_episode, env in zip(state["in_episode"], state["envs"], strict=True):
            tensors, plain = flatten(env)
            kept.append((in_episode, {name: tensor.numpy() for name, tensor in tensors.items()}, plain))
        self._ask("set_attr", "kept", kept)
        self.in_episode = np.array(state["in_episode"])
        frames = state.get("frames", [None] * self.num_envs)
        self.frames = [[] if tensor is None else list(tensor.numpy()) for tensor in frames]

    def close(self) -> None:
        """End the environments, and their processes; more than once does no harm."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # a step that was interrupted
                self.envs.close(**({"timeout": 5} if isinstance(self.envs, AsyncVectorEnv) else {}))
        except (EOFError, OSError):  # a process that is no more cannot be told
            self.envs.closed = True
            for process in self.envs.processes:
                process.terminate()
                process.join()

    def metrics(self, first_episode: int) -> dict[str, float]:
        """Counts so far; mean length, true return and success of the episodes from ``first_episode`` on, if any."""
        experience = self.experience
        found = {"steps": float(experience.steps), "episodes": float(len(experience.lengths))}
        if len(experience.lengths) > first_episode:
            recent = experience.episodes(first_episode)
            begins = np.cumsum(recent.lengths) - recent.lengths
            found["episode_length"] = float(recent.lengths.mean())
            found["true_return"] = float(np.add.reduceat(recent.true_reward, begins, dtype=np.float64).mean())
            found["success"] = float(np.logical_or.reduceat(recent.success, begins).mean())
        return found

    def _keep_frames(self, infos: dict[str, Any]) -> None:
        """What a step led to; of an episode that lacks a frame, or shows one unlike its first, none is kept."""
        for which, kept in enumerate(self.frames):
            frame = _frame_of(infos, which)
            if kept and frame is not None and (frame.shape, frame.dtype) == (kept[0].shape, kept[0].dtype):
                kept.append(frame)
            else:
                kept.clear()

    def _require_frames(self, those: Iterable[int]) -> None:
        """That the episodes of these environments have all their frames so far."""
        for which in those:
            if not self.frames[which]:
                finished, steps = self.experience.so_far(which)
                raise ConfigError(
                    f"{self.id}, environment {which} of {self.num_envs}: after {steps} steps, episode "
                    f"{finished - (not self.in_episode[which])} lacks frames. episode_reward needs info['frame'], an "
                    "array of numbers and always of one shape, from reset and from every step. Make the environment "
                    "so, as envs.make(…, frames=64) does."
                )

    def _ask(self, what: str, *arguments: Any, **options: Any) -> Any:
        """Call a method of the environments; what they, or their processes, die of is told with their number."""
        try:
            return getattr(self.envs, what)(*arguments, **options)
        except (EOFError, OSError) as error:
            if not isinstance(self.envs, AsyncVectorEnv):
                raise
            processes = self.envs.processes
            multiprocessing.connection.wait([process.sentinel for process in processes], timeout=5)
            ended = [which for which, process in enumerate(processes) if not process.is_alive()]
            codes = [processes[which].exitcode for which in ended]
            self.close()
            raise PrefrlError(
                f"{self.id}: the process of environment {ended} of {self.num_envs} ended with code {codes}. Of -9, "
                "memory is the most frequent reason; lower num_envs."
            ) from error

    def _check(self, observations: np.ndarray, rewards: np.ndarray, infos: dict[str, Any]) -> None:
        """NaN is an error now, not when a network has learned from it; after any, the environments are closed."""
        with np.errstate(over="ignore"):
            wrong = ~(np.isfinite(observations).all(1) & np.isfinite(rewards.astype(np.float32)))
        if not wrong.any():
            return
        which = int(np.flatnonzero(wrong)[0])
        self.close()
        if infos.get("_error", wrong & False)[which]:
            raise InvalidData(f"{self._where(which)} failed: {infos['error'][which]}")
        seen, paid = observations[which], rewards[which : which + 1]
        what, values = ("the reward", paid) if np.isfinite(seen).all() else ("the observation", seen)
        raise InvalidData(
            f"{self._where(which)} gave NaN or infinity: {what} is {np.array2string(values, threshold=8)}. "
            "Find out why the environment made it."
        )

    def _where(self, which: int) -> str:
        finished, steps = self.experience.so_far(which)
        name = self.id if self.num_envs == 1 else f"{self.id}, environment {which} of {self.num_envs}"
        step, total = steps if self.in_episode[which] else 0, self.experience.steps + which
        return f"{name}: step {step} of episode {finished} (step {total} of all)"


def _frame_of(infos: dict[str, Any], which: int) -> np.ndarray | None:
    """What environment ``which`` shows now, if it does."""
    frames = infos.get("frame")
    return None if frames is None or frames[which] is None else frames[which][0]


class OnlySpaces(gym.Env):
    """What Stable-Baselines3 is given in place of the environment, so that nothing but our loop can step it."""

    def __init__(self, observation_space: gym.spaces.Box, action_space: gym.spaces.Box) -> None:
        self.observation_space, self.action_space = observation_space, action_space


def losses_of(model: Any) -> dict[str, float]:
    """What a model of Stable-Baselines3 noted at its last update; NaN (of a variance of nothing) is left out."""
    noted = {name.removeprefix("train/"): float(value) for name, value in model.logger.name_to_value.items()}
    return {name: value for name, value in noted.items() if math.isfinite(value)}
