r"""The next update of an online learner's critic, as a function that a reward can be differentiated through.

For MRN (Liu et al. 2022, arXiv 2211.07241), whose reward is judged by the Q-function after one update with it. The
update is that of soft actor-critic (Haarnoja et al. 2018, arXiv 1812.05905): towards r + γ (min Q̄(s', a') − α log π)
with a' ~ π. Nothing of the learner changes but its random numbers, which it saves.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from agents.online_sac import OnlineSAC
from prefrl.core import Transitions
from prefrl.errors import ConfigError

__all__ = ["next_critic_update"]


class _Critics(nn.Module):
    """(B, D), (B, A) → (C, B), with actions in the environment's units."""

    low: Tensor
    high: Tensor

    def __init__(self, critic: Any) -> None:
        super().__init__()
        self.critic = critic
        self.register_buffer("low", torch.as_tensor(critic.action_space.low))
        self.register_buffer("high", torch.as_tensor(critic.action_space.high))

    def forward(self, observations: Tensor, actions: Tensor) -> Tensor:
        scaled = 2 * (actions - self.low) / (self.high - self.low) - 1
        return torch.cat(self.critic(observations, scaled), 1).T


def next_critic_update(learner: Any, *, batch_size: int = 256) -> dict[str, Any]:
    """What ``prefrl.train.meta_reward.meta_reward_loss`` takes of it: q, batch, next_values, gamma, learning_rate.

    batch_size: steps drawn from what may be replayed (MRN's code: as many as the agent's). Of a learner that has
    nothing to learn from yet there is no update; that it could have one is checked, and {} returned.
    """
    if not isinstance(learner, OnlineSAC):
        raise ConfigError(
            f"recipe.meta_every: {type(learner).__name__} has no Q-function, through whose update the reward could be "
            "learned; use online_agent=sac_online, or recipe.meta_every=0."
        )
    if batch_size < 1:
        raise ConfigError(f"recipe.meta: batch_size must be >= 1, but is {batch_size}.")
    if not learner.replay.filled:
        return {}
    model = learner.model
    with learner.randomness.in_place(), torch.no_grad():
        learner.replay.batch_reward = None
        drawn = learner.replay.sample(batch_size)
        actions, log_prob = model.actor.action_log_prob(drawn.next_observations)
        values = torch.cat(model.critic_target(drawn.next_observations, actions), 1).amin(1)
        alpha = model.log_ent_coef.exp() if model.log_ent_coef is not None else model.ent_coef_tensor
    return {
        "q": _Critics(model.critic),
        "batch": Transitions(
            observations=drawn.observations,
            actions=torch.from_numpy(model.policy.unscale_action(drawn.actions.numpy())),
            rewards=drawn.rewards[:, 0],
            next_observations=drawn.next_observations,
            terminated=drawn.dones[:, 0],
        ),
        "next_values": values - alpha * log_prob,
        "gamma": model.gamma,
        "learning_rate": model.lr_schedule(1),
    }
