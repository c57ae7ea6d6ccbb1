"""Values of a tabular task: exact, by successor features (arXiv 1606.05312), or soft (arXiv 1702.08165)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from prefrl.core import SegmentBatch
from prefrl.preference_models import PREFERENCE_MODELS, SegmentStatistics
from prefrl.protocols import MakeEnv
from prefrl.solvers import (
    RANDOM_MDP_WEIGHTS,
    TabularMDP,
    generalized_policy_improvement,
    policy_pool,
    recorded_trace,
    rewards,
    soft_value_iteration,
    trace_statistics,
    value_iteration,
)
from prefrl.value_oracles.interface import SIGN, env_name, open_env, require_allowed, require_known

__all__ = ["TabularOracle"]

VALUES = ("exact", "successor_features", "soft")


class _Table(NamedTuple):
    """A tabular task: its process, the weights (F,) of its true reward, and who it is."""

    mdp: TabularMDP
    weights: Tensor
    name: str


class TabularOracle:
    """Values of an environment with finitely many states, a ``TabularEnv``; segments hold the numbers of states.

    env: the environment's constructor; None where none was chosen, which is an error once values are asked for.
    The other arguments are explained in ``configs/teacher/regret_tabular.yaml``. An action's outcome is told by the
    next state, and by the true reward where several outcomes lead there.
    """

    models = tuple(PREFERENCE_MODELS)

    def __init__(
        self,
        *,
        env: MakeEnv | None,
        gamma: float = 0.999,
        values: Literal["exact", "successor_features", "soft"] = "exact",
        temperature: float = 1e-3,
        pool_size: int = 100,
        pool_entries: Sequence[float] = RANDOM_MDP_WEIGHTS,
        seed: int = 0,
    ) -> None:
        allowed = {
            f"gamma must be in (0, 1], but is {gamma}": 0 < gamma <= 1,
            f"values must be one of {', '.join(VALUES)}, but is {values!r}": values in VALUES,
            f"temperature must be > 0, but is {temperature}": temperature > 0,
            f"pool_size must be >= 1, but is {pool_size}": pool_size >= 1,
            "pool_entries must hold a number": len(pool_entries) > 0,
        }
        require_allowed("TabularOracle", allowed)
        self.gamma, self.values, self.temperature = float(gamma), values, float(temperature)
        self.pool_size, self.pool_entries, self.seed = pool_size, tuple(pool_entries), seed
        self._task = None if env is None else _read_table(env)

    def statistics(self, segments: SegmentBatch) -> SegmentStatistics:
        """Of segments whose observations (B, T+1, 1) and actions (B, T, 1) are integers."""
        mdp, weights, _ = require_known(self._task, "TabularOracle")
        return trace_statistics(recorded_trace(mdp, segments, weights=weights), weights, *self.tables)

    def check(self) -> None:
        """Raise ``ConfigError`` without an environment; its tables were read when this was made."""
        require_known(self._task, "TabularOracle")

    def ineffective(self, key: str) -> str | None:
        """Why an option does nothing: each kind of values has its own."""
        if key.partition(".")[0] in ("pool_size", "pool_entries", "seed") and self.values != "successor_features":
            return f"values={self.values} has no pool of policies"
        if key == "temperature" and self.values == "exact":
            return "values=exact has no soft maximum"
        return None

    def parameters(self) -> dict[str, Any]:
        """Oracle, task, gamma, how the values were made, and the sign convention."""
        _, weights, name = require_known(self._task, "TabularOracle")
        options: dict[str, Any] = {} if self.values == "exact" else {"temperature": self.temperature}
        if self.values == "successor_features":
            options |= {"pool_size": self.pool_size, "pool_entries": list(self.pool_entries), "seed": self.seed}
        return {
            "oracle": "tabular",
            "env": name,
            "true_weights": weights.tolist(),
            "gamma": self.gamma,
            "values": self.values,
            **options,
            "sign": SIGN,
        }

    @cached_property
    def tables(self) -> tuple[Tensor, Tensor]:
        """Values (S,) and action values (S, A), made when they are first needed."""
        mdp, weights, _ = require_known(self._task, "TabularOracle")
        reward = rewards(mdp, weights)
        if self.values == "exact":
            return value_iteration(mdp, reward, gamma=self.gamma)
        if self.values == "soft":
            return soft_value_iteration(mdp, reward, gamma=self.gamma, temperature=self.temperature)
        generator = torch.Generator().manual_seed(self.seed)
        psi, psi_actions = policy_pool(
            mdp, gamma=self.gamma, generator=generator, entries=self.pool_entries, size=self.pool_size
        )
        mixed = [
            generalized_policy_improvement(pool, weights, temperature=self.temperature)
            for pool in (psi, psi_actions.flatten(1, 2))  # (P, S, F), (P, S·A, F)
        ]
        return mixed[0], mixed[1].unflatten(-1, mdp.sizes[:2])


def _read_table(make_env: MakeEnv) -> _Table:
    env = open_env(make_env, "TabularOracle", "tables")
    tabular: Any = env.unwrapped
    mdp = TabularMDP.from_arrays(*tabular.tables())
    found = _Table(mdp, torch.as_tensor(tabular.true_weights, dtype=torch.float64), env_name(env))
    env.close()
    return found
