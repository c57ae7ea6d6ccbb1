"""Rollouts: what a policy really achieves, measured on the same episodes for every policy.

Episode i of evaluation ``seed`` starts from ``env.reset(seed=episode_seeds(...)[i])``, whichever policy
acts and however many environments run side by side, so differences between policies can be taken pair by
pair.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import torch

from prefrl.core import require_finite
from prefrl.errors import InvalidData
from prefrl.protocols import EpisodeActor, MakeEnv, Policy, StatefulPolicy
from prefrl.spaces import as_vector, to_env

__all__ = ["PolicyBehavior", "Rollouts", "act_in_rows", "episode_seeds", "rollout"]

ROWS = 16  # observations per call of the policy


@dataclass(frozen=True)
class Rollouts:
    """E evaluated episodes.

    success: (E,) bool, ``info["success"]`` was true at any step (False where an environment never says so)
    returns: (E,) float64, sum of the environment's own reward · lengths: (E,) int64, steps
    preferred: (E,) bool, ``info["is_preferred"]`` was true at the end (False where an environment never says so)
    seeds: (E,) int64, what ``env.reset`` got
    start_observations, end_observations: (E, D) float32, the first and the last of each episode.
    """

    success: np.ndarray
    preferred: np.ndarray
    returns: np.ndarray
    lengths: np.ndarray
    seeds: np.ndarray
    start_observations: np.ndarray
    end_observations: np.ndarray

    def __len__(self) -> int:
        return len(self.seeds)


def episode_seeds(seed: int, episodes: int) -> np.ndarray:
    """(E,) int64 reset seeds in [0, 2³¹); a longer evaluation starts with the episodes of a shorter one.

    >>> bool((episode_seeds(7, 5)[:3] == episode_seeds(7, 3)).all())
    True
    """
    return (np.random.SeedSequence(seed).generate_state(episodes) >> 1).astype(np.int64)


def rollout(
    policy: Policy,
    make_env: MakeEnv,
    *,
    episodes: int,
    seed: int,
    max_steps: int,
    num_envs: int = 2,
    device: torch.device | str = "cpu",
) -> Rollouts:
    """Run ``episodes`` episodes of at most ``max_steps`` steps; ``num_envs`` environments step in lock-step.

    More environments pay off where the policy is slow (they share its calls), fewer where building them is.
    A free environment takes the next episode, so short episodes do not wait for long ones. The result does
    not depend on ``num_envs``. A ``StatefulPolicy`` acts by one actor an episode, whose seed follows from the
    episode's. ``device`` is where the policy's parameters are. NaN from the policy or the
    environment raises ``InvalidData`` naming the episode.
    """
    if min(episodes, max_steps, num_envs) < 1:
        raise ValueError(f"episodes, max_steps, num_envs must be >= 1, but are {episodes}, {max_steps}, {num_envs}.")
    seeds = episode_seeds(seed, episodes)
    waiting = iter(enumerate(seeds.tolist()))
    finished: dict[int, _Lane] = {}
    envs = [make_env(seed=seed) for _ in range(min(num_envs, episodes))]
    try:
        lanes = [_Lane(env, *next(waiting), policy) for env in envs]
        while lanes:
            actions = _actions(policy, lanes, device)
            for lane, action in zip(lanes, actions, strict=True):
                lane.step(action, max_steps)
            done = [lane for lane in lanes if lane.done]
            finished |= {lane.episode: lane for lane in done}
            # not strict: the last lanes find no episode waiting, and rest
            started = [_Lane(lane.env, *episode, policy) for lane, episode in zip(done, waiting, strict=False)]
            lanes = [lane for lane in lanes if not lane.done] + started
    finally:
        for env in envs:
            env.close()
    ordered = [finished[i] for i in range(episodes)]
    return Rollouts(
        success=np.array([lane.success for lane in ordered]),
        preferred=np.array([lane.preferred for lane in ordered]),
        returns=np.array([lane.total for lane in ordered]),
        lengths=np.array([lane.length for lane in ordered]),
        seeds=seeds,
        start_observations=np.stack([lane.start_observation for lane in ordered]),
        end_observations=np.stack([lane.observation for lane in ordered]),
    )


class _Lane:
    """One episode in one environment."""

    def __init__(self, env: gym.Env, episode: int, seed: int, policy: Policy) -> None:
        self.env, self.episode, self.seed = env, episode, seed
        self.actor = _actor(policy, np.random.default_rng(seed))
        self.success, self.preferred, self.total, self.length, self.done = False, False, 0.0, 0, False
        observation, _ = env.reset(seed=seed)
        self.start_observation = self.observation = self._checked(observation)

    def step(self, action: np.ndarray, max_steps: int) -> None:
        if not np.isfinite(action).all():
            require_finite(f"The policy's action in {self}", action)
        observation, reward, terminated, truncated, info = self.env.step(to_env(self.env.action_space, action))
        self.observation = self._checked(observation)
        self.success |= bool(info.get("success", False))
        self.preferred = bool(info.get("is_preferred", False))
        self.total += float(reward)
        self.length += 1
        self.done = bool(terminated or truncated or self.length >= max_steps)
        if not np.isfinite(self.total):
            require_finite(f"The environment's reward in {self}", np.array([reward]))

    def _checked(self, observation: Any) -> np.ndarray:
        vector = as_vector(observation)
        if not np.isfinite(vector).all():
            require_finite(f"The environment's observation in {self}", vector)
        return vector

    def __str__(self) -> str:
        return f"episode {self.episode} (seed {self.seed}) at step {self.length}"


def _actor(policy: Policy, rng: np.random.Generator) -> EpisodeActor | None:
    """What acts in the episode of ``rng``; None where the policy has no state within an episode."""
    return policy.episode(int(rng.integers(2**63))) if isinstance(policy, StatefulPolicy) else None


def _actions(policy: Policy, lanes: Sequence[_Lane], device: torch.device | str) -> Sequence[np.ndarray]:
    """An action (A,) for each lane."""
    actors = [lane.actor for lane in lanes]
    if None in actors:
        return list(act_in_rows(policy, np.stack([lane.observation for lane in lanes]), device=device))
    return [actor.act(lane.observation) for actor, lane in zip(actors, lanes, strict=True) if actor is not None]


def act_in_rows(policy: Policy, observations: np.ndarray, *, device: torch.device | str = "cpu") -> np.ndarray:
    """(B, D) -> (B, A) float32: ``policy.act`` on batches of exactly 16 rows, padded with copies.

    A matrix product rounds differently for different batch sizes. With one size, an episode's actions do
    not depend on how many others run beside it.
    """
    B = len(observations)
    padded = observations[np.minimum(np.arange(-(-B // ROWS) * ROWS), B - 1)]
    rows = torch.as_tensor(padded, dtype=torch.float32, device=device)
    with torch.no_grad():
        actions = torch.cat([policy.act(part) for part in rows.split(ROWS)])
    if actions.ndim != 2 or len(actions) != len(rows):
        raise InvalidData(f"policy.act must give (B, A) for B = {ROWS} observations, but gave {tuple(actions.shape)}.")
    return actions[:B].to("cpu", torch.float32).numpy()


class PolicyBehavior:
    """A ``Policy`` as a ``Behavior``; acts exactly as in ``rollout``, so a video shows what was evaluated."""

    def __init__(self, policy: Policy, *, device: torch.device | str = "cpu") -> None:
        self.policy = policy
        self.device = device
        self.actor: EpisodeActor | None = None

    def reset(self, env: gym.Env, rng: np.random.Generator) -> None:
        """Begin an episode: ``rollout``'s actor of this episode, if ``rng`` is ``default_rng`` of its seed."""
        self.actor = _actor(self.policy, rng)

    def act(self, observation: np.ndarray) -> np.ndarray:
        """(D,) -> (A,) float32; ``policy.act`` where the policy has no state, or no episode has begun."""
        row = as_vector(observation)
        if self.actor is not None:
            return self.actor.act(row)
        return act_in_rows(self.policy, row[None], device=self.device)[0]
