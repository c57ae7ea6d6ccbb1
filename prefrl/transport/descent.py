"""Starts, and descent from them: the Gromov–Wasserstein problem is not convex, so where it starts matters."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import ot
from scipy.spatial.distance import cdist

from prefrl.errors import ConfigError
from prefrl.transport.entropic import entropic_descent
from prefrl.transport.problem import Coupling, Problem, Solver, check_plan, finite_plan, round_to_marginals

__all__ = ["product_start", "solve", "third_lower_bound_start"]

Array = np.ndarray
Start = str | tuple[str, Array]


def solve(
    problem: Problem, *, solver: Solver, starts: Sequence[Start], epsilon: float, max_iterations: int
) -> Coupling:
    """The best of what the solver finds from each start."""
    if not starts:
        raise ConfigError("starts is empty: give product, tlb, or (name, plan).")
    plans = {}
    for start in starts:
        name, plan = (start, _start(start, problem)) if isinstance(start, str) else start
        check_plan(plan, problem, name)
        plans[name] = _descend(problem, solver, plan, epsilon=epsilon, max_iterations=max_iterations)
    losses = {name: problem.loss(plan) for name, plan in plans.items()}
    best = min(losses, key=losses.__getitem__)
    return Coupling(plan=plans[best], loss=losses[best], losses=losses, plans=plans)


def product_start(p: Array, q: Array) -> Array:
    """The coupling p qᵀ (n, m), which knows nothing."""
    return np.outer(p, q)


def third_lower_bound_start(source: Array, target: Array, p: Array, q: Array, *, levels: int = 100) -> Array:
    """(n, m): items matched by the distribution of their distances to all others (Mémoli 2011, third lower bound).

    The distribution of each row is read at ``levels`` quantiles.
    """
    return ot.emd(p, q, _quantile_cost(source, target, p, q, levels), numItermax=1_000_000)


def _descend(problem: Problem, solver: Solver, start: Array, *, epsilon: float, max_iterations: int) -> Array:
    p, q = problem.p, problem.q
    if solver == "exact":
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")  # a plan that is not one is found below
            plan = ot.gromov.fused_gromov_wasserstein(
                problem.cost, problem.source, problem.target, p, q, "square_loss", symmetric=True, alpha=problem.alpha,
                G0=start, max_iter=max_iterations, numItermaxEmd=1_000_000,
            )  # fmt: skip
        return finite_plan(plan, solver, epsilon)
    proximal = solver == "proximal"
    if proximal:
        start = 0.9 * start + 0.1 * product_start(p, q)
    with np.errstate(all="ignore"):
        plan = entropic_descent(problem, start, epsilon=epsilon, proximal=proximal, max_iterations=max_iterations)
    return round_to_marginals(finite_plan(plan, solver, epsilon), p, q)


def _start(name: str, problem: Problem) -> Array:
    if name == "product":
        return product_start(problem.p, problem.q)
    if name == "tlb":
        if problem.alpha == 1:
            return third_lower_bound_start(problem.source, problem.target, problem.p, problem.q)
        quadratic = _quantile_cost(problem.source, problem.target, problem.p, problem.q, 100)
        both = problem.alpha * quadratic + (1 - problem.alpha) * problem.cost
        return ot.emd(problem.p, problem.q, both, numItermax=1_000_000)
    raise ConfigError(f"Unknown start {name!r}: there are product, tlb, and (name, plan).")


def _quantile_cost(source: Array, target: Array, p: Array, q: Array, levels: int) -> Array:
    return cdist(_quantiles(source, p, levels), _quantiles(target, q, levels), "sqeuclidean") / levels


def _quantiles(distances: Array, weights: Array, levels: int) -> Array:
    """(n, n), (n,) -> (n, levels): weighted quantiles of each row."""
    order = np.argsort(distances, axis=1)
    cumulative = np.cumsum(weights[order], axis=1)
    at = (np.arange(levels) + 0.5) / levels
    place = np.stack([np.searchsorted(row, at) for row in cumulative])
    return np.take_along_axis(np.take_along_axis(distances, order, 1), np.minimum(place, len(weights) - 1), 1)
