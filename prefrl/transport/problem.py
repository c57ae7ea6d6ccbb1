"""The problem of coupling two tasks, checked and scaled; what a coupling is, and what it costs.

Axes: n items (trajectories or windows) of the source, m of the target.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from prefrl.errors import ConfigError, InvalidData

__all__ = [
    "Coupling",
    "Problem",
    "Solver",
    "check_matrix",
    "check_options",
    "check_plan",
    "check_weights",
    "coupling_loss",
    "finite_plan",
    "make_problem",
    "round_to_marginals",
]

Array = np.ndarray
Solver = Literal["exact", "entropic", "proximal", "quantized"]
SMALLEST_EPSILON = 1e-3  # below it exp(-cost / epsilon) underflows: there is no log-domain solver


@dataclass(frozen=True)
class Coupling:
    """A coupling and how it was found.

    - plan (n, m) · loss: the objective of the module's docstring at the plan, without entropy; of the medoids only
      where ``reduced``
    - losses, plans: those reached from each start, by its name; the plan is the best of them
    """

    plan: Array
    loss: float
    losses: dict[str, float]
    plans: dict[str, Array]
    reduced: bool = False


@dataclass(frozen=True)
class Problem:
    """Checked and scaled: distances in [0, 1], weights that sum to 1."""

    source: Array
    target: Array
    p: Array
    q: Array
    cost: Array
    alpha: float
    scale: float  # the loss in the caller's units is scale times the loss here

    def loss(self, plan: Array) -> float:
        return self.scale * coupling_loss(plan, self.source, self.target, cost=self.cost, alpha=self.alpha)


def coupling_loss(plan: Array, source: Array, target: Array, *, cost: Array | None = None, alpha: float = 1.0) -> float:
    """The objective of the module's docstring at a plan (n, m); O(n² m + n m²).

    >>> line = np.array([[0.0, 1.0], [1.0, 0.0]])
    >>> coupling_loss(np.eye(2) / 2, line, line), coupling_loss(np.full((2, 2), 0.25), line, line)
    (0.0, 0.5)
    """
    p, q = plan.sum(1), plan.sum(0)
    linear = 0.0 if cost is None or alpha == 1 else float((cost * plan).sum())
    if alpha == 0:
        return linear
    square = p @ source**2 @ p + q @ target**2 @ q - 2 * np.sum((source @ plan @ target) * plan)
    return (1 - alpha) * linear + alpha * max(float(square), 0.0)


def round_to_marginals(plan: Array, p: Array, q: Array) -> Array:
    """The plan (n, m) moved onto row sums p and column sums q (Altschuler, Weed and Rigollet 2017, algorithm 2).

    >>> round_to_marginals(np.array([[0.4, 0.2], [0.0, 0.3]]), np.array([0.5, 0.5]), np.array([0.5, 0.5])).sum(0)
    array([0.5, 0.5])
    """
    plan = plan * np.minimum(1, p / np.maximum(plan.sum(1), 1e-300))[:, None]
    plan = plan * np.minimum(1, q / np.maximum(plan.sum(0), 1e-300))
    rows, columns = np.maximum(p - plan.sum(1), 0), np.maximum(q - plan.sum(0), 0)
    missing = columns.sum()
    return plan + np.outer(rows, columns) / missing if missing > 0 else plan


def make_problem(source: Any, target: Any, p: Any, q: Any, cost: Any, alpha: float | None) -> Problem:
    source, target = _distances(source, "source"), _distances(target, "target")
    n, m = len(source), len(target)
    if cost is None:
        if alpha not in (None, 1):
            raise ConfigError(f"alpha={alpha} mixes in a cost between the tasks, but cost is None: give it.")
        linear, alpha = np.zeros((n, m)), 1.0
    else:
        linear, alpha = check_matrix(cost, "cost"), 0.5 if alpha is None else float(alpha)
        if linear.shape != (n, m):
            raise InvalidData(f"cost must have shape {(n, m)}, a row an item of the source, but has {linear.shape}.")
    largest = max(source.max(), target.max())
    return Problem(
        source=source / largest,
        target=target / largest,
        p=check_weights(p, n, "source"),
        q=check_weights(q, m, "target"),
        cost=linear / largest**2,
        alpha=alpha,
        scale=float(largest**2),
    )


def check_options(solver: str, epsilon: float, alpha: float | None) -> None:
    if solver not in get_args(Solver):
        raise ConfigError(f"Unknown solver {solver!r}: there are {', '.join(get_args(Solver))}.")
    if solver in ("entropic", "proximal") and not SMALLEST_EPSILON <= epsilon < np.inf:
        raise ConfigError(
            f"epsilon must be at least {SMALLEST_EPSILON}, in units of the largest distance squared, but is {epsilon}: "
            "smaller ones underflow. For a sharper plan use solver='exact'."
        )
    if alpha is not None and not 0 <= alpha <= 1:
        raise ConfigError(f"alpha must be in [0, 1] (0: cost alone, 1: distances alone), but is {alpha}.")


def check_plan(plan: Any, problem: Problem, name: str) -> None:
    shape = np.shape(plan)
    if shape != problem.cost.shape or not np.allclose(np.sum(plan, 1), problem.p, atol=1e-6):
        raise InvalidData(f"The start {name!r}, of shape {shape}, is no coupling of these weights.")


def _distances(values: Any, name: str) -> Array:
    array = check_matrix(values, f"{name} distances")
    if array.shape[0] != array.shape[1] or not np.allclose(array, array.T, atol=1e-8 * max(1.0, np.abs(array).max())):
        raise InvalidData(f"The {name} distances must be a symmetric (n, n) matrix, but have shape {array.shape}.")
    if len(array) < 2:
        raise InvalidData(f"The {name} has one trajectory: there are no distances to match. Give at least 2.")
    if array.max() <= 0:
        raise InvalidData(f"The {name} holds constant trajectories (all distances 0): nothing tells them apart.")
    return array


def check_matrix(values: Any, name: str) -> Array:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 2 or array.size == 0:
        raise InvalidData(f"The {name} must be a matrix, but have shape {array.shape}.")
    if not np.isfinite(array).all():
        i, j = (int(k) for k in np.argwhere(~np.isfinite(array))[0])
        raise InvalidData(f"The {name} hold NaN or an infinite value at ({i}, {j}): look for it in the features.")
    return array


def check_weights(values: Any, count: int, name: str) -> Array:
    if values is None:
        return np.full(count, 1 / count)
    array = np.asarray(values, dtype=np.float64)
    if array.shape != (count,) or not np.isfinite(array).all() or (array <= 0).any():
        raise InvalidData(f"The {name} weights must be {count} positive numbers, but have shape {array.shape}.")
    return array / array.sum()


def finite_plan(plan: Any, solver: str, epsilon: float) -> Array:
    plan = np.asarray(plan)
    if not np.isfinite(plan).all() or abs(plan.sum() - 1) > 0.1:
        raise InvalidData(
            f"The {solver} solver found no plan (numerical failure, epsilon={epsilon}): raise epsilon, or use "
            "solver='exact'."
        )
    return plan
