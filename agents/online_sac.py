"""Soft actor-critic that learns while it acts, from a learned reward: the agent of PEBBLE (arXiv 2106.05091).

The networks and the update are Stable-Baselines3's ``SAC`` (Haarnoja et al. 2018, arXiv 1812.05905); stepping, replay
and random numbers are ours, so that

- rewards of everything that may be replayed can be written anew when the learned reward has changed (``relabel``;
  PEBBLE, §4.3), or be computed for each sampled batch (``batch_reward``: the state entropy of its unsupervised phase);
- a reward that needs the whole episode (``episode_reward``: optimal transport of its video, RAPL, arXiv 2310.07932) is
  written when the episode has ended, and no step is replayed before;
- a run that was killed at any step goes on to bitwise the same numbers, on one machine with as many threads.

    learner = OnlineSAC(make_env=partial(envs.make, "Hopper-v5"), seed=0)
    learner.collect(9_000, batch_reward=entropy)  # explore
    learner.relabel(reward)
    learner.reset_critic()
    learner.collect(10_000, reward=reward)
    save_checkpoint("learner.safetensors", learner.state_dict())

Stable-Baselines3 moves the target critics after every update, where B-Pref (arXiv 2111.03026) does after every second,
and has one learning rate for actor, critics and temperature. Everything is on the processor.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from stable_baselines3 import SAC
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from torch import Tensor

from agents.env_state import pack, unpack
from agents.kept_env import Subprocesses
from agents.online_env import OnlineEnv, losses_of
from agents.online_experience import (
    EpisodeReward,
    Experience,
    FinishedEpisodes,
    Reward,
    RewardFunction,
    require_one_reward,
    rewards_of,
)  # fmt: skip
from agents.online_randomness import OwnRandomness
from agents.sb3 import SB3Policy
from prefrl.errors import ConfigError, DamagedFile
from prefrl.protocols import MakeEnv

__all__ = ["OnlineSAC"]


class OnlineSAC:
    """An online learner. The defaults are Stable-Baselines3's, but for ``learning_starts`` and ``temperature``.

    make_env: of the environment that it acts in; Box actions with finite bounds
    seed: of all randomness. The other arguments are explained in ``configs/agent/sac_online.yaml``.
    """

    def __init__(
        self,
        *,
        make_env: MakeEnv,
        seed: int,
        num_envs: int = 1,
        subprocesses: Subprocesses = "auto",
        learning_starts: int = 1000,
        train_every: int = 1,
        gradient_steps: int = 1,
        reset_updates: int = 100,
        batch_size: int = 256,
        buffer_size: int = 1_000_000,
        lr: float = 3e-4,
        gamma: float = 0.99,
        polyak: float = 0.005,
        temperature: float = 0.1,
        learn_temperature: bool = True,
        hidden: Sequence[int] = (256, 256),
    ) -> None:
        counts = {
            "train_every": train_every,
            "gradient_steps": gradient_steps,
            "batch_size": batch_size,
            "buffer_size": buffer_size,
            "hidden": min(hidden, default=1),
        }
        _require_ranges(counts, learning_starts, reset_updates, lr, gamma, polyak, temperature)
        self.learning_starts, self.train_every, self.gradient_steps = learning_starts, train_every, gradient_steps
        self.batch_size, self.reset_updates = batch_size, reset_updates
        self.world = OnlineEnv(make_env, seed=seed, name="OnlineSAC", num_envs=num_envs, subprocesses=subprocesses)
        self.rng = np.random.default_rng(seed)  # of the random actions and of what is replayed
        self.randomness = OwnRandomness(seed)  # of the policy's noise and the initial weights
        with self.randomness.in_place():
            self.model = SAC(
                "MlpPolicy",
                self.world.spaces,
                learning_rate=lr,
                buffer_size=1,  # its own buffer stays empty
                tau=polyak,
                gamma=gamma,
                ent_coef=f"auto_{temperature}" if learn_temperature else temperature,
                policy_kwargs={"net_arch": list(hidden), "optimizer_kwargs": {"fused": True}},
                device="cpu",
            )
        self.model.set_logger(Logger(folder=None, output_formats=[]))
        self.replay = _Replay(self.world.experience, buffer_size, self.model, self.rng)
        self.model.replay_buffer = self.replay  # type: ignore[assignment]
        self.policy = SB3Policy(self.model)

    @property
    def steps(self) -> int:
        """Environment steps so far."""
        return self.world.experience.steps

    @property
    def step_multiple(self) -> int:
        """What steps to ``collect`` must be a multiple of: every environment makes one."""
        return self.world.num_envs

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
        """Act and learn for so many steps of all environments, a multiple of ``step_multiple``; returns metrics.

        reward: (B, D), (B, A) → (B,), written beside each new step; "env" is the environment's own; None is 0
        batch_reward: likewise, computed for each sampled batch in place of what is written
        episode_reward: in place of both: frames (T+1, ...) of a finished episode → (T,), written then. Until the next
        ``collect`` only steps that were rewarded so are learned from; before there is one, updates are left out.
        """
        require_one_reward("OnlineSAC", episode_reward, reward, batch_reward)
        experience, first_episode = self.world.experience, len(self.world.experience.lengths)
        if steps % self.step_multiple:
            raise ConfigError(f"OnlineSAC: steps must be a multiple of num_envs={self.step_multiple}; got {steps}.")
        self.replay.by_episode = episode_reward is not None
        with self.randomness.in_place():
            for first in range(self.steps, self.steps + steps, self.step_multiple):
                self._act(episode_reward)
                if episode_reward is None:
                    experience.reward_steps(first, reward)
                learned = max(first, self.learning_starts)  # steps whose updates were made, or are left out
                updates = max(0, self.steps // self.train_every - learned // self.train_every)
                if updates and self.replay.filled:
                    self._train(updates * self.gradient_steps, batch_reward)
        return {**self.world.metrics(first_episode), **losses_of(self.model)}

    def relabel(self, reward: Reward, *, batch_size: int = 8192) -> None:
        """Write the rewards of all that may be replayed anew; what has left the buffer keeps the old ones.

        Not by an episode reward: the frames of finished episodes are gone.
        """
        self.world.experience.reward_steps(self.replay.first, reward, batch_size=batch_size)

    def reset_critic(self) -> None:
        """New critics, target critics and optimizer of them; then ``reset_updates`` updates. Relabel before.

        As PEBBLE does once its unsupervised phase is over, whose values are of another reward.
        """
        model = self.model
        with self.randomness.in_place():
            new = model.policy_class(
                model.observation_space, model.action_space, model.lr_schedule, **model.policy_kwargs
            )
            for name in ("critic", "critic_target"):
                getattr(model, name).load_state_dict(getattr(new, name).state_dict())
            model.critic.optimizer = torch.optim.Adam(
                model.critic.parameters(), lr=model.lr_schedule(1), **model.policy.optimizer_kwargs
            )
            if self.replay.filled and self.reset_updates:
                self._train(self.reset_updates, None)

    def episodes(self, first: int = 0) -> FinishedEpisodes:
        """Finished episodes from number ``first`` on, for queries: ``Episodes(**learner.episodes()._asdict())``."""
        return self.world.experience.episodes(first)

    def states(self) -> Tensor:
        """(M, D): a view of all states that may be replayed, end states and the present one too; for novelty."""
        experience, first = self.world.experience, self.replay.first
        row = experience.row[first : first + self.world.num_envs].min() if experience.steps else 0
        return torch.from_numpy(experience.observations[row:])

    def state_dict(self) -> dict[str, Any]:
        """Everything that a bitwise resume needs, as tensors and plain JSON."""
        learned = self.model.log_ent_coef
        return {
            "kind": "OnlineSAC",
            "policy": copy.deepcopy(self.model.policy.state_dict()),
            "log_temperature": None if learned is None else learned.detach().clone(),
            "optimizers": {name: copy.deepcopy(o.state_dict()) for name, o in self._optimizers().items()},
            "updates": self.model._n_updates,
            "by_episode": self.replay.by_episode,
            "world": self.world.state_dict(),
            "rng": pack(self.rng),
            "randomness": self.randomness.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from where ``state_dict`` was taken, in a learner made with the same arguments."""
        if state.get("kind") != "OnlineSAC":
            raise DamagedFile(f"This is the state of {state.get('kind')!r}, not of an OnlineSAC.")
        self.world.load_state_dict(state["world"])
        self.model.policy.load_state_dict(state["policy"])
        if self.model.log_ent_coef is not None:
            self.model.log_ent_coef.data.copy_(state["log_temperature"])
        for name, optimizer in self._optimizers().items():
            optimizer.load_state_dict(state["optimizers"][name])
        self.model._n_updates = state["updates"]
        self.replay.by_episode = state.get("by_episode", False)
        unpack(state["rng"], self.rng)
        self.randomness.load_state_dict(state["randomness"])

    def close(self) -> None:
        self.world.close()

    def _act(self, episode_reward: EpisodeReward | None) -> None:
        observations, box = self.world.observe(), self.world.actions
        if self.steps < self.learning_starts:
            actions = self.rng.uniform(box.low, box.high, (len(observations), *box.shape)).astype(np.float32)
        else:
            actions, _ = self.model.policy.predict(observations)
        self.world.step(actions, episode_reward=episode_reward)

    def _train(self, gradient_steps: int, batch_reward: RewardFunction | None) -> None:
        self.replay.batch_reward = batch_reward
        self.model.train(gradient_steps, self.batch_size)

    def _optimizers(self) -> dict[str, torch.optim.Optimizer]:
        found = {"actor": self.model.actor.optimizer, "critic": self.model.critic.optimizer}
        of_temperature = self.model.ent_coef_optimizer
        return found if of_temperature is None else found | {"temperature": of_temperature}


