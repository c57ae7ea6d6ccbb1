"""Values of a tabular task: exact, by successor features (arXiv 1606.05312), or soft (arXiv 1702.08165)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from prefrl.core import SegmentBatch
from prefrl.errors import InvalidData
from prefrl.preference_models import PREFERENCE_MODELS, SegmentStatistics
from prefrl.protocols import MakeEnv
from prefrl.solvers import (
    RANDOM_MDP_WEIGHTS,
    TabularMDP,
    generalized_policy_improvement,
    policy_pool,
    rewards,
    soft_value_iteration,
    trace_segments,
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
        mdp, weights, name = require_known(self._task, "TabularOracle")
        S, A = mdp.sizes[:2]
        states = _indices("observations", segments.observations, S, name)
        actions = _indices("actions", segments.actions * segments.mask[..., None], A, name)
        outcomes = _outcomes(mdp, rewards(mdp, weights), states, actions, segments, name)
        trace = trace_segments(mdp, states[:, 0], actions, mask=segments.mask, outcomes=outcomes)
        return trace_statistics(trace, weights, *self.tables)

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


def _indices(what: str, values: Tensor, limit: int, name: str) -> Tensor:
    """(B, T, 1) float32 integers in [0, limit) as (B, T) int64."""
    if values.shape[-1] != 1:
        raise InvalidData(f"{name} has {what} of size 1, the number of each, but these have size {values.shape[-1]}.")
    numbers = values[..., 0]
    wrong = (numbers != numbers.round()) | (numbers < 0) | (numbers >= limit)
    if bool(wrong.any()):
        raise InvalidData(f"{name} has {what} that are integers in [0, {limit}), but one is {numbers[wrong][0]:g}.")
    return numbers.to(torch.int64)


def _outcomes(
    mdp: TabularMDP, reward: Tensor, states: Tensor, actions: Tensor, segments: SegmentBatch, name: str
) -> Tensor:
    """(B, T) int64: which outcome of each action (reward (S, A, K)) led to the next of states (B, T+1)."""
    taken = states[:, :-1], actions
    possible = (mdp.next_state[taken] == states[:, 1:, None]) & (mdp.probability[taken] > 0)  # (B, T, K)
    wrong = (segments.mask & ~possible.any(-1)).nonzero()
    if len(wrong):
        b, t = wrong[0].tolist()
        raise InvalidData(
            f"In {name}, action {int(actions[b, t])} in state {int(states[b, t])} never leads to state "
            f"{int(states[b, t + 1])}, as segment {b} has it at step {t}. Are these data of that environment?"
        )
    earned = reward[taken]  # (B, T, K)
    if segments.true_reward is not None:
        gap = (earned - segments.true_reward[..., None]).abs()
        return gap.masked_fill(~possible, torch.inf).argmin(-1)
    most, least = earned.masked_fill(~possible, -torch.inf).amax(-1), earned.masked_fill(~possible, torch.inf).amin(-1)
    if bool((segments.mask & (most > least)).any()):
        raise InvalidData(f"Outcomes of {name} that lead to one state differ in reward: the segments need true_reward.")
    return possible.to(torch.int64).argmax(-1)
