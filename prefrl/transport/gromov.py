r"""Gromov–Wasserstein couplings of two tasks: exact, entropic, proximal, quantized; fused with a cost between them.

A coupling T (n, m), with row sums p and column sums q, minimizes

    (1 − α) Σ M_ij T_ij + α Σ (C_ii' − D_jj')² T_ij T_i'j'

with C (n, n) and D (m, m) the distances in source and target and M (n, m) a cost between them. α = 1: Gromov–
Wasserstein (Mémoli 2011). 0 < α < 1: fused (Vayer et al. 2020, arXiv 1811.02834). α = 0: Wasserstein. The problem is
not convex: it is solved from several starts and the best result is kept.

| solver | method | exact marginals |
|---|---|---|
| exact | conditional gradient with exact line search (Vayer et al. 2019, arXiv 1805.09114) | yes |
| entropic | projected gradient, entropy ε (Peyré, Cuturi and Solomon 2016) | rounded |
| proximal | the same with a proximal term: nearly exact plans (Xu et al. 2019, arXiv 1901.06003) | rounded |
| quantized | exact between medoids, monotone within their clusters (Chowdhury et al. 2021, arXiv 2104.02013) | yes |

The exact one is POT's (Flamary et al. 2021).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import ot

from prefrl.transport.descent import Start, solve
from prefrl.transport.entropic import sinkhorn
from prefrl.transport.problem import (
    Coupling,
    Solver,
    check_matrix,
    check_options,
    check_weights,
    finite_plan,
    make_problem,
    round_to_marginals,
)
from prefrl.transport.reduction import reduced_coupling

__all__ = ["gromov_wasserstein", "wasserstein"]


def gromov_wasserstein(
    source: Any,
    target: Any,
    *,
    solver: Solver = "exact",
    cost: Any = None,
    alpha: float | None = None,
    epsilon: float = 0.02,
    source_weights: Any = None,
    target_weights: Any = None,
    starts: Sequence[Start] = ("product", "tlb"),
    max_exact: int = 1000,
    medoids: int = 500,
    seed: int = 0,
    max_iterations: int = 1000,
) -> Coupling:
    """The best coupling of distances (n, n) and (m, m) over the starts.

    - cost (n, m), alpha in [0, 1]: the fused form; alpha 0.5 where only cost is given, 1 where it is not
    - epsilon ≥ 1e-3: entropy of "entropic" and "proximal", in units of the largest distance squared; 0.005–0.02 with
      normalized distances
    - weights (n,), (m,): positive; uniform if None
    - starts: "product" (p qᵀ), "tlb" (third lower bound: rows of distances matched by their quantiles), or
      (name, plan)
    - beyond max_exact items, and for "quantized": only ``medoids`` of each task (k-medoids, by seed) are coupled, and
      the plan is lifted to all of them

    >>> line = np.abs(np.subtract.outer([0.0, 1.0, 4.0], [0.0, 1.0, 4.0]))
    >>> order = [2, 0, 1]
    >>> np.round(3 * gromov_wasserstein(line, line[np.ix_(order, order)]).plan)
    array([[0., 1., 0.],
           [0., 0., 1.],
           [1., 0., 0.]])
    """
    check_options(solver, epsilon, alpha)
    problem = make_problem(source, target, source_weights, target_weights, cost, alpha)
    n, m = problem.cost.shape
    if solver == "quantized" or max(n, m) > max_exact:
        return reduced_coupling(
            problem, solver=solver, medoids=medoids, seed=seed,
            starts=starts, epsilon=epsilon, max_iterations=max_iterations,
        )  # fmt: skip
    return solve(problem, solver=solver, starts=starts, epsilon=epsilon, max_iterations=max_iterations)


def wasserstein(
    cost: Any, *, epsilon: float | None = None, source_weights: Any = None, target_weights: Any = None
) -> Coupling:
    """The coupling of a cost (n, m) alone: exact, or with entropy epsilon in units of the largest cost.

    >>> wasserstein([[1.0, 0.0], [0.0, 1.0]]).plan
    array([[0. , 0.5],
           [0.5, 0. ]])
    """
    cost = check_matrix(cost, "cost")
    p, q = check_weights(source_weights, len(cost), "source"), check_weights(target_weights, cost.shape[1], "target")
    if epsilon is None:
        plan = ot.emd(p, q, cost, numItermax=1_000_000)
    else:
        check_options("entropic", epsilon, None)
        scaled = cost / max(np.abs(cost).max(), np.finfo(float).tiny)
        with np.errstate(all="ignore"):
            plan, _ = sinkhorn(scaled, p, q, epsilon=epsilon)
        plan = round_to_marginals(finite_plan(plan, "sinkhorn", epsilon), p, q)
    loss = float((cost * plan).sum())
    return Coupling(plan=plan, loss=loss, losses={"product": loss}, plans={"product": plan})
