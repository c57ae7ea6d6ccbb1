r"""Gromov–Wasserstein with entropy, by projected gradient steps whose projections start where the last one ended.

A step is T ← argmin ⟨∇L(T_old), T⟩ + ε Σ T log T over couplings (Peyré, Cuturi and Solomon 2016, with the gradient of
the objective of :mod:`prefrl.transport.gromov` in full), or + ε KL(T | T_old) for the proximal form (Xu et al. 2019,
arXiv 1901.06003). Each is Sinkhorn's iteration; dual potentials are taken into the kernel (Schmitzer 2019, arXiv
1610.06519), so that nothing under- or overflows.
"""

from __future__ import annotations

import numpy as np

from prefrl.transport.problem import Problem

__all__ = ["entropic_descent", "sinkhorn"]

Array = np.ndarray


def entropic_descent(
    problem: Problem,
    start: Array,
    *,
    epsilon: float,
    proximal: bool = False,
    max_iterations: int = 1000,
    tolerance: float = 1e-4,
) -> Array:
    """The plan (n, m) at which steps change less than ``tolerance`` of the mass; its row sums hold up to Sinkhorn's.

    A zero of the start stays one under the proximal term: mix it with the product before.
    """
    p, q, alpha, source, target = problem.p, problem.q, problem.alpha, problem.source, problem.target
    constant = (1 - alpha) * problem.cost + 2 * alpha * ((source**2 @ p)[:, None] + (target**2 @ q)[None])
    plan, potentials = start, None
    for _ in range(max_iterations):
        gradient = constant - 4 * alpha * (source @ plan @ target)
        if proximal:
            gradient -= epsilon * np.log(np.maximum(plan, 1e-300))
        new, potentials = sinkhorn(gradient, p, q, epsilon=epsilon, potentials=None if proximal else potentials)
        change = np.abs(new - plan).sum()
        plan = new
        if not change > tolerance:  # NaN ends it too
            break
    return plan


def sinkhorn(
    cost: Array,
    p: Array,
    q: Array,
    *,
    epsilon: float,
    potentials: tuple[Array, Array] | None = None,
    max_iterations: int = 1000,
    tolerance: float = 1e-6,
) -> tuple[Array, tuple[Array, Array]]:
    """The coupling (n, m) of least cost minus ε times entropy, and its potentials (n,) and (m,) to start from again.

    Column sums hold exactly, row sums up to ``tolerance`` in all.

    >>> sinkhorn(np.array([[0.0, 9.0], [9.0, 0.0]]), np.ones(2) / 2, np.ones(2) / 2, epsilon=0.1)[0].round(6)
    array([[0.5, 0. ],
           [0. , 0.5]])
    """
    f, g = potentials or (np.zeros(len(p)), np.zeros(len(q)))
    reduced = cost - f[:, None] - g
    rows = reduced.min(1)
    columns = (reduced - rows[:, None]).min(0)  # now every row and column has an entry 1 in the kernel
    f, g = f + rows, g + columns
    kernel = np.exp((rows[:, None] + columns - reduced) / epsilon)
    u = np.exp(np.clip(-rows / epsilon, -500, 500)) if potentials else np.ones_like(p)  # undoes f + rows
    for iteration in range(max_iterations):
        v = q / (u @ kernel)
        through = kernel @ v
        if iteration % 5 == 4 and np.abs(u * through - p).sum() < tolerance:
            break
        u = p / through
    v = q / (u @ kernel)
    return u[:, None] * kernel * v, (f + epsilon * np.log(u), g + epsilon * np.log(v))
