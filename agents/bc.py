r"""Behavior cloning: maximum likelihood on the data's actions (Pomerleau 1989), rewards ignored.

L = −E log π(a|s). For the deterministic policy this is the mean squared error (in units of half the action
range, summed over action coordinates) plus a constant.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from agents.policies import MakePolicy, make_policy
from prefrl.core import Transitions

__all__ = ["BC"]


class BC:
    """Learner.

    data: the whole dataset, for sizes and statistics only · action_low, action_high: (A,)
    seed: of all randomness. The other arguments are explained in ``configs/agent/bc.yaml``.
    """

    def __init__(
        self,
        *,
        data: Transitions,
        action_low: np.ndarray,
        action_high: np.ndarray,
        seed: int,
        lr: float = 3e-4,
        hidden: Sequence[int] = (256, 256),
        policy: Literal["gaussian", "deterministic"] | MakePolicy = "gaussian",
        normalize_observations: bool = True,
        std_floor: float = 1e-2,
    ) -> None:
        data.require_finite()
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
        self.optimizer = torch.optim.Adam(self.policy.parameters(), lr=lr, fused=True)
        self.step = 0

    def prepare(self, data: Transitions, lengths: np.ndarray) -> Transitions:
        """The data as they are."""
        return data

    def update(self, batch: Transitions) -> dict[str, Tensor]:
        """One gradient step on B transitions. Returns scalar metrics."""
        loss = -self.policy.step_log_prob(batch.observations, batch.actions).mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.step += 1
        return {"policy_loss": loss.detach()}

    def state_dict(self) -> dict[str, Any]:
        """Everything that a bitwise resume needs."""
        return {
            "policy": self.policy.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.policy.load_state_dict(state["policy"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]
