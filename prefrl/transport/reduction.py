r"""Many items coupled through few: k-medoids of each task, a coupling of the medoids, and the plan lifted to all.

The lifted plan moves mass only between matched clusters: T = Σ_ab S_ab L_ab with S the plan of the medoids and L_ab a
coupling of cluster a with cluster b. L_ab is monotone in the distance to the medoid for exact solvers (quantized
Gromov–Wasserstein, Chowdhury, Miller and Needham 2021, arXiv 2104.02013), the product for those that average.
Plans are in the order of the items, not of the clusters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import ot

from prefrl.errors import ConfigError
from prefrl.transport.descent import Start, solve
from prefrl.transport.problem import Coupling, Problem, Solver

__all__ = ["k_medoids", "lift", "reduced_coupling"]

Array = np.ndarray


def k_medoids(distances: Array, k: int, rng: np.random.Generator, *, max_iterations: int = 20) -> tuple[Array, Array]:
    """Medoids (k,) and each item's cluster (n,), in [0, k), of distances (n, n).

    Starts as k-means++ (Arthur and Vassilvitskii 2007), then alternates assignment and medoid (Park and Jun 2009).
    Items equal to a medoid never become another: with fewer than k different items there are fewer medoids.

    >>> line = np.abs(np.subtract.outer([0, 1, 2, 10, 11, 12.0], [0, 1, 2, 10, 11, 12.0]))
    >>> sorted(k_medoids(line, 2, np.random.default_rng(0))[0].tolist())
    [1, 4]
    """
    medoids = [int(distances.sum(1).argmin())]
    nearest = distances[medoids[0]] ** 2
    while len(medoids) < min(k, len(distances)) and nearest.sum() > 0:
        medoids.append(int(rng.choice(len(distances), p=nearest / nearest.sum())))
        nearest = np.minimum(nearest, distances[medoids[-1]] ** 2)
    centers = np.array(medoids)
    for _ in range(max_iterations):
        cluster = _clusters(distances, centers)
        members = [np.flatnonzero(cluster == a) for a in range(len(centers))]
        moved = np.array([items[distances[np.ix_(items, items)].sum(1).argmin()] for items in members])
        if (moved == centers).all():
            break
        centers = moved
    return centers, _clusters(distances, centers)


def lift(plan: Array, problem: Problem, source: tuple[Array, Array], target: tuple[Array, Array], how: str) -> Array:
    """The plan (k, l) of medoids as a plan (n, m) of items; source and target are what :func:`k_medoids` returned.

    how: "monotone" in the distance to the medoid, or "product".
    """
    if how == "product":
        p, q = problem.p / plan.sum(1)[source[1]], problem.q / plan.sum(0)[target[1]]
        return plan[np.ix_(source[1], target[1])] * p[:, None] * q
    rows, columns = _cells(problem.p, source[1], len(plan)), _cells(problem.q, target[1], plan.shape[1])
    to_medoid = problem.source[np.arange(len(problem.p)), source[0][source[1]]]
    to_medoid_target = problem.target[np.arange(len(problem.q)), target[0][target[1]]]
    lifted = np.zeros_like(problem.cost)
    for a, b in np.argwhere(plan > 0):
        (i, within), (j, within_target) = rows[a], columns[b]
        block = ot.emd_1d(to_medoid[i], to_medoid_target[j], within, within_target)
        lifted[np.ix_(i, j)] = plan[a, b] * block
    return lifted


def reduced_coupling(
    problem: Problem,
    *,
    solver: Solver,
    medoids: int,
    seed: int,
    starts: Sequence[Start],
    epsilon: float,
    max_iterations: int,
) -> Coupling:
    """The coupling of at most ``medoids`` of each task, lifted; its losses are those of the medoids."""
    if medoids < 2:
        raise ConfigError(f"medoids must be at least 2, but is {medoids}.")
    if not all(isinstance(start, str) for start in starts):
        raise ConfigError("A coupling of medoids takes no plan as a start: name product or tlb.")
    rng = np.random.default_rng(seed)
    source, target = k_medoids(problem.source, medoids, rng), k_medoids(problem.target, medoids, rng)
    small = replace(
        problem,
        source=problem.source[np.ix_(source[0], source[0])],
        target=problem.target[np.ix_(target[0], target[0])],
        p=np.bincount(source[1], problem.p),
        q=np.bincount(target[1], problem.q),
        cost=problem.cost[np.ix_(source[0], target[0])],
    )
    exact = solver in ("exact", "quantized")
    found = solve(
        small, solver="exact" if exact else solver, starts=starts, epsilon=epsilon, max_iterations=max_iterations
    )
    how = "monotone" if exact else "product"
    plans = {name: lift(plan, problem, source, target, how) for name, plan in found.plans.items()}
    best = min(found.losses, key=found.losses.__getitem__)
    return replace(found, plan=plans[best], plans=plans, reduced=True)


def _clusters(distances: Array, medoids: Array) -> Array:
    cluster = distances[:, medoids].argmin(1)
    cluster[medoids] = np.arange(len(medoids))  # no cluster is empty, even among equal items
    return cluster


def _cells(weights: Array, cluster: Array, k: int) -> list[tuple[Array, Array]]:
    """Of each cluster: its items, and their weights within it, which sum to 1."""
    members = [np.flatnonzero(cluster == a) for a in range(k)]
    return [(items, weights[items] / weights[items].sum()) for items in members]
