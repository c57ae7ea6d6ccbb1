"""``prefrl bench regret``, rows B8 to B10 and speed: random grid worlds, and an advantage mistaken for a reward.

B8 and B10: Knox et al. 2022 (arXiv 2206.02231), rewards learned from noiseless labels in worlds drawn anew, and what
chance does to the deterministic regret. B9: Hatgis-Kessell et al. 2024 (arXiv 2310.02456), where labels follow the
regret but the partial return is learned, so that what is learned is an advantage: good to act on greedily; as a reward
it makes loops pay unless transitions out of the absorbing state, which are fixed to 0, take part in the segments.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from prefrl.benchmarks.findings import Finding, Progress, at_least, at_most
from prefrl.evaluation.intervals import Estimate, nested_bootstrap
from prefrl.preference_models import label, regret, regret_deterministic, segment_score
from prefrl.protocols import TabularEnv
from prefrl.solvers import (
    SegmentPairs,
    TabularMDP,
    Trace,
    fit_linear_reward,
    greedy_policy,
    policy_pool,
    rewards,
    sample_segments,
    scaled_policy_return,
    scaled_return,
    segment_pairs,
    stack,
    stack_pairs,
    stack_pools,
    successor_feature_values,
    tabular_advantage,
    trace_segments,
    trace_statistics,
    value_iteration,
)

__all__ = ["measure_b8", "measure_b9", "measure_b10", "value_iteration_speed"]

GAMMA = 0.999  # of the papers
LENGTH = 3  # steps of a segment, as people saw them

MakeWorld = Callable[..., TabularEnv]  # (rng, kind) -> a random world


class Worlds(NamedTuple):
    """M worlds of a seed, alone and stacked, with their true weights (M, F)."""

    alone: list[TabularMDP]
    stacked: TabularMDP
    weights: Tensor


def draw_worlds(make: MakeWorld, count: int, seed: int, kind: str = "deterministic") -> Worlds:
    drawn = [make(np.random.default_rng([seed, number]), kind) for number in range(count)]
    alone = [TabularMDP.from_arrays(*world.tables()) for world in drawn]
    weights = torch.stack([torch.as_tensor(world.true_weights, dtype=torch.float64) for world in drawn])
    return Worlds(alone, stack(alone), weights)


def _generator(seed: int, number: int) -> torch.Generator:
    return torch.Generator().manual_seed(100_003 * seed + number)


def _segments(mdp: TabularMDP, count: int, generator: torch.Generator) -> tuple[Trace, Trace]:
    first, second = (sample_segments(mdp, count=count, length=LENGTH, generator=generator) for _ in range(2))
    return first, second


def _answered(mdp: TabularMDP, weights: Tensor, sides: tuple[Trace, Trace], model: str) -> SegmentPairs:
    """Pairs with the noiseless labels of a rater who knows the optimal values."""
    values, action_values = value_iteration(mdp, rewards(mdp, weights), gamma=GAMMA)
    scores = [segment_score(trace_statistics(side, weights, values, action_values), model) for side in sides]
    return segment_pairs(*sides, label(*scores))


def measure_b8(
    make: MakeWorld, show: Progress, *, worlds: int, pairs: int, iterations: Mapping[str, int], seeds: Sequence[int]
) -> list[Finding]:
    """Near-optimal shares in random worlds, learner and labels of one model; new worlds with every seed."""
    near: dict[str, list[np.ndarray]] = {model: [] for model in iterations}
    for done, seed in enumerate(seeds):
        drawn = draw_worlds(make, worlds, seed)
        alone = list(zip(drawn.alone, drawn.weights, strict=True))
        pools = [
            policy_pool(mdp, gamma=GAMMA, generator=_generator(seed, m), without=weights)[0]
            for m, (mdp, weights) in enumerate(alone)
        ]
        psi, count = stack_pools(pools)
        for model, steps in iterations.items():
            data = [
                _answered(mdp, weights, _segments(mdp, pairs, _generator(seed, m)), model)
                for m, (mdp, weights) in enumerate(alone)
            ]
            values = successor_feature_values(psi, count=count)
            fit = fit_linear_reward(stack_pairs(data), model=model, values=values, iterations=steps)
            judged = scaled_return(drawn.stacked, fit.weights, drawn.weights, gamma=GAMMA)
            near[model].append(judged.near_optimal.double().numpy())
        show(done + 1, len(seeds))
    rng = np.random.default_rng(0)
    usual: dict[str, Any] = {"seeds": tuple(seeds)}
    regret_share, partial_share = (np.array(near[model]) for model in ("regret_deterministic", "partial_return"))
    who = f"{len(seeds)} × {worlds} random worlds, {pairs} noiseless pairs: near-optimal share, "
    gap = nested_bootstrap(regret_share - partial_share, rng=rng)
    return [
        at_least("B8.regret", who + "regret", nested_bootstrap(regret_share, rng=rng), 0.95, **usual),
        at_most("B8.partial_return", who + "partial return", nested_bootstrap(partial_share, rng=rng), 0.90, **usual),
        at_least("B8", who + "regret − partial return", gap, 0.10, **usual),
    ]


def measure_b9(
    make: MakeWorld, show: Progress, *, worlds: int, pairs: int, iterations: int, seeds: Sequence[int]
) -> list[Finding]:
    """The learned advantage: greedy, and as a reward, with and without transitions out of the absorbing state."""
    near: dict[str, list[np.ndarray]] = {}
    for done, seed in enumerate(seeds):
        drawn = draw_worlds(make, worlds, seed)
        both = [
            _with_and_without(mdp, weights, pairs, _generator(seed, m))
            for m, (mdp, weights) in enumerate(zip(drawn.alone, drawn.weights, strict=True))
        ]
        for number, (name, parts) in enumerate(zip(("with", "without"), zip(*both, strict=True), strict=True)):
            for kind, found in _mistaken(drawn, list(parts), iterations, seed).items():
                near.setdefault(f"{kind}.{name}", []).append(found)
            show(2 * done + number + 1, 2 * len(seeds))
    rng = np.random.default_rng(0)
    usual: dict[str, Any] = {"seeds": tuple(seeds)}
    share = {name: nested_bootstrap(np.array(found), rng=rng) for name, found in near.items()}
    who = f"regret labels, partial-return learner, {len(seeds)} × {worlds} worlds, {pairs} pairs: near-optimal, g "
    ends, whole = "absorbing transitions", f" (only segments of {LENGTH} steps, equally many pairs)"
    return [
        at_least("B9.greedy", who + f"acted on greedily, with {ends}", share["greedy.with"], 0.75, **usual),
        at_least("B9.with", who + f"as a reward, with {ends}", share["reward.with"], 0.65, **usual),
        at_most("B9.without", who + f"as a reward, without {ends}{whole}", share["reward.without"], 0.20, **usual),
        at_least(
            "B9.greedy_without", who + f"acted on greedily, without {ends}{whole}", share["greedy.without"], **usual
        ),
    ]


def _with_and_without(
    mdp: TabularMDP, weights: Tensor, count: int, generator: torch.Generator
) -> tuple[SegmentPairs, SegmentPairs]:
    """The first ``count`` pairs that are drawn, and the first ``count`` of those without a step after a terminal state.

    As many of both, so that they differ in what the pairs are, and not in how many.
    """
    drawn, whole, found = [], [], 0
    while found < count:
        drawn.append(_answered(mdp, weights, _segments(mdp, count, generator), "regret_deterministic"))
        whole.append(drawn[-1].select((drawn[-1].visits >= 0).all(-1).all(-1)))
        found += len(whole[-1].p_first)
    enough = SegmentPairs(*(torch.cat(fields)[:count] for fields in zip(*whole, strict=True)))
    return drawn[0], enough


def _mistaken(drawn: Worlds, data: list[SegmentPairs], iterations: int, seed: int) -> dict[str, np.ndarray]:
    """Whether what is learned is near-optimal in each world, (M,): acted on greedily, and as a reward."""
    S, A, _, _ = drawn.stacked.sizes
    fit = fit_linear_reward(
        stack_pairs(data),
        model="advantage",
        values=tabular_advantage(S, A),
        size=S * A,
        iterations=iterations,
        seed=seed,
    )
    table = fit.weights.unflatten(-1, (S, A))  # (M, S, A)
    _, action_values = value_iteration(
        drawn.stacked, table[..., None].expand(drawn.stacked.probability.shape), gamma=GAMMA
    )
    found = {"greedy": table, "reward": action_values}
    return {
        kind: scaled_policy_return(drawn.stacked, greedy_policy(values), drawn.weights, gamma=GAMMA)
        .near_optimal.double()
        .numpy()
        for kind, values in found.items()
    }


def measure_b10(make: MakeWorld, show: Progress, *, worlds: int, pairs: int, seed: int) -> list[Finding]:
    """With chance: the regret is −ΣA*; a step's deterministic regret is it plus luck whose mean is 0."""
    sums, luck, largest = [], [], []
    for number in range(worlds):
        drawn = draw_worlds(make, 1, 1000 * seed + number, kind=("risk", "teleport")[number % 2])
        mdp, weights = drawn.alone[0], drawn.weights[0]
        values, action_values = value_iteration(mdp, rewards(mdp, weights), gamma=1.0)
        trace, _ = _segments(mdp, pairs, _generator(seed, number))
        A = mdp.sizes[1]
        losses = values[trace.visits.clamp(min=0) // A] - action_values.flatten()[trace.visits.clamp(min=0)]  # V − Q
        score = regret(trace_statistics(trace, weights, values, action_values))
        sums.append((score + (losses * trace.mask).sum(-1)).abs().max().item())
        difference, mean = _luck(mdp, weights, values, action_values)
        luck.append(mean)
        largest.append(difference)
        show(number + 1, worlds)
    who = f"{worlds} worlds with chance, gamma 1: "
    return [
        at_most("B10", who + "max |score + Σ (V* − Q*)| over segments", max(sums), 1e-9, seeds=(seed,)),
        at_most("B10.luck", who + "max over (s, a) of |E luck|, luck = V* − r − V*(s') − (V* − Q*)", max(luck), 1e-9),
        at_least("B10.largest", who + "largest |luck| of a step", max(largest)),
    ]


def _luck(mdp: TabularMDP, weights: Tensor, values: Tensor, action_values: Tensor) -> tuple[float, float]:
    """Largest |deterministic − general regret| of single steps, and largest |mean over outcomes|, over all (s, a)."""
    chosen = ((mdp.probability > 0) & ~mdp.terminal[:, None, None]).nonzero()  # (n, 3) of s, a, k
    state, action, outcome = chosen.unbind(-1)
    trace = trace_segments(mdp, state, action[:, None], outcomes=outcome[:, None])
    statistics = trace_statistics(trace, weights, values, action_values)
    gap = regret_deterministic(statistics) - regret(statistics)  # (n,)
    weighted = torch.zeros_like(action_values).index_put(
        (state, action), gap * mdp.probability[state, action, outcome], True
    )
    return gap.abs().max().item(), weighted.abs().max().item()


def value_iteration_speed(make: MakeWorld, show: Progress, *, worlds: int, seeds: Sequence[int]) -> list[Finding]:
    """How many times as fast all worlds at once are; the median over draws of the worlds, each the best of three turns.

    Worlds in which a loop is optimal are evaluated by linear solves, which all worlds of a stack then take part in.
    """
    ratios, together = [], []
    for done, seed in enumerate(seeds):
        drawn = draw_worlds(make, worlds, seed)
        pairs = [(mdp, rewards(mdp, weights)) for mdp, weights in zip(drawn.alone, drawn.weights, strict=True)]
        alone = _least_seconds(pairs)
        together.append(_least_seconds([(drawn.stacked, rewards(drawn.stacked, drawn.weights))]))
        ratios.append(alone / together[-1])
        show(done + 1, len(seeds))
    ratio = Estimate(np.median(ratios), min(ratios), max(ratios))
    seconds = Estimate(np.median(together), min(together), max(together))
    what = f"value iteration of {worlds} random worlds, gamma .999: "
    usual: dict[str, Any] = {"seeds": tuple(seeds)}
    return [
        at_least("speed.value_iteration", what + "seconds one by one / stacked", ratio, **usual),
        at_most("speed.value_iteration_seconds", what + "seconds stacked", seconds, **usual),
    ]


def _least_seconds(pairs: list[tuple[TabularMDP, Tensor]]) -> float:
    """Of three turns, by the processor's clock."""
    taken = []
    for _ in range(3):
        begin = time.process_time()
        for mdp, reward in pairs:
            value_iteration(mdp, reward, gamma=GAMMA)
        taken.append(time.process_time() - begin)
    return min(taken)
