"""``prefrl bench regret``, rows B12 and B13: contrastive preference learning where the optimal advantage is known.

Hejna et al. 2024 (arXiv 2310.13639) assume A* = α log π*, up to a constant of the state. In a linear-quadratic task
that holds exactly for a Gaussian policy of unit variance and α = H (:mod:`prefrl.solvers.linear_quadratic`): so a
linear policy must find the regulator from Bernoulli labels of the regret, and from those of partial returns must not.
Behavior: 0.3 of the optimal gain plus unit noise, segments of 20 steps.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import combinations, product
from math import log, log1p
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from prefrl.benchmarks.findings import Finding, Progress, at_least, at_most
from prefrl.core import Comparisons, SegmentBatch
from prefrl.losses import LogProbs, Pairs, cpl, list_pair_logistic, with_soft_labels
from prefrl.preference_models import label, segment_score
from prefrl.protocols import MakeComparisonLearner, Policy
from prefrl.solvers import LinearQuadratic, LinearQuadraticSolution, rollout_cost, solve_linear_quadratic

__all__ = ["Regulator", "measure_b12", "measure_b13"]

STEPS = 20  # of a segment
BEHAVIOR_GAIN = 0.3  # of the optimal one


class LinearQuadraticEnv(Protocol):
    """An environment s' = A s + B a of quadratic cost."""

    action_space: Any

    def matrices(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, float]:
        """A, B, Q, R, gamma."""
        ...


class Regulator:
    """The task, its solution and the start states that policies are judged from."""

    def __init__(self, env: LinearQuadraticEnv, *, starts: int = 512, steps: int = 200) -> None:
        self.task = LinearQuadratic.from_arrays(*env.matrices())
        self.solution: LinearQuadraticSolution = solve_linear_quadratic(self.task)
        self.low, self.high = env.action_space.low, env.action_space.high
        self.steps = steps
        self.starts = self._normal(torch.Generator().manual_seed(99), starts)

    @property
    def alpha(self) -> float:
        """Of the advantage in units of half the action range, squared: A* = −α |u − u*|²."""
        return float(self.solution.curvature[0, 0]) * float(self.high[0] - self.low[0]) ** 2 / 4

    def _normal(self, generator: torch.Generator, *shape: int) -> Tensor:
        return torch.randn(*shape, len(self.task.dynamics), generator=generator, dtype=torch.float64)

    def compare(self, pairs: int, model: str, seed: int) -> Comparisons:
        """Segments of the behavior from N(0, I) with Bernoulli labels of the preference model."""
        generator = torch.Generator().manual_seed(seed)
        A = self.task.control.shape[1]
        states, actions = [self._normal(generator, 2 * pairs)], []
        for _ in range(STEPS):
            noise = torch.randn(2 * pairs, A, generator=generator, dtype=torch.float64)
            actions.append(BEHAVIOR_GAIN * self.solution.action(states[-1]) + noise)
            states.append(states[-1] @ self.task.dynamics.mT + actions[-1] @ self.task.control.mT)
        s, a = torch.stack(states, 1), torch.stack(actions, 1)  # (2n, T+1, D), (2n, T, A)
        score = segment_score(self.solution.segment_statistics(self.task, s, a), model)
        p_first = label(score[:pairs], score[pairs:], noise="bernoulli", generator=generator)
        mask = torch.ones(pairs, STEPS, dtype=torch.bool)
        first, second = (
            SegmentBatch(s[side].float(), a[side].float(), mask) for side in (slice(pairs), slice(pairs, None))
        )
        return Comparisons(first, second, p_first.float())

    def cost_ratio(self, policy: Policy) -> float:
        """J(π) / J(π*); ∞ where the policy leaves everything."""

        @torch.no_grad()
        def act(states: Tensor) -> Tensor:
            return policy.act(states.float()).double()

        cost = rollout_cost(self.task, act, self.starts, steps=self.steps).mean()
        return (cost / -self.solution.value(self.starts).mean()).item()


class Learned(NamedTuple):
    """Cost ratios of the cloned and of the final policy."""

    cloned: float
    final: float


def learn(
    regulator: Regulator,
    make: MakeComparisonLearner,
    *,
    model: str,
    bias: float,
    seed: int,
    pairs: int,
    bc_steps: int,
    steps: int,
    batch_size: int,
) -> Learned:
    """Cloning, then contrast, with λ = ``bias``, from labels of the preference model."""
    data = regulator.compare(pairs, model, seed)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="CPL: contrastive_bias=1")  # meant: the linear policy has no choice
        learner: Any = make(
            comparisons=data,
            action_low=regulator.low,
            action_high=regulator.high,
            seed=seed,
            loss=partial(cpl, alpha=regulator.alpha, contrastive_bias=bias),
            bc_steps=bc_steps,
            warmup_steps=steps // 10,
        )  # type: ignore[call-arg]
    generator, cloned = torch.Generator().manual_seed(seed), np.nan
    for update in range(bc_steps + steps):
        if update == bc_steps:
            cloned = regulator.cost_ratio(learner.policy)
        learner.update(data[torch.randint(pairs, (batch_size,), generator=generator)])
    return Learned(cloned, regulator.cost_ratio(learner.policy))