class _Replay:
    """In place of Stable-Baselines3's ``ReplayBuffer``: the last ``size`` steps of the experience, uniformly.

    by_episode: of the steps that have an episode reward, as if they entered when their episode ended.
    """

    batch_reward: RewardFunction | None = None
    by_episode = False

    def __init__(self, experience: Experience, size: int, model: SAC, rng: np.random.Generator) -> None:
        self.experience, self.size, self.model, self.rng = experience, size, model, rng

    @property
    def first(self) -> int:
        """The oldest step that may be sampled."""
        return max(0, self.experience.steps - self.size)

    @property
    def filled(self) -> int:
        """How many steps may be sampled."""
        return min(self.size, len(self.experience.rewarded) if self.by_episode else self.experience.steps)

    def sample(self, batch_size: int, env: None = None) -> ReplayBufferSamples:
        """A batch as ``SAC.train`` asks for it: actions in [-1, 1], time limits not terminal."""
        if self.by_episode:
            drawn = self.experience.rewarded[-self.size :][self.rng.integers(self.filled, size=batch_size)]
        else:
            drawn = self.rng.integers(self.first, self.experience.steps, size=batch_size)
        steps = self.experience.at(drawn)
        rewards = steps.rewards if self.batch_reward is None else rewards_of(self.batch_reward, steps)
        return ReplayBufferSamples(
            observations=torch.from_numpy(steps.observations),
            actions=torch.from_numpy(self.model.policy.scale_action(steps.actions)),
            next_observations=torch.from_numpy(steps.next_observations),
            dones=torch.from_numpy(steps.terminated[:, None]),
            rewards=torch.from_numpy(rewards[:, None]),
        )


def _require_ranges(
    counts: dict[str, int],
    learning_starts: int,
    reset_updates: int,
    lr: float,
    gamma: float,
    polyak: float,
    temperature: float,
) -> None:
    allowed = {f"{name} must be >= 1, but is {count}": count >= 1 for name, count in counts.items()} | {
        f"learning_starts must be >= 0, but is {learning_starts}": learning_starts >= 0,
        f"reset_updates must be >= 0, but is {reset_updates}": reset_updates >= 0,
        f"lr must be > 0, but is {lr}": lr > 0,
        f"gamma must be in [0, 1], but is {gamma}": 0 <= gamma <= 1,
        f"polyak must be in (0, 1], but is {polyak}": 0 < polyak <= 1,
        f"temperature must be > 0, but is {temperature}": temperature > 0,
    }
    for message, holds in allowed.items():
        if not holds:
            raise ConfigError(f"OnlineSAC: {message}.")
