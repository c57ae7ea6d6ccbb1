"""Collect episodes: several behaviors act in one environment, each episode under a seed of its own.

An episode's seed depends on the run's seed, its group's name and its number in the group only, so the order
of the groups, or more episodes in one of them, does not change the others.
"""

from __future__ import annotations

import functools
import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np

from prefrl.data.dataset import Episodes
from prefrl.data.videos import Videos, every_kth
from prefrl.errors import InvalidData, PrefrlError
from prefrl.protocols import Behavior, MakeEnv
from prefrl.spaces import action_bounds, as_vector, to_env

__all__ = ["BehaviorGroup", "collect_episodes", "collect_videos", "episode_seeds", "try_behaviors"]

DEFAULT_FPS = 30.0  # for environments that do not say how fast they run


@dataclass(frozen=True)
class BehaviorGroup:
    """``episodes`` episodes made by ``policy``, stored under ``name``."""

    name: str
    episodes: int
    policy: Behavior


class _Episode(NamedTuple):
    observations: np.ndarray  # (T+1, D)
    actions: np.ndarray  # (T, A)
    rewards: np.ndarray  # (T,)
    success: np.ndarray  # (T,)
    terminated: bool
    frames: tuple[np.ndarray, ...]  # T of (H, W, 3), where the environment gives them


def episode_seeds(seed: int, group: str, number: int) -> tuple[int, np.random.Generator]:
    """The environment's seed and the behavior's generator for one episode (numpy ``SeedSequence``).

    >>> env_seed, rng = episode_seeds(0, "expert", 3)
    >>> env_seed == episode_seeds(0, "expert", 3)[0], env_seed == episode_seeds(0, "random", 3)[0]
    (True, False)
    """
    sequence = np.random.SeedSequence([seed, zlib.crc32(group.encode()), number])
    for_env, for_behavior = sequence.spawn(2)
    return int(for_env.generate_state(1)[0] >> 1), np.random.default_rng(for_behavior)  # 31 bits: some envs want int32


