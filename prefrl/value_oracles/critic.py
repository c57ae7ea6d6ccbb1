"""Values that critics learned: Hejna et al. 2024, arXiv 2310.13639, label by those of SAC (arXiv 1801.01290)."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from prefrl.core import SegmentBatch, require_finite
from prefrl.errors import ConfigError, InvalidData
from prefrl.preference_models import PREFERENCE_MODELS, SegmentStatistics
from prefrl.protocols import MakeEnv
from prefrl.spaces import space_size
from prefrl.value_oracles.interface import SIGN, env_name, open_env, require_allowed, zero_where_terminal

__all__ = ["Critic", "CriticOracle"]


class Critic(Protocol):
    """Learned values of some policy, trained in the true task; other sizes of D and A are ``InvalidData``.

    May have ``describe() -> dict``, which says more about it, and ``ineffective(key) -> str | None`` for its options.
    """

    def q(self, observations: Tensor, actions: Tensor) -> Tensor:
        """(M, D), (M, A) -> (M,)."""
        ...

    def v(self, observations: Tensor) -> Tensor:
        """(M, D) -> (M,)."""
        ...


class CriticOracle:
    """Σ (Q − V), V(start) and V(end) of a critic, and Σ r of the data.

    ``configs/teacher/regret_sac.yaml`` says which statistics and options arXiv 2310.13639 labels by.

    gamma: in (0, 1], with which the critic was trained; recorded only
    env: the constructor of the environment whose segments are asked about, for ``check`` alone; None where unknown.
    """

    models = tuple(PREFERENCE_MODELS)

    def __init__(self, *, critic: Critic, gamma: float, env: MakeEnv | None = None) -> None:
        require_allowed("CriticOracle", {f"gamma must be in (0, 1], but is {gamma}": 0 < gamma <= 1})
        self.critic, self.gamma, self._make_env = critic, float(gamma), env

    def check(self) -> None:
        """Raise ``ConfigError`` if the critic is of other sizes than the environment; nothing where that is unknown."""
        if self._make_env is None:
            return
        env = open_env(self._make_env, "CriticOracle")
        name, spaces = env_name(env), (env.observation_space, env.action_space)
        env.close()
        try:
            self.critic.q(*(torch.zeros(1, *space_size(space)) for space in spaces))
        except InvalidData as error:
            raise ConfigError(f"CriticOracle cannot judge {name}: {error}") from error

    def ineffective(self, key: str) -> str | None:
        """What the critic says of its options."""
        if not key.startswith("critic.") or not hasattr(self.critic, "ineffective"):
            return None
        reason: str | None = self.critic.ineffective(key.removeprefix("critic."))
        return reason

    @torch.no_grad()
    def statistics(self, segments: SegmentBatch) -> SegmentStatistics:
        """Of segments with a true reward."""
        if segments.true_reward is None:
            raise InvalidData("CriticOracle sums the true reward over a segment, but these segments carry none.")
        mask, zeros = segments.mask, torch.zeros(segments.mask.shape, dtype=torch.float64)
        before, actions = segments.observations[:, :-1][mask], segments.actions[mask]  # (M, D), (M, A)
        steps = self.critic.q(before, actions).double() - self.critic.v(before).double()
        start, end = (self.critic.v(s).double() for s in (segments.start_observations, segments.end_observations))
        found = SegmentStatistics(
            reward=segments.true_reward.double().where(mask, 0).sum(1),
            start_value=start,
            end_value=zero_where_terminal(end, segments),
            advantage=zeros.masked_scatter(mask, steps).sum(1),
        )
        for field, values in found._asdict().items():
            require_finite(f"CriticOracle: {field}", values)
        return found

    def parameters(self) -> dict[str, Any]:
        """Oracle, gamma, how the values were made, and the sign convention."""
        described: dict[str, Any] = getattr(self.critic, "describe", dict)()
        return {
            "oracle": "critic",
            "gamma": self.gamma,
            "values": type(self.critic).__name__,
            **described,
            "sign": SIGN,
        }
