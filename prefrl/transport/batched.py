"""Many small Gromov–Wasserstein problems of one size at once, by proximal steps (POT's ot.batch)."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import ot.batch

from prefrl.errors import InvalidData
from prefrl.transport.descent import product_start, third_lower_bound_start
from prefrl.transport.problem import Coupling, check_options, finite_plan, make_problem, round_to_marginals

__all__ = ["gromov_wasserstein_batch"]


def gromov_wasserstein_batch(
    source: Any,
    target: Any,
    *,
    cost: Any = None,
    alpha: float | None = None,
    epsilon: float = 0.02,
    max_iterations: int = 200,
) -> list[Coupling]:
    """Distances (B, n, n) and (B, m, m), cost (B, n, m) or None -> B couplings with uniform weights.

    The proximal solver of :func:`prefrl.transport.gromov_wasserstein` from both starts, all problems in one loop;
    worth it for B in the hundreds and n below 50. epsilon is in units of the largest distance squared.

    >>> line = np.abs(np.subtract.outer([0.0, 1.0, 4.0], [0.0, 1.0, 4.0]))
    >>> [coupling] = gromov_wasserstein_batch(line[None], line[None, ::-1, ::-1])
    >>> np.round(3 * coupling.plan)
    array([[0., 0., 1.],
           [0., 1., 0.],
           [1., 0., 0.]])
    """
    check_options("proximal", epsilon, alpha)
    if len(source) != len(target) or (cost is not None and len(cost) != len(source)) or len(source) == 0:
        raise InvalidData(f"A batch needs as many sources as targets and costs, but has {len(source)}, {len(target)}.")
    costs = [None] * len(source) if cost is None else cost
    problems = [make_problem(C, D, None, None, M, alpha) for C, D, M in zip(source, target, costs, strict=True)]
    C, D, M = (np.stack([getattr(problem, name) for problem in problems]) for name in ("source", "target", "cost"))
    p, q = problems[0].p, problems[0].q
    product = product_start(p, q)
    tlb = [third_lower_bound_start(problem.source, problem.target, p, q) for problem in problems]
    starts = {"product": np.stack([product] * len(problems)), "tlb": 0.9 * np.stack(tlb) + 0.1 * product}
    plans = {}
    for name, start in starts.items():
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")  # a plan that is not one is found below
            result = ot.batch.solve_gromov_batch(
                C, D, reg=epsilon, M=M, alpha=problems[0].alpha, T_init=start, symmetric=True, grad="detach",
                max_iter=max_iterations, tol=1e-7, max_iter_inner=200, tol_inner=1e-7,
            )  # fmt: skip
        plans[name] = [round_to_marginals(finite_plan(plan, "proximal", epsilon), p, q) for plan in result.plan]
    return [_best(problem, {name: plans[name][k] for name in plans}) for k, problem in enumerate(problems)]


def _best(problem: Any, plans: dict[str, np.ndarray]) -> Coupling:
    losses = {name: problem.loss(plan) for name, plan in plans.items()}
    best = min(losses, key=losses.__getitem__)
    return Coupling(plan=plans[best], loss=losses[best], losses=losses, plans=plans)