def collect_episodes(
    make_env: MakeEnv,
    behaviors: Sequence[BehaviorGroup],
    *,
    max_steps: int,
    seed: int,
    episodes: Sequence[int] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Episodes:
    """Episodes of all groups, in order; each ends at termination, truncation or after ``max_steps`` steps.

    ``episodes``, one number a group, replaces the numbers of the groups.

    Actions are clipped to the action space before they are executed and stored. ``info["success"]``, where
    the environment gives it, is stored per step. ``progress(done, total)`` is called after each episode.
    """
    return _collect(make_env, _with_episodes(behaviors, episodes), max_steps, seed, progress)[0]


def collect_videos(
    make_env: MakeEnv,
    behaviors: Sequence[BehaviorGroup],
    *,
    max_steps: int,
    seed: int,
    every: int = 1,
    episodes: Sequence[int] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Episodes, Videos]:
    """The same episodes, and a video of each: the frames after its steps, ``info["frame"]``, not that of the reset.

    ``every``: keep every so many frames, and the last (:func:`prefrl.data.videos.every_kth`).
    """
    every_kth(np.empty(1), every)  # what is wrong with it shows at once
    keep = functools.partial(every_kth, k=every)
    found, videos = _collect(make_env, _with_episodes(behaviors, episodes), max_steps, seed, progress, keep)
    return found, Videos.from_list(videos)


def _collect(
    make_env: MakeEnv,
    behaviors: Sequence[BehaviorGroup],
    max_steps: int,
    seed: int,
    progress: Callable[[int, int], None] | None,
    keep: Callable[[np.ndarray], np.ndarray] | None = None,
) -> tuple[Episodes, list[np.ndarray]]:
    """All episodes; and what ``keep`` keeps of the frames (T, H, W, 3) of each, none without it."""
    _check_groups(behaviors, max_steps)
    total, done, seeds = sum(group.episodes for group in behaviors), [], []
    videos: list[np.ndarray] = []
    env = make_env(seed=seed)
    try:
        for group in behaviors:
            for number in range(group.episodes):
                env_seed, rng = episode_seeds(seed, group.name, number)
                with _blamed_on(group, env):
                    episode = _run_episode(env, group.policy, max_steps, env_seed, rng, film=keep is not None)
                if keep is not None:
                    videos.append(keep(np.stack(episode.frames)))
                done.append(episode._replace(frames=()))
                seeds.append(env_seed)
                if progress is not None:
                    progress(len(done), total)
        description, fps = _describe(env, max_steps), float(env.metadata.get("render_fps") or DEFAULT_FPS)
    finally:
        env.close()
    found = Episodes(
        observations=np.concatenate([e.observations for e in done]),
        actions=np.concatenate([e.actions for e in done]),
        true_reward=np.concatenate([e.rewards for e in done]),
        success=np.concatenate([e.success for e in done]),
        lengths=np.array([len(e.actions) for e in done]),
        terminated=np.array([e.terminated for e in done]),
        behavior=tuple(group.name for group in behaviors for _ in range(group.episodes)),
        seeds=np.array(seeds),
        env=description,
        fps=fps,
    )
    return found, videos


def try_behaviors(env: gym.Env, behaviors: Sequence[BehaviorGroup], *, seed: int) -> None:
    """Let each behavior begin an episode and act once: one that cannot is an ``InvalidData`` with its name."""
    for group in behaviors:
        with _blamed_on(group, env):
            observation, _ = env.reset(seed=seed)
            group.policy.reset(env, np.random.default_rng(seed))
            group.policy.act(observation)


@contextmanager
def _blamed_on(group: BehaviorGroup, env: gym.Env) -> Iterator[None]:
    """What environments and behaviors raise, who cannot know our errors, says whose episode it was."""
    try:
        yield
    except PrefrlError:
        raise
    except (ValueError, RuntimeError, ArithmeticError) as error:
        where = env.spec.id if env.spec else type(env.unwrapped).__name__
        raise InvalidData(
            f"Behavior {group.name!r} failed in {where}: {error}. Choose behaviors that fit the environment "
            "with data=…, or the environment that they are for with env=…"
        ) from error


def _with_episodes(behaviors: Sequence[BehaviorGroup], episodes: Sequence[int] | None) -> Sequence[BehaviorGroup]:
    if episodes is None:
        return behaviors
    if len(episodes) != len(behaviors):
        names = [group.name for group in behaviors]
        raise InvalidData(f"episodes must be one number for each of {names}, but is {list(episodes)}.")
    return [replace(group, episodes=number) for group, number in zip(behaviors, episodes, strict=True)]


def _check_groups(behaviors: Sequence[BehaviorGroup], max_steps: int) -> None:
    names = [group.name for group in behaviors]
    if len(set(names)) < len(names):
        raise InvalidData(f"Behavior groups need different names (equal names would repeat episodes): {names}.")
    if any(group.episodes < 0 for group in behaviors) or not any(group.episodes for group in behaviors):
        raise InvalidData(f"There is no episode to collect: {[(g.name, g.episodes) for g in behaviors]}.")
    if max_steps < 1:
        raise InvalidData(f"max_steps must be at least 1, but is {max_steps}.")


def _run_episode(
    env: gym.Env, policy: Behavior, max_steps: int, seed: int, rng: np.random.Generator, *, film: bool
) -> _Episode:
    observation, _ = env.reset(seed=seed)
    policy.reset(env, rng)
    low, high = action_bounds(env.action_space)
    observations = [as_vector(observation)]
    actions: list[np.ndarray] = []
    rewards, success, frames = [], [], []
    terminated = truncated = False
    while not (terminated or truncated) and len(actions) < max_steps:
        action = np.clip(np.asarray(policy.act(observation), dtype=np.float32), low, high)
        observation, reward, terminated, truncated, info = env.step(to_env(env.action_space, action))
        observations.append(as_vector(observation))
        actions.append(action)
        rewards.append(float(reward))
        success.append(float(info.get("success", 0.0)) > 0.5)
        if film:
            frames.append(_frame(env, info))
    arrays = np.stack(observations), np.stack(actions), np.array(rewards), np.array(success)
    return _Episode(*arrays, bool(terminated), tuple(frames))


def _frame(env: gym.Env, info: dict[str, Any]) -> np.ndarray:
    """(H, W, 3): the picture in a step's info; a copy, as the environment may draw the next one into it."""
    if "frame" not in info:
        where = env.spec.id if env.spec else type(env.unwrapped).__name__
        raise InvalidData(
            f"{where} gives no pictures: info holds {sorted(info)}, no 'frame'. Make it with frames=SIZE, the pixels "
            "of a side."
        )
    return np.array(info["frame"])


def _describe(env: gym.Env, max_steps: int) -> dict[str, Any]:
    """Plain JSON that says which environment it was: its Gymnasium id and keyword arguments."""
    if env.spec is None:
        return {"id": type(env.unwrapped).__name__, "kwargs": {}, "max_steps": max_steps}
    kwargs = {key: value for key, value in env.spec.kwargs.items() if key not in ("seed", "render_mode")}
    return {"id": env.spec.id, "kwargs": json.loads(json.dumps(kwargs, default=str)), "max_steps": max_steps}