def measure_b13(
    regulator: Regulator,
    show: Progress,
    *,
    learners: Mapping[str, MakeComparisonLearner],
    seeds: Sequence[int],
    **training: int,
) -> list[Finding]:
    """Cost ratios; learners: "linear" (trained with λ = 1) and "mlp" (with λ = ½)."""
    found: dict[str, list[Learned]] = {}
    jobs = list(product(seeds, (("linear", 1.0), ("mlp", 0.5)), ("regret", "partial_return")))
    for done, (seed, (name, bias), model) in enumerate(jobs):
        result = learn(regulator, learners[name], model=model, bias=bias, seed=seed, **training)
        found.setdefault(f"{name}.{model}", []).append(result)
        show(done + 1, len(jobs))
    usual: dict[str, Any] = {"seeds": tuple(seeds)}
    ratio = {name: [result.final for result in results] for name, results in found.items()}
    worse = sum(result.final >= result.cloned for result in found["mlp.regret"])
    wrong = min(ratio["linear.partial_return"] + ratio["mlp.partial_return"])
    cloned = [result.cloned for results in found.values() for result in results]
    who = f"cost / optimal cost, {training['pairs']} Bernoulli labels of "
    return [
        at_most(
            "B13.linear", who + "regret, linear policy, λ 1: the worst seed", max(ratio["linear.regret"]), 1.01, **usual
        ),
        at_most("B13.mlp", who + "regret, MLP, λ ½: the worst seed", max(ratio["mlp.regret"]), 1.35, **usual),
        at_most("B13.mlp_worse", "seeds in which that MLP is no better than behavior cloning", worse, 0, **usual),
        at_least("B13.partial_return", who + "partial return, linear λ 1 or MLP λ ½: the best", wrong, 2.0, **usual),
        at_most(
            "B13.cloning", "cost / optimal cost of behavior cloning, linear or MLP: the worst", max(cloned), **usual
        ),
    ]


def measure_b12(show: Progress) -> list[Finding]:
    """CPL's loss on numbers that are known (sums of log-probs −1 and −2), its symmetries, and its form for lists."""

    def side(*totals: float) -> LogProbs:
        return LogProbs(torch.tensor(totals, dtype=torch.float64))

    def loss(chosen: float, rejected: float, **options: float) -> float:
        return cpl(Pairs(side(chosen), side(rejected)), **{"alpha": 1.0, **options}).item()

    def soft(chosen: float, rejected: float, p_first: float) -> float:
        pairs = Pairs(side(chosen), side(rejected))
        return with_soft_labels(cpl)(pairs, torch.tensor([p_first], dtype=torch.float64), alpha=1.0).item()

    errors = {
        "unit": abs(loss(-2.0, -1.0, contrastive_bias=0.5) - log1p(np.exp(1.5))),
        "equal": abs(loss(-2.0, -2.0, contrastive_bias=1.0) - log(2)),
        "tie": abs(soft(-1.0, -2.0, 0.5) - (loss(-1.0, -2.0) + loss(-2.0, -1.0)) / 2),
        "swap": abs(soft(-1.0, -2.0, 0.3) - soft(-2.0, -1.0, 0.7)),
        "list": _list_error(),
    }
    show(1, 1)
    what = "CPL's loss: largest error of softplus(1.5), log 2, a tie, a swapped pair, a list as the mean of its pairs"
    return [at_most("B12", what, max(errors.values()), 1e-6)]


def _list_error() -> float:
    """A ranked list's logistic loss over its pairs, against the mean of CPL over all pairs in order of rank."""
    totals = torch.tensor([[-1.0, -3.5, -2.0, -0.5]], dtype=torch.float64)
    ranked = LogProbs(totals, torch.zeros_like(totals), score=torch.tensor([[0.1, 0.9, 0.4, 0.2]]))
    order = [1, 2, 3, 0]  # best first
    pairs = list(combinations(order, 2))
    chosen, rejected = (LogProbs(totals[0, [pair[side] for pair in pairs]]) for side in (0, 1))
    each = cpl(Pairs(chosen, rejected), alpha=0.7, contrastive_bias=1.0)  # (6,)
    return abs(list_pair_logistic(ranked, beta=0.7).item() / len(pairs) - each.mean().item())
