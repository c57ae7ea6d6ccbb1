r"""Behavior cloning with a diffusion policy (Chi et al. 2023, arXiv 2303.04137): L = E ‖target − f(x_t, t, history)‖².

Every step of the data gives a chunk of actions; a time and a noise are drawn for it at every update. Unlike the mean of
a Gaussian, the samples keep every mode of the data.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from agents.diffusion.chunks import Chunks, chunk_transitions
from agents.diffusion.optimization import average_rate, make_optimizer, rate_share, require_schedule
from agents.diffusion.policy import DiffusionPolicy
from agents.networks import polyak_
from agents.policies import observation_statistics
from prefrl.core import Transitions
from prefrl.errors import ConfigError

__all__ = ["DiffusionBC"]


class DiffusionBC:
    """Learner; ``policy`` is the moving average of the weights that are trained.

    data: the whole dataset, for sizes and statistics only · action_low, action_high: (A,)
    seed: of all randomness. The other arguments are explained in ``configs/agent/diffusion_bc.yaml``.
    """

    def __init__(
        self,
        *,
        data: Transitions,
        action_low: np.ndarray,
        action_high: np.ndarray,
        seed: int,
        policy: Callable[..., DiffusionPolicy] = DiffusionPolicy,
        action_range: Literal["bounds", "data"] = "bounds",
        lr: float = 1e-4,
        weight_decay: float = 1e-6,
        warmup_steps: int = 500,
        decay_steps: int | None = None,
        average_power: float = 0.75,
        std_floor: float = 1e-2,
    ) -> None:
        data.require_finite()
        require_schedule(
            "DiffusionBC", lr=lr, weight_decay=weight_decay, warmup_steps=warmup_steps, decay_steps=decay_steps
        )
        if not average_power > 0:
            raise ConfigError(f"DiffusionBC: average_power must be > 0, but is {average_power}.")
        low, high = _action_range(action_range, data.actions, action_low, action_high)
        mean, std = observation_statistics(data.observations, floor=std_floor)
        self.trained = policy(
            observation_mean=mean, observation_std=std, action_low=low, action_high=high, seed=seed
        ).to(data.observations.device)
        self.policy = copy.deepcopy(self.trained).requires_grad_(False)
        self.optimizer = make_optimizer(self.trained.parameters(), lr=lr, weight_decay=weight_decay)
        self.lr, self.warmup_steps, self.decay_steps, self.average_power = lr, warmup_steps, decay_steps, average_power
        self.generator = torch.Generator(data.observations.device).manual_seed(seed)
        self.step = 0

    def prepare(self, data: Transitions, lengths: np.ndarray) -> Transitions:
        """The chunk of every step: observations (N, n_obs · D), actions (N, H · A)."""
        return chunk_transitions(data, lengths, n_obs=self.policy.n_obs, horizon=self.policy.horizon)

    def update(self, batch: Transitions) -> dict[str, Tensor]:
        """One gradient step on B chunks that ``prepare`` made. Returns scalar metrics."""
        B, policy = len(batch), self.trained
        actions = batch.actions.view(B, policy.horizon, -1)
        everything = torch.ones(actions.shape[:2], dtype=torch.bool, device=actions.device)
        chunks = Chunks(batch.observations.view(B, policy.n_obs, -1), actions, everything)
        t = torch.randint(policy.train_steps, (B,), generator=self.generator, device=actions.device)
        noise = torch.randn(actions.shape, generator=self.generator, device=actions.device)
        loss = policy.chunk_error(chunks, noise, t).mean()

        share = rate_share(self.step, warmup_steps=self.warmup_steps, decay_steps=self.decay_steps)
        self.optimizer.param_groups[0]["lr"] = self.lr * share
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.step += 1
        rate = average_rate(self.step, self.average_power)
        polyak_(list(self.policy.parameters()), list(policy.parameters()), rate)
        return {"policy_loss": loss.detach()}

    def state_dict(self) -> dict[str, Any]:
        """Everything that a bitwise resume needs."""
        return {
            "policy": self.policy.state_dict(),
            "trained": self.trained.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
            "step": self.step,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.policy.load_state_dict(state["policy"])
        self.trained.load_state_dict(state["trained"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.generator.set_state(state["generator"])
        self.step = state["step"]


def _action_range(kind: str, actions: Tensor, action_low: np.ndarray, action_high: np.ndarray) -> tuple[Tensor, Tensor]:
    """(A,) each, what becomes −1 and 1: the bounds, or the extremes of the data within them."""
    low, high = (torch.as_tensor(np.asarray(bound, dtype=np.float32)) for bound in (action_low, action_high))
    if kind == "bounds":
        return low, high
    if kind != "data":
        raise ConfigError(f"DiffusionBC: action_range must be 'bounds' or 'data', but is {kind!r}.")
    inside = torch.clamp(actions.cpu(), low, high)
    least, most = inside.amin(0), inside.amax(0)
    constant = most - least < 1e-6  # a coordinate that never moves is the middle of a small box
    return torch.where(constant, least - 1e-3, least), torch.where(constant, most + 1e-3, most)
