r"""Plans of many small transport problems at once: entropic in two domains, exact, and time-aligned.

The entropic plan minimizes ⟨P, C⟩ + ε Σ P log P over couplings; it is diag(u) K diag(v) with K = exp(−C/ε), and
Sinkhorn's iteration finds u and v (Cuturi 2013, arXiv 1306.0895). One product of each kernel with a vector is all that
an iteration costs, so B problems are two batched products. The log domain iterates on log u and log v in float64; in
between it takes them into the kernel and goes on with products there (absorption: Schmitzer 2019, arXiv 1610.06519).
The exact plan is POT's network simplex, problem by problem.

Axes: B problems, n frames of the first video, m of the second. Weights a (B, n) and b (B, m) are 0 on padding.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import ot
import torch
from torch import Tensor

from prefrl.errors import InvalidData

__all__ = ["Domain", "aligned_plans", "entropic_plans", "exact_plans", "time_band"]

Domain = Literal["auto", "kernel", "log"]
CHECKED = 10  # iterations between two looks at the marginals
ABSORBED = 50  # iterations in a kernel of the log domain before it is made anew
HIDDEN = -1e30  # the log of an entry that is not there; its sums stay finite
LARGEST = {torch.float32: 60.0, torch.float64: 500.0}  # costs over ε that a kernel bears


def entropic_plans(
    costs: Tensor,
    a: Tensor,
    b: Tensor,
    epsilon: Tensor,
    allowed: Tensor | None = None,
    *,
    max_iterations: int,
    tolerance: float,
    domain: Domain = "auto",
) -> Tensor:
    """(B, n, m): Sinkhorn's plans, with a gradient in the costs where they want one.

    epsilon: (B, 1, 1) · allowed: (B, n, m) bool, where mass may lie, None: everywhere. Row sums hold exactly; iteration
    ends when the column sums of every problem are off by at most ``tolerance`` in all, or after ``max_iterations``.
    domain: auto is the kernel's in the type of the costs, in float64 if a kernel of the batch would underflow there, or
    the log domain if it would even then.
    """
    logits = costs * (-1 / epsilon)
    if domain == "auto":
        deepest = -float(logits.detach().min())
        if deepest > LARGEST[logits.dtype]:
            logits = logits.double()
        domain = "kernel" if deepest <= LARGEST[logits.dtype] else "log"
    if domain == "log":
        logits = logits.double()
    if allowed is not None:
        logits = logits.masked_fill(~allowed, HIDDEN)
    a, b = a.to(logits.dtype), b.to(logits.dtype)
    solve = _log_domain if domain == "log" else _kernel_domain
    return solve(logits, a, b, max_iterations=max_iterations, tolerance=tolerance).to(costs.dtype)


def _kernel_domain(logits: Tensor, a: Tensor, b: Tensor, *, max_iterations: int, tolerance: float) -> Tensor:
    kernel = logits.exp()
    u, v = _scale(kernel, a, b, iterations=max_iterations, tolerance=tolerance)
    return u.transpose(1, 2) * kernel * v


def _scale(kernel: Tensor, a: Tensor, b: Tensor, *, iterations: int, tolerance: float) -> tuple[Tensor, Tensor]:
    """u (B, 1, n) and v (B, 1, m) that give the kernel its marginals; those of rows exactly."""
    a, b, tiny = a[:, None], b[:, None], torch.finfo(kernel.dtype).tiny  # tiny: 0 / 0 on padding is 0
    transposed = kernel.transpose(1, 2).contiguous()  # row vectors times matrices are what torch is fast at
    u, v = torch.ones_like(a), torch.ones_like(b)
    for iteration in range(iterations):
        columns = u @ kernel  # (B, 1, m)
        if iteration and iteration % CHECKED == 0 and _off(v * columns, b) <= tolerance:
            break
        v = b / columns.clamp_min(tiny)
        u = a / (v @ transposed).clamp_min(tiny)
    return u, v


def _off(columns: Tensor, b: Tensor) -> float:
    """How much mass lies in the wrong columns of the worst problem."""
    return float((columns - b).detach().abs().sum((1, 2)).max())


def _log_domain(logits: Tensor, a: Tensor, b: Tensor, *, max_iterations: int, tolerance: float) -> Tensor:
    """Potentials f (B, n, 1) and g (B, 1, m) of exp(logits + f + g); a problem whose kernel fails goes on in logs."""
    f, g = torch.zeros_like(a)[:, :, None], torch.zeros_like(b)[:, None]
    a_there, b_there = a[:, :, None] > 0, b[:, None] > 0
    log_a = a.where(a > 0, 1.0).log()[:, :, None]
    log_b = b.where(b > 0, 1.0).log()[:, None]
    inner = 0 if logits.requires_grad and torch.is_grad_enabled() else ABSORBED - 1
    for done in range(0, max_iterations, 1 + inner):
        g = (log_b - (logits + f).logsumexp(1, keepdim=True)).where(b_there, 0.0)
        f = (log_a - (logits + g).logsumexp(2, keepdim=True)).where(a_there, 0.0)
        if done % CHECKED == 0 or inner:
            kernel = (logits + f + g).exp()
            if _off(kernel.sum(1, keepdim=True), b[:, None]) <= tolerance:
                break
        if inner:
            u, v = _scale(kernel, a, b, iterations=min(inner, max_iterations - done - 1), tolerance=tolerance)
            more_f, more_g = u.transpose(1, 2).log().where(a_there, 0.0), v.log().where(b_there, 0.0)
            sound = (more_f.abs().sum((1, 2)) + more_g.abs().sum((1, 2))).isfinite()[:, None, None]
            f, g = f + more_f.where(sound, 0.0), g + more_g.where(sound, 0.0)
    return (logits + f + g).exp()


def exact_plans(costs: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """(B, n, m): the cheapest couplings (POT's ``ot.emd``); a constant, without gradient."""
    found = np.zeros(costs.shape)
    numbers, rows, columns = (tensor.detach().cpu().double().numpy() for tensor in (costs, a, b))
    for index, (cost, p, q) in enumerate(zip(numbers, rows, columns, strict=True)):
        there = np.ix_(p > 0, q > 0)
        p, q = p[p > 0], q[q > 0]
        plan, log = ot.emd(p / p.sum(), q / q.sum(), cost[there], numItermax=1_000_000, log=True)
        if log["warning"]:
            raise InvalidData(f"Exact transport of problem {index} failed ({log['warning']}): use plan='entropic'.")
        found[index][there] = plan
    return torch.as_tensor(found, dtype=costs.dtype, device=costs.device)


def aligned_plans(a: Tensor, b: Tensor) -> Tensor:
    """(B, n, m): mass stays at its relative time. Frame i lasts from i/n to (i + 1)/n, and so do those of the other.

    The share of time in which both are shown; the identity over n where the lengths are equal.
    """
    (start, end), (first, last) = _times(a), _times(b)
    until, since = torch.minimum(end[:, :, None], last[:, None]), torch.maximum(start[:, :, None], first[:, None])
    return (until - since).clamp_min(0.0) * ((a > 0)[:, :, None] & (b > 0)[:, None])


def time_band(a: Tensor, b: Tensor, band: float) -> Tensor:
    """(B, n, m) bool: where the middles of two frames are at most ``band`` of the video apart, or both are shown.

    The second holds a coupling at any ``band``: :func:`aligned_plans`.
    """
    middle_a, middle_b = (weights.cumsum(1) - weights / 2 for weights in (a, b))
    near = (middle_a[:, :, None] - middle_b[:, None]).abs() <= band + 1e-6
    return (near | (aligned_plans(a, b) > 1e-6 * a[:, :, None])) & (a > 0)[:, :, None] & (b > 0)[:, None]


def _times(weights: Tensor) -> tuple[Tensor, Tensor]:
    """When frames begin and end, (B, n), in parts of the video; frames of padding last no time."""
    end = weights.cumsum(1)
    return end - weights, end
