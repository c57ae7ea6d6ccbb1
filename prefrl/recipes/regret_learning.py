r"""What recipe regret learns and how it judges it: the world as tables, one learner for each preference model.

Knox et al. 2022 (arXiv 2206.02231): the learner explains labels by rewards φ·w under the model that it assumes, and is
worth what the policy that is optimal for φ·w earns under the true reward, on the scale between the uniform policy (0)
and the optimal one (1). The learner "advantage" has a number for every state and action instead, taken for a reward
where it may be an advantage (Hatgis-Kessell et al. 2024, arXiv 2310.02456).

Axes: N fits, S states, A actions, F features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import gymnasium as gym
import torch
from torch import Tensor

from prefrl.core import Comparisons
from prefrl.errors import ConfigError
from prefrl.preference_models import segment_score
from prefrl.protocols import MakeEnv, TabularEnv
from prefrl.solvers import (
    LinearRewardFit,
    ScaledReturn,
    SegmentPairs,
    TabularMDP,
    Trace,
    Values,
    fit_linear_reward,
    greedy_policy,
    one_hot_features,
    policy_pool,
    recorded_trace,
    rewards,
    scale_cross_entropy,
    scaled_policy_return,
    segment_pairs,
    soft_values,
    successor_feature_values,
    tabular_advantage,
    trace_statistics,
    value_iteration,
)

__all__ = ["ComparedTraces", "Learning", "World", "compared_traces", "described", "equal_parts", "open_world"]

NEEDED = ("tables", "true_weights", "feature_names", "draw_segment", "draw_policy")
TEMPERATURE = {"successor_features": 1e-3, "soft": 0.1}  # arXiv 2206.02231; a tenth of what a step costs on its boards


class World(NamedTuple):
    """A tabular environment: who draws it, its process, and the (F,) weights of its true reward, for judging only."""

    env: TabularEnv
    name: str
    mdp: TabularMDP
    true_weights: Tensor


def open_world(make_env: MakeEnv, *, seed: int) -> World:
    """The tables of an environment; raises ``ConfigError`` where it has none."""
    env: gym.Env = make_env(seed=seed)
    name = env.spec.id if env.spec else type(env.unwrapped).__name__
    known: Any = env.unwrapped
    lacking = [attribute for attribute in NEEDED if not hasattr(known, attribute)]
    if lacking:
        env.close()
        raise ConfigError(
            f"env: recipe regret needs a tabular environment (prefrl.protocols.TabularEnv: finitely many states, known "
            f"as tables), but {name} has no {', '.join(lacking)}. Choose another, as env=delivery."
        )
    weights = torch.as_tensor(known.true_weights, dtype=torch.float64)
    return World(known, name, TabularMDP.from_arrays(*known.tables()), weights)


class ComparedTraces(NamedTuple):
    """What n compared pairs of segments did, and the answers p_first (n,)."""

    first: Trace
    second: Trace
    p_first: Tensor

    def pairs(self) -> SegmentPairs:
        return segment_pairs(*self)


def compared_traces(mdp: TabularMDP, comparisons: Comparisons) -> ComparedTraces:
    """The traces of both sides; raises ``InvalidData`` that names a segment which the process cannot have made."""
    first, second = (recorded_trace(mdp, segments) for segments in (comparisons.first, comparisons.second))
    return ComparedTraces(first, second, comparisons.p_first.to(torch.float64))


def equal_parts(pairs: SegmentPairs, size: int, *, most: int, generator: torch.Generator) -> SegmentPairs:
    """(N, size): disjoint random parts of n pairs, N = ⌊n / size⌋ but at most ``most``; what is left is in none."""
    n = len(pairs.p_first)
    order = torch.randperm(n, generator=generator)[: n // size * size]
    return pairs.select(order.view(-1, size)[:most])


def described(world: World, traces: ComparedTraces, model: str, *, gamma: float) -> float | None:
    """How well a model describes the answers when it is given the *true* reward: 10-fold cross-entropy, one scale.

    Table 1 of arXiv 2206.02231; log 2 = 0.69 without information. None with fewer than 10 answers.
    """
    if len(traces.p_first) < 10:
        return None
    values = value_iteration(world.mdp, rewards(world.mdp, world.true_weights), gamma=gamma)
    one, two = (segment_score(trace_statistics(t, world.true_weights, *values), model) for t in traces[:2])
    return scale_cross_entropy(one - two, traces.p_first).cross_entropy


@dataclass(frozen=True, kw_only=True)
class Learning:
    """How rewards are learned; explained key by key in configs/recipe/regret.yaml."""

    gamma: float
    values: Literal["successor_features", "soft"]
    temperature: float | None
    pool_size: int
    pool_entries: Sequence[float]
    pool_without_truth: bool
    advantage_policy: Literal["greedy", "reward"]
    learning_rate: Mapping[str, float | None]
    iterations: Mapping[str, int | None]
    seed: int

    def learner_values(self, world: World, models: Sequence[str]) -> dict[str, Values | None]:
        """For each model what its learner takes for values of states and advantages; made once, as it takes a while."""
        shared: Values | None = None
        if set(models) - {"partial_return", "advantage"}:
            shared = self._values(world, with_actions="regret" in models)
        own = {"partial_return": None, "advantage": tabular_advantage(*world.mdp.sizes[:2])}
        return {model: own.get(model, shared) for model in models}

    def _values(self, world: World, *, with_actions: bool) -> Values:
        temperature = TEMPERATURE[self.values] if self.temperature is None else self.temperature
        if self.values == "soft":
            return soft_values(world.mdp, gamma=self.gamma, temperature=temperature)
        psi, psi_actions = policy_pool(
            world.mdp,
            gamma=self.gamma,
            generator=torch.Generator().manual_seed(self.seed),
            entries=self.pool_entries,
            size=self.pool_size,
            without=world.true_weights if self.pool_without_truth else None,
        )
        return successor_feature_values(psi, psi_actions if with_actions else None, temperature=temperature)

    def fit(self, model: str, pairs: SegmentPairs, values: Values | None, world: World) -> LinearRewardFit:
        """Weights (…, F), or a table (…, S·A) of advantages, that explain pairs (…, n)."""
        S, A = world.mdp.sizes[:2]
        return fit_linear_reward(
            pairs,
            model=model,
            values=values,
            size=S * A if model == "advantage" else None,
            seed=self.seed,
            learning_rate=self.learning_rate.get(model),
            iterations=self.iterations.get(model),
        )

    def policy(self, model: str, weights: Tensor, world: World) -> Tensor:
        """(…, S, A): the policy that is optimal for what was learned, ties uniform."""
        mdp = world.mdp
        if model == "advantage":
            if self.advantage_policy == "greedy":
                return greedy_policy(weights.unflatten(-1, mdp.sizes[:2]))
            mdp = TabularMDP(mdp.next_state, mdp.probability, one_hot_features(mdp), mdp.terminal, mdp.start)
        return greedy_policy(value_iteration(mdp, rewards(mdp, weights), gamma=self.gamma)[1])

    def judge(self, model: str, weights: Tensor, world: World) -> ScaledReturn:
        """(…): what that policy is worth under the true reward, exactly."""
        policy = self.policy(model, weights, world)
        return scaled_policy_return(world.mdp, policy, world.true_weights, gamma=self.gamma)

    def agreement(
        self, model: str, weights: Tensor, values: Values | None, traces: ComparedTraces, world: World
    ) -> float | None:
        """Share of decided answers (not "equal") in which the learner prefers the same segment; None if there are none.

        A learner that finds both equally good agrees by half.
        """
        S, _, _, F = world.mdp.sizes
        states, advantages = (None, None) if values is None else values(weights)
        found = states if states is not None else weights.new_zeros(S)
        of_actions = None if advantages is None else advantages + found[:, None]
        linear = weights.new_zeros(F) if model == "advantage" else weights
        one, two = (segment_score(trace_statistics(t, linear, found, of_actions), model) for t in traces[:2])
        decided = traces.p_first != 0.5
        if not bool(decided.any()):
            return None
        same = torch.sign(one - two) * torch.sign(traces.p_first - 0.5)
        return (0.5 + 0.5 * same[decided]).mean().item()
