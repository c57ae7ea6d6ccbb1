r"""Implicit Q-learning: Kostrikov, Nair and Levine 2021, arXiv 2110.06169 (equation numbers are theirs).

Nothing ever queries Q at an action outside the data:

    V(s)    expectile of Q over the data's actions   L_V = E |τ − 1(u < 0)| u²,  u = Q̄(s, a) − V(s)     (5)
    Q(s,a)  one-step target through V                L_Q = E (r + γ V(s') − Q(s, a))²                   (6)
    π(a|s)  advantage-weighted regression            L_π = −E exp(β (Q̄(s, a) − V(s))) log π(a|s)        (7)

Q̄ is the smaller of two slowly moving target critics. The three losses touch disjoint parameters, so one
backward pass and one Adam serve them all; unlike in the authors' code, V before (not after) its step enters
(6) and (7).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from agents.networks import MLP, StackedMLP, polyak_
from agents.policies import MakePolicy, make_policy
from prefrl.core import Transitions
from prefrl.errors import ConfigError
from prefrl.returns import n_step_returns

__all__ = ["IQL", "advantage_weight", "expectile_loss"]


def expectile_loss(u: Tensor, expectile: float) -> Tensor:
    r"""|τ − 1(u < 0)| u² per item, any shape (eq. 5). τ = ½: half the squared error; τ → 1: the maximum.

    >>> expectile_loss(torch.tensor([2.0, -2.0]), 0.75)
    tensor([3., 1.])
    """
    return torch.where(u < 0, 1 - expectile, expectile) * u.square()


def advantage_weight(advantage: Tensor, beta: float, maximum: float) -> Tensor:
    r"""min(exp(β A), maximum) (eq. 7 and the authors' actor.py). β = 0 is behavior cloning.

    >>> advantage_weight(torch.tensor([0.0, 1e4]), 3.0, 100.0)
    tensor([  1., 100.])
    """
    return torch.exp(beta * advantage).clamp(max=maximum)


class IQL:
    """Learner. The defaults are the paper's (§5 and App. B), but for observation normalization.

    data: the whole dataset, for sizes and statistics only · action_low, action_high: (A,)
    seed: of all randomness. The other arguments are explained in ``configs/agent/iql.yaml``.
    """

    def __init__(
        self,
        *,
        data: Transitions,
        action_low: np.ndarray,
        action_high: np.ndarray,
        seed: int,
        expectile: float = 0.7,
        beta: float = 3.0,
        gamma: float = 0.99,
        n_step: int = 1,
        polyak: float = 0.005,
        lr: float = 3e-4,
        hidden: Sequence[int] = (256, 256),
        max_weight: float = 100.0,
        policy: Literal["gaussian", "deterministic"] | MakePolicy = "gaussian",
        cosine_steps: int | None = None,
        advantage_scale: Literal["none", "std"] = "none",
        layer_norm: bool = False,
        normalize_observations: bool = True,
        std_floor: float = 1e-2,
    ) -> None:
        _require_ranges(expectile, beta, gamma, n_step, polyak, advantage_scale)
        data.require_finite()
        self.expectile, self.beta, self.gamma, self.polyak = expectile, beta, gamma, polyak
        self.lr, self.max_weight, self.cosine_steps = lr, max_weight, cosine_steps
        self.n_step = n_step
        self.scale_advantage = advantage_scale == "std"
        self.policy = make_policy(
            policy,
            data=data,
            action_low=action_low,
            action_high=action_high,
            hidden=hidden,
            normalize_observations=normalize_observations,
            std_floor=std_floor,
            seed=seed,
        )

        device = data.observations.device
        D, A = data.observations.shape[1], data.actions.shape[1]
        generator = torch.Generator().manual_seed(seed + 1)
        self.value = MLP([D, *hidden, 1], generator=generator, layer_norm=layer_norm).to(device)
        self.critic = StackedMLP(2, [D + A, *hidden, 1], generator=generator, layer_norm=layer_norm).to(device)
        self.target = copy.deepcopy(self.critic).requires_grad_(False)
        self._critic_tensors = list(self.critic.parameters())
        self._target_tensors = list(self.target.parameters())

        groups = [
            {"params": list(self.policy.parameters())},
            {"params": [*self.value.parameters(), *self._critic_tensors]},
        ]
        self.optimizer = torch.optim.Adam(groups, lr=lr, fused=True)
        self.step = 0
        self.advantage_variance = torch.zeros((), device=device)

    def prepare(self, data: Transitions, lengths: np.ndarray) -> Transitions:
        """n-step returns of the whole dataset; what ``update`` is given must have gone through here."""
        return n_step_returns(data, lengths, n=self.n_step, gamma=self.gamma)

    def update(self, batch: Transitions) -> dict[str, Tensor]:
        """One gradient step on B transitions. Returns scalar metrics."""
        s, s_next = self.policy.normalize(batch.observations), self.policy.normalize(batch.next_observations)
        state_action = torch.cat([s, self.policy.to_units(batch.actions)], -1)
        with torch.no_grad():
            q_target = self.target(state_action).squeeze(-1).amin(0)  # (B,), Q̄
            v_next = self.value(s_next).squeeze(-1)
            td_target = batch.rewards + batch.discounts(self.gamma) * v_next

        v = self.value(s).squeeze(-1)
        value_loss = expectile_loss(q_target - v, self.expectile).mean()  # (5)
        q = self.critic(state_action).squeeze(-1)  # (2, B)
        critic_loss = (q - td_target).square().mean(1).sum()  # (6), summed over the two critics
        advantage = q_target - v.detach()
        weight = advantage_weight(self._scaled(advantage), self.beta, self.max_weight)
        policy_loss = -(weight * self.policy.unit_log_prob(s, batch.actions)).mean()  # (7)

        self._descend(value_loss + critic_loss + policy_loss)
        return {
            "value_loss": value_loss.detach(),
            "critic_loss": critic_loss.detach(),
            "policy_loss": policy_loss.detach(),
            "value": v.detach().mean(),
            "advantage_std": advantage.std(),
            "weight": weight.mean(),
            "weight_clipped": (weight >= self.max_weight).float().mean(),
        }

    def state_dict(self) -> dict[str, Any]:
        """Everything that a bitwise resume needs."""
        modules = {name: module.state_dict() for name, module in self._modules().items()}
        counters = {"step": self.step, "advantage_variance": self.advantage_variance.clone()}
        return {"modules": modules, "optimizer": self.optimizer.state_dict(), **counters}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, module in self._modules().items():
            module.load_state_dict(state["modules"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]
        self.advantage_variance = state["advantage_variance"].clone()

    def _modules(self) -> dict[str, torch.nn.Module]:
        return {"policy": self.policy, "value": self.value, "critic": self.critic, "target": self.target}

    def _scaled(self, advantage: Tensor) -> Tensor:
        """A, or A / std(A) with a running variance, which makes β independent of the scale of rewards."""
        if not self.scale_advantage:
            return advantage
        rate = max(0.01, 1 / (self.step + 1))  # a plain average first, then one that forgets over 100 updates
        self.advantage_variance.lerp_(advantage.var(correction=0), rate)
        return advantage / self.advantage_variance.sqrt().clamp(min=1e-6)

    def _descend(self, loss: Tensor) -> None:
        if self.cosine_steps is not None:
            progress = min(self.step / self.cosine_steps, 1.0)
            self.optimizer.param_groups[0]["lr"] = self.lr * 0.5 * (1 + math.cos(math.pi * progress))
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        polyak_(self._target_tensors, self._critic_tensors, self.polyak)
        self.step += 1


def _require_ranges(
    expectile: float, beta: float, gamma: float, n_step: int, polyak: float, advantage_scale: str
) -> None:
    allowed = {
        f"expectile must be in (0, 1), but is {expectile}": 0 < expectile < 1,
        f"beta must be >= 0, but is {beta}": beta >= 0,
        f"gamma must be in [0, 1], but is {gamma}": 0 <= gamma <= 1,
        f"n_step must be >= 1, but is {n_step}": n_step >= 1,
        f"polyak must be in (0, 1], but is {polyak}": 0 < polyak <= 1,
        f"advantage_scale must be 'none' or 'std', but is {advantage_scale!r}": advantage_scale in ("none", "std"),
    }
    for message, holds in allowed.items():
        if not holds:
            raise ConfigError(f"IQL: {message}.")
