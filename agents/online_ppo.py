"""Proximal policy optimization that learns while it acts, from a learned reward: the agent of PrefPPO.

PrefPPO is B-Pref's (arXiv 2111.03026) on-policy counterpart of PEBBLE, after Christiano et al. 2017 (arXiv 1706.03741).
The networks and the update are Stable-Baselines3's ``PPO`` (Schulman et al. 2017, arXiv 1707.06347); stepping and
random numbers are ours. A rollout is rewarded when it is complete, in one batch, before its advantages are computed;
between two rollouts nothing but the policy and the environment goes on, and a state can be saved there: a killed run
continues to bitwise the same numbers, on one machine with as many threads. A reward that needs the whole episode
(``episode_reward``: optimal transport of its video, RAPL, arXiv 2310.07932) needs rollouts of whole episodes.

With ``reward="env"`` it is Stable-Baselines3's PPO with as many environments, schedules included, but for rounding: V
and log-probs of a rollout are computed at once, not step by step. B-Pref's, in 16 or 32 environments, normalizes
observations and explores by noise that depends on the state; this one does not.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, get_args

import numpy as np
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.vec_env import DummyVecEnv
from torch import Tensor

from agents.kept_env import Subprocesses
from agents.online_env import OnlineEnv, losses_of
from agents.online_experience import (
    EpisodeReward,
    FinishedEpisodes,
    Reward,
    RewardFunction,
    Steps,
    require_one_reward,
    rewards_of,
)  # fmt: skip
from agents.online_randomness import OwnRandomness
from agents.sb3 import SB3Policy
from prefrl.errors import ConfigError, DamagedFile
from prefrl.protocols import MakeEnv

__all__ = ["OnlinePPO", "Schedule"]

Schedule = Literal["constant", "linear"]
"""As it is, or falling linearly to 0 at ``schedule_steps``, as Stable-Baselines3 counts what remains."""


class OnlinePPO:
    """An online learner. The defaults are Stable-Baselines3's.

    make_env: of the environment that it acts in; Box actions with finite bounds
    seed: of all randomness. The other arguments are explained in ``configs/agent/ppo_online.yaml``.
    """

    def __init__(
        self,
        *,
        make_env: MakeEnv,
        seed: int,
        num_envs: int = 1,
        subprocesses: Subprocesses = "auto",
        rollout_steps: int = 2048,
        epochs: int = 10,
        batch_size: int = 64,
        lr: float = 3e-4,
        gamma: float = 0.99,
        gae_lambda: float = 0.95,
        clip: float = 0.2,
        clip_schedule: Schedule = "constant",
        lr_schedule: Schedule = "constant",
        schedule_steps: int | None = None,
        explore_epochs: int | None = None,
        entropy_weight: float = 0.0,
        value_weight: float = 0.5,
        max_grad_norm: float = 0.5,
        hidden: Sequence[int] = (64, 64),
    ) -> None:
        _require_ranges(rollout_steps, epochs, batch_size, lr, gamma, gae_lambda, clip, min(hidden, default=1))
        _require_schedules({"clip_schedule": clip_schedule, "lr_schedule": lr_schedule}, schedule_steps, explore_epochs)
        self.rollout_steps, self.schedule_steps = rollout_steps, schedule_steps
        self.epochs, self.explore_epochs = epochs, epochs if explore_epochs is None else explore_epochs
        if rollout_steps % max(num_envs, 1):
            raise ConfigError(f"OnlinePPO: rollout_steps={rollout_steps} must be a multiple of num_envs={num_envs}.")
        self.world = OnlineEnv(make_env, seed=seed, name="OnlinePPO", num_envs=num_envs, subprocesses=subprocesses)
        self.randomness = OwnRandomness(seed)
        with self.randomness.in_place():
            self.model = PPO(
                "MlpPolicy",
                DummyVecEnv([partial(copy.copy, self.world.spaces)] * num_envs),
                learning_rate=_scheduled(lr, lr_schedule),
                n_steps=rollout_steps // num_envs,
                batch_size=batch_size,
                n_epochs=epochs,
                gamma=gamma,
                gae_lambda=gae_lambda,
                clip_range=_scheduled(clip, clip_schedule),
                ent_coef=entropy_weight,
                vf_coef=value_weight,
                max_grad_norm=max_grad_norm,
                policy_kwargs={"net_arch": list(hidden), "optimizer_kwargs": {"eps": 1e-5, "fused": True}},
                device="cpu",
            )
        self.model.set_logger(Logger(folder=None, output_formats=[]))
        self.policy = SB3Policy(self.model)

    @property
    def steps(self) -> int:
        """Environment steps so far."""
        return self.world.experience.steps

    @property
    def step_multiple(self) -> int:
        """What steps to ``collect`` must be a multiple of: it pauses between rollouts only."""
        return self.rollout_steps

    @property
    def saveable(self) -> bool:
        """Whether ``state_dict`` can be had now: always, but for environments that cannot be kept in an episode."""
        return self.world.saveable

    def collect(
        self,
        steps: int,
        *,
        reward: Reward = None,
        batch_reward: RewardFunction | None = None,
        episode_reward: EpisodeReward | None = None,
    ) -> dict[str, float]:
        """Act for so many environment steps, a multiple of ``rollout_steps``, and learn after each rollout.

        reward: (B, D), (B, A) → (B,) with the actions that were executed; "env" is the environment's own; None is 0
        batch_reward: likewise, learned from in place of what is written beside the steps; without a ``reward`` it is
        exploration, with ``explore_epochs``
        episode_reward: in place of both: frames (T+1, ...) of a finished episode → (T,); all must have ended when a
        rollout is complete. Returns metrics.
        """
        require_one_reward("OnlinePPO", episode_reward, reward, batch_reward)
        if steps % self.rollout_steps:
            raise ConfigError(f"OnlinePPO: steps must be a multiple of {self.rollout_steps}, a rollout; got {steps}.")
        first_episode = len(self.world.experience.lengths)
        exploring = reward is None and batch_reward is not None
        self.model.n_epochs = self.explore_epochs if exploring else self.epochs
        with self.randomness.in_place():
            for _ in range(steps // self.rollout_steps):
                self._roll_out(reward, batch_reward, episode_reward)
                if self.schedule_steps is not None:
                    self.model._current_progress_remaining = max(0.0, 1.0 - self.steps / self.schedule_steps)
                self.model.train()
        return {**self.world.metrics(first_episode), **losses_of(self.model)}

    def relabel(self, reward: Reward) -> None:
        """Nothing: a rollout is rewarded as a whole, learned from and gone, so none is left with an older reward."""

    def reset_critic(self) -> None:
        """New weights for V and no memory of them in the optimizer: B-Pref's, once its unsupervised phase is over."""
        model = self.model
        with self.randomness.in_place():
            new: Any = model.policy_class(
                model.observation_space, model.action_space, model.lr_schedule, **model.policy_kwargs
            )
        policy = model.policy
        pairs = (policy.value_net, new.value_net), (policy.mlp_extractor.value_net, new.mlp_extractor.value_net)
        for old, fresh in pairs:
            old.load_state_dict(fresh.state_dict())
            for parameter in old.parameters():
                policy.optimizer.state.pop(parameter, None)

    def episodes(self, first: int = 0) -> FinishedEpisodes:
        """Finished episodes from number ``first`` on, for queries: ``Episodes(**learner.episodes()._asdict())``."""
        return self.world.experience.episodes(first)

    def states(self) -> Tensor:
        """(M, D): a view of every state so far, for rewards of novelty."""
        return torch.from_numpy(self.world.experience.observations)

    def state_dict(self) -> dict[str, Any]:
        """Everything that a bitwise resume needs, as tensors and plain JSON."""
        return {
            "kind": "OnlinePPO",
            "policy": copy.deepcopy(self.model.policy.state_dict()),
            "optimizer": copy.deepcopy(self.model.policy.optimizer.state_dict()),
            "updates": self.model._n_updates,
            "world": self.world.state_dict(),
            "randomness": self.randomness.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from where ``state_dict`` was taken, in a learner made with the same arguments."""
        if state.get("kind") != "OnlinePPO":
            raise DamagedFile(f"This is the state of {state.get('kind')!r}, not of an OnlinePPO.")
        self.world.load_state_dict(state["world"])
        self.model.policy.load_state_dict(state["policy"])
        self.model.policy.optimizer.load_state_dict(state["optimizer"])
        self.model._n_updates = state["updates"]
        self.randomness.load_state_dict(state["randomness"])

    def close(self) -> None:
        self.world.close()

    @torch.no_grad()
    def _roll_out(
        self, reward: Reward, batch_reward: RewardFunction | None, episode_reward: EpisodeReward | None
    ) -> None:
        """Step 1: act. Step 2: V and log-probs of all that was done. Step 3: reward it. Step 4: advantages."""
        experience, policy, buffer = self.world.experience, self.model.policy, self.model.rollout_buffer
        box, first, begins, actions, out_of_time = self.world.actions, experience.steps, [], [], []
        policy.set_training_mode(False)
        for _ in range(buffer.buffer_size):
            begins.append(~self.world.in_episode)
            distribution = policy.get_distribution(torch.from_numpy(self.world.observe()))
            actions.append(distribution.get_actions().numpy())
            _, truncated = self.world.step(np.clip(actions[-1], box.low, box.high), episode_reward=episode_reward)
            out_of_time.append(truncated)

        steps = experience.at(np.arange(first, experience.steps))
        values, log_probs, _ = policy.evaluate_actions(  # of all at once, which is faster
            torch.from_numpy(steps.observations), torch.from_numpy(np.concatenate(actions))
        )
        buffer.reset()
        filled = {"observations": steps.observations, "actions": np.concatenate(actions), "values": values.numpy(),
                  "log_probs": log_probs.numpy(), "episode_starts": np.stack(begins)}  # fmt: skip
        for name, rows in filled.items():
            array = getattr(buffer, name)
            array[:] = rows.reshape(array.shape)
        buffer.full = True

        given = self._rewards(first, reward, batch_reward, episode_reward)
        buffer.rewards[:] = given.reshape(buffer.rewards.shape)
        for step, which in np.argwhere(out_of_time):  # a time limit is no end: what would have followed counts
            at = experience.at(np.array([first + self.world.num_envs * step + which]))
            buffer.rewards[step, which] += self.model.gamma * self._value(at)
        last = policy.predict_values(torch.from_numpy(experience.present))
        buffer.compute_returns_and_advantage(last, ~self.world.in_episode)

    def _rewards(
        self,
        first: int,
        reward: Reward,
        batch_reward: RewardFunction | None,
        episode_reward: EpisodeReward | None,
    ) -> np.ndarray:
        """What the steps from ``first`` on are learned from."""
        experience = self.world.experience
        if episode_reward is not None:  # it has written them
            self._require_whole_episodes()
            return experience.rewards[first:]
        rewards = experience.reward_steps(first, reward)
        if batch_reward is None:
            return rewards
        return rewards_of(batch_reward, experience.at(np.arange(first, experience.steps)))

    def _require_whole_episodes(self) -> None:
        """That no episode goes on after this rollout; if one does, which number of steps would be right."""
        world, n = self.world, self.world.num_envs
        if not world.in_episode.any():
            return
        open_steps = max(world.experience.so_far(which)[1] for which in np.flatnonzero(world.in_episode).tolist())
        lengths = {*world.experience.lengths.tolist()} or {world.experience.env.get("max_steps") or 0}
        advice = (
            f"choose a multiple of num_envs={n} times the steps of an episode; if these differ, no number is right: "
            "use online_agent=sac_online"
        )
        if len(lengths) == 1 and max(lengths) > open_steps:
            whole = math.lcm(n * max(lengths), self.model.batch_size)
            advice = (
                f"choose rollout_steps={-(-self.rollout_steps // whole) * whole} or another multiple of {whole}, for "
                f"episodes of {max(lengths)} steps, num_envs={n} and batch_size={self.model.batch_size}"
            )
        raise ConfigError(
            f"OnlinePPO: with episode_reward a rollout must consist of whole episodes, but after "
            f"rollout_steps={self.rollout_steps} one has made {open_steps} steps and goes on; {advice}."
        )

    def _value(self, step: Steps) -> float:
        """V of where a step led."""
        return float(self.model.policy.predict_values(torch.from_numpy(step.next_observations)))


def _scheduled(value: float, schedule: Schedule) -> float | Callable[[float], float]:
    """As Stable-Baselines3 takes it: a number, or a function of the share of the steps that remains, 1 to 0."""
    return value if schedule == "constant" else lambda remaining: remaining * value


def _require_schedules(schedules: dict[str, Schedule], schedule_steps: int | None, explore_epochs: int | None) -> None:
    for name, schedule in schedules.items():
        if schedule not in get_args(Schedule):
            raise ConfigError(f"OnlinePPO: {name} must be one of {', '.join(get_args(Schedule))}, but is {schedule!r}.")
        if schedule == "linear" and schedule_steps is None:
            raise ConfigError(f"OnlinePPO: {name}=linear needs schedule_steps, the steps until it is 0.")
    for name, number in {"schedule_steps": schedule_steps, "explore_epochs": explore_epochs}.items():
        if number is not None and number < 1:
            raise ConfigError(f"OnlinePPO: {name} must be >= 1 or null, but is {number}.")


def _require_ranges(
    rollout_steps: int,
    epochs: int,
    batch_size: int,
    lr: float,
    gamma: float,
    gae_lambda: float,
    clip: float,
    width: int,
) -> None:
    allowed = {
        f"batch_size must be >= 2, but is {batch_size}": batch_size >= 2,
        f"rollout_steps must be a multiple of batch_size={batch_size}, but is {rollout_steps}": rollout_steps > 0
        and rollout_steps % max(batch_size, 1) == 0,
        f"epochs must be >= 1, but is {epochs}": epochs >= 1,
        f"lr must be > 0, but is {lr}": lr > 0,
        f"gamma must be in [0, 1], but is {gamma}": 0 <= gamma <= 1,
        f"gae_lambda must be in [0, 1], but is {gae_lambda}": 0 <= gae_lambda <= 1,
        f"clip must be > 0, but is {clip}": clip > 0,
        f"hidden must be widths >= 1, but one is {width}": width >= 1,
    }
    for message, holds in allowed.items():
        if not holds:
            raise ConfigError(f"OnlinePPO: {message}.")
